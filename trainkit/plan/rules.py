"""Combinations of keys that the trainer refuses or that cannot work, as one table.

Most are what LLaMA-Factory 0.9.5 (hparams/parser.py and the dataclasses beside it) and transformers' TrainingArguments
raise at their start, ten seconds and a model load later; each message says the same before anything runs.
"""

from __future__ import annotations

from trainkit.plan.facts import Facts, Rule, each, needs


def _has_reference_model(facts: Facts) -> bool:
    return facts.stage == "dpo" and facts.pref_loss not in ("orpo", "simpo")


def _wrong_number_of_probabilities(facts: Facts) -> bool:
    count = len(facts.names("interleave_probs"))
    return any(names and len(names) != count for names in (facts.names("dataset"), facts.names("eval_dataset")))


def _keeps_best(facts: Facts) -> bool:
    return facts.load_best_model_at_end is True and facts.save_strategy != "best"


def _saves_when_evaluating(facts: Facts) -> bool:
    eval_steps, save_steps = facts.number("eval_steps") or facts.number("logging_steps"), facts.number("save_steps")
    if (eval_steps < 1) != (save_steps < 1):
        return False  # a part of all steps and a number of steps need not meet
    ratio = save_steps / eval_steps if eval_steps else 0.0
    return ratio >= 1 and abs(ratio - round(ratio)) < 1e-6


ADAPTER_RULES = (
    Rule(
        lambda f: bool(f.adapter_name_or_path) and f.finetuning_type != "lora",
        "adapter_name_or_path", "an adapter works with finetuning_type: lora only",
        "take the key away, or set finetuning_type: lora",
    ),
    Rule(
        lambda f: f.quantization_bit is not None and f.finetuning_type not in ("lora", "oft"),
        "quantization_bit", "a quantized model can be trained with lora or oft only", "set finetuning_type: lora",
    ),
    Rule(
        lambda f: f.quantization_bit is not None and f.pissa_init is True,
        "pissa_init", "PiSSA cannot start from a quantized model", "take one of the two away",
    ),
    Rule(
        lambda f: f.quantization_bit is not None and f.resize_vocab is True,
        "resize_vocab", "the vocabulary of a quantized model cannot be resized", "take one of the two away",
    ),
    Rule(
        lambda f: f.quantization_bit is not None and bool(f.adapter_name_or_path) and f.create_new_adapter is True,
        "create_new_adapter", "no new adapter can be laid over the adapter of a quantized model",
        "export the first adapter, then train on the result",
    ),
    Rule(
        lambda f: f.quantization_bit is not None and len(f.names("adapter_name_or_path")) > 1,
        "adapter_name_or_path", "a quantized model takes a single adapter", "merge the adapters first",
    ),
    Rule(
        lambda f: f.do_train is True and f.quantization_device_map == "auto",
        "quantization_device_map", "auto is for inference only", "take the key away",
    ),
    Rule(
        lambda f: f.fp8 is True and f.quantization_bit is not None,
        "fp8", "fp8 training does not work with a quantized model", "take one of the two away",
    ),
    *each(
        ("loraplus_lr_ratio", "pissa_init", "use_dora", "use_rslora"),
        lambda f, key: f.finetuning_type != "lora" and getattr(f, key) not in (None, False),
        "is for finetuning_type: lora only", "take the key away",
    ),
    Rule(
        lambda f: f.use_llama_pro is True and f.finetuning_type == "full",
        "use_llama_pro", "is for finetuning_type lora and freeze only", "take the key away",
    ),
    *each(
        ("use_apollo", "use_badam", "use_galore"),
        lambda f, key: f.finetuning_type == "lora" and getattr(f, key) is True,
        "this optimizer does not work with finetuning_type: lora", "set finetuning_type: full",
    ),
    Rule(
        lambda f: [f.use_galore, f.use_apollo, f.use_badam].count(True) > 1,
        "use_galore", "only one of use_galore, use_apollo and use_badam can be on", "keep one of them",
    ),
    Rule(
        lambda f: f.pissa_init is True and (f.stage in ("ppo", "kto") or _has_reference_model(f)),
        "pissa_init", "PiSSA does not work in this stage", "take the key away",
    ),
    Rule(
        lambda f: f.finetuning_type in ("full", "freeze") and f.number("learning_rate") > 5e-5,
        "learning_rate", "high for training the model's own weights; it is usually 1e-6 to 2e-5",
        "set learning_rate: 1.0e-5", "warning",
    ),
)  # fmt: skip

STAGE_RULES = (
    *each(
        ("predict_with_generate", "neat_packing", "train_on_prompt", "mask_history"),
        lambda f, key: f.stage != "sft" and getattr(f, key) is True,
        "is for stage: sft only", "take the key away",
    ),
    Rule(
        lambda f: f.stage in ("rm", "ppo") and f.load_best_model_at_end is True,
        "load_best_model_at_end", "the stages rm and ppo do not have it", "take the key away",
    ),
    Rule(
        lambda f: f.stage == "ppo" and f.do_train is not True,
        "do_train", "stage: ppo can only train", "set do_train: true",
    ),
    Rule(
        lambda f: f.stage == "ppo" and not f.reward_model,
        "reward_model", "stage: ppo needs a reward model", "set reward_model to its folder",
    ),
    Rule(
        lambda f: f.stage == "ppo" and f.reward_model_type == "lora" and f.finetuning_type != "lora",
        "reward_model_type", "lora works with finetuning_type: lora only", "set reward_model_type: full",
    ),
    Rule(
        lambda f: f.stage == "ppo" and f.shift_attn is True,
        "shift_attn", "stage: ppo does not work with it", "take the key away",
    ),
    Rule(
        lambda f: f.stage == "dpo" and f.pref_loss != "sigmoid" and f.number("dpo_label_smoothing") > 1e-6,
        "dpo_label_smoothing", "is for pref_loss: sigmoid only", "take the key away",
    ),
    Rule(
        lambda f: f.stage == "sft" and f.do_predict is True and f.predict_with_generate is not True,
        "do_predict", "predictions are only saved with predict_with_generate: true", "set it, or take do_predict away",
    ),
    Rule(
        lambda f: f.predict_with_generate is True and f.compute_accuracy is True,
        "compute_accuracy", "does not work with predict_with_generate", "keep one of them",
    ),
    Rule(
        lambda f: not (f.do_train or f.do_eval or f.do_predict or f.evaluates),
        "do_train", "nothing would run: do_train is off", "set do_train: true",
    ),
)  # fmt: skip

DATA_RULES = (
    Rule(
        lambda f: f.do_train is True and not f.dataset,
        "dataset", "no data set is named", "name one: --dataset reward_model_full",
    ),
    Rule(
        lambda f: bool(f.eval_dataset) and f.number("val_size") > 1e-6,
        "val_size", "eval_dataset and val_size cannot be there together", "take one of the two away",
    ),
    Rule(
        lambda f: not f.dataset and f.number("val_size") > 1e-6,
        "val_size", "there is no dataset to take rows from", "name a dataset",
    ),
    Rule(
        lambda f: (f.do_predict is True or f.predict_with_generate is True) and not f.has_eval_data,
        "eval_dataset", "predicting needs eval_dataset or val_size", "`trainkit convert --split-eval` makes one",
    ),
    Rule(
        lambda f: bool(f.interleave_probs) and f.mix_strategy == "concat",
        "interleave_probs", "has no meaning with mix_strategy: concat", "set mix_strategy: interleave_under",
    ),
    Rule(
        lambda f: bool(f.interleave_probs) and _wrong_number_of_probabilities(f),
        "interleave_probs", "needs one number for each data set", "write as many numbers as data sets",
    ),
    Rule(
        lambda f: f.streaming is True and 0 < f.number("val_size") < 1,
        "val_size", "must be a number of rows with streaming: true", "for example val_size: 100",
    ),
    Rule(
        lambda f: f.streaming is True and f.max_samples is not None,
        "max_samples", "does not work with streaming: true", "take one of the two away",
    ),
    Rule(
        lambda f: f.streaming is True and f.number("max_steps") <= 0,
        "max_steps", "streaming: true needs a number of steps", "set max_steps",
    ),
    Rule(
        lambda f: f.mask_history is True and f.train_on_prompt is True,
        "mask_history", "does not work with train_on_prompt: true", "take one of the two away",
    ),
    Rule(
        lambda f: f.number("dataloader_num_workers") == 0 and f.dataloader_prefetch_factor is not None,
        "dataloader_prefetch_factor", "needs dataloader_num_workers above 0", "set dataloader_num_workers: 2",
    ),
)  # fmt: skip

SCHEDULE_RULES = (
    Rule(
        lambda f: f.load_best_model_at_end is True and not (f.has_eval_data and f.evaluates),
        "load_best_model_at_end", "needs an evaluation to know the best", "set eval_dataset and eval_strategy: steps",
    ),
    Rule(
        lambda f: _keeps_best(f) and f.evaluates and f.save_strategy != f.eval_strategy,
        "load_best_model_at_end", "needs the same save_strategy and eval_strategy", "set both to steps",
    ),
    Rule(
        lambda f: _keeps_best(f) and f.save_strategy == f.eval_strategy == "steps" and not _saves_when_evaluating(f),
        "save_steps", "load_best_model_at_end needs save_steps to be a multiple of eval_steps", "set both the same",
    ),
    Rule(
        lambda f: f.early_stopping_steps is not None and not f.evaluates,
        "early_stopping_steps", "needs an evaluation during training", "set eval_dataset and eval_strategy: steps",
    ),
    Rule(
        lambda f: f.early_stopping_steps is not None and not (f.metric_for_best_model or f.load_best_model_at_end),
        "early_stopping_steps", "needs metric_for_best_model or load_best_model_at_end", "set the first to loss",
    ),
    Rule(
        lambda f: f.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and not f.evaluates,
        "lr_scheduler_type", "this schedule needs an evaluation during training", "set lr_scheduler_type: cosine",
    ),
    Rule(
        lambda f: f.values.get("warmup_ratio") is not None and f.number("warmup_steps") > 0,
        "warmup_steps", "warmup_ratio is there too and wins", "keep one of them", "warning",
    ),
    *each(
        ("logging_steps", "eval_steps", "save_steps"),
        lambda f, key: f.number(key) > 1 and f.number(key) % 1 != 0,
        "must be a whole number, or a part of all steps below 1", "for example 500 or 0.1",
    ),
)  # fmt: skip

PRECISION_RULES = (
    Rule(
        lambda f: f.bf16 is True and f.fp16 is True,
        "fp16", "bf16 and fp16 cannot both be on", "keep bf16 on newer GPUs, fp16 on older ones",
    ),
    Rule(
        lambda f: f.bf16_full_eval is True and f.fp16_full_eval is True,
        "fp16_full_eval", "bf16_full_eval and fp16_full_eval cannot both be on", "keep one of them",
    ),
    Rule(
        lambda f: f.pure_bf16 is True and not f.hardware.supports_bf16,
        "pure_bf16", "no GPU here computes in bf16", "take the key away",
    ),
    Rule(
        lambda f: f.pure_bf16 is True and f.zero_stage == 3,
        "pure_bf16", "does not work with DeepSpeed ZeRO-3", "set bf16: true in its place",
    ),
)  # fmt: skip

DISTRIBUTED_RULES = (
    *each(
        ("pissa_init", "predict_with_generate", "use_unsloth", "use_kt"),
        lambda f, key: getattr(f, key) is True and f.zero_stage == 3,
        "does not work with DeepSpeed ZeRO-3", "take it away, or use ZeRO-2: deepspeed: ds_z2.json",
    ),
    *each(
        ("use_apollo", "use_galore"),
        lambda f, key: bool(f.deepspeed) and getattr(f, key) is True,
        "does not work with DeepSpeed", "take one of the two away",
    ),
    *each(
        ("apollo_layerwise", "galore_layerwise"),
        lambda f, key: f.distributed and getattr(f, key) is True and True in (f.use_apollo, f.use_galore),
        "does not work on several devices", "take the key away, or set CUDA_VISIBLE_DEVICES=0",
    ),
    Rule(
        lambda f: f.distributed and f.use_badam is True and f.badam_mode == "ratio",
        "badam_mode", "ratio does not work on several devices", "set badam_mode: layer",
    ),
    Rule(
        lambda f: f.distributed and f.use_badam is True and f.badam_mode == "layer" and f.zero_stage != 3,
        "use_badam", "needs DeepSpeed ZeRO-3 on several devices", "set deepspeed: ds_z3.json",
    ),
    Rule(
        lambda f: f.infer_backend not in (None, "huggingface"),
        "infer_backend", "training works with huggingface only", "take the key away",
    ),
)  # fmt: skip

PACKAGE_RULES = (
    needs("adam-mini", "use_adam_mini", lambda f: f.use_adam_mini is True),
    needs("apollo_torch", "use_apollo", lambda f: f.use_apollo is True),
    needs("badam", "use_badam", lambda f: f.use_badam is True),
    needs(
        "bitsandbytes", "quantization_bit", lambda f: f.quantization_bit is not None and f.quantization_method == "bnb"
    ),
    needs("deepspeed", "deepspeed", lambda f: bool(f.deepspeed)),
    needs("galore_torch", "use_galore", lambda f: f.use_galore is True),
    needs("liger-kernel", "enable_liger_kernel", lambda f: f.enable_liger_kernel is True),
    needs("matplotlib", "plot_loss", lambda f: f.plot_loss is True),
    needs("mixture-of-depth", "mixture_of_depths", lambda f: f.mixture_of_depths is not None),
    needs("unsloth", "use_unsloth", lambda f: f.use_unsloth is True),
    *(
        needs(package, "predict_with_generate", lambda f: f.predict_with_generate is True)
        for package in ("jieba", "nltk", "rouge_chinese")
    ),
)

RULES = (
    *ADAPTER_RULES,
    *STAGE_RULES,
    *DATA_RULES,
    *SCHEDULE_RULES,
    *PRECISION_RULES,
    *DISTRIBUTED_RULES,
    *PACKAGE_RULES,
)
