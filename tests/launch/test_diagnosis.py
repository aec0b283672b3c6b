from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trainkit.launch.diagnosis import RULES, Diagnosis, diagnose, find_silent_failure, load_tail

if TYPE_CHECKING:
    from pathlib import Path

TRACE = 'Traceback (most recent call last):\n  File "/x/trainer.py", line 7, in train\n    raise it\n'
GPU_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB."
)


@pytest.mark.parametrize(
    ("last_words", "exit_code", "title"),
    [
        (
            "RuntimeError: operator torchvision::nms does not exist",
            1,
            "PyTorch, torchvision and torchaudio do not fit together",
        ),
        (
            "RuntimeError: Detected that PyTorch and TorchAudio were compiled with different CUDA versions.",
            1,
            "PyTorch, torchvision and torchaudio do not fit together",
        ),
        (
            "RuntimeError: Cannot find valid samples, check `data/README.md` for the data format.",
            1,
            "no valid samples in the data set",
        ),
        (
            "ValueError: Undefined dataset rm_ful in dataset_info.json.",
            1,
            "the data set rm_ful is not registered",
        ),
        (
            "ValueError: Some keys are not used by the HfArgumentParser: ['learning_rat', 'x']",
            1,
            "LLaMA-Factory does not know these keys: 'learning_rat', 'x'",
        ),
        ("ValueError: File /data/a b.jsonl not found.", 1, "the data file /data/a b.jsonl is missing"),
        ("ValueError: Template qwenn does not exist.", 1, "LLaMA-Factory has no template qwenn"),
        ("TypeError: Couldn't cast array of type string to null", 1, "a column of the data changes its type"),
        (
            "ERROR: Unexpected bus error encountered in worker. This might be insufficient shared memory (shm).",
            1,
            "not enough shared memory for the data loader",
        ),
        (GPU_MEMORY, 1, "the GPU is out of memory"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED", 1, "the GPU is out of memory"),
        (
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
            1,
            "this machine is out of memory",
        ),
        ("MemoryError", 1, "this machine is out of memory"),
        (
            "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed.",
            1,
            "this machine is out of memory",
        ),
        ("OSError: [Errno 28] No space left on device: 'x'", 1, "the disk is full"),
        (
            "RuntimeError: Failed to initialize SwanLab in online mode: no TTY is available for interactive login.",
            1,
            "the experiment tracker stopped the run",
        ),
        (
            "wandb.errors.errors.AuthenticationError: API key verification failed",
            1,
            "the experiment tracker stopped the run",
        ),
        (
            "RuntimeError: Error(s) in loading state_dict for PeftModel:\n\tsize mismatch for lora_A: copying a param",
            1,
            "an adapter or checkpoint of another model",
        ),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata",
            1,
            "a weights file is damaged",
        ),
        (
            "_pickle.UnpicklingError: Weights only load failed. In PyTorch 2.6, we changed the default",
            1,
            "PyTorch refuses to unpickle a file",
        ),
        (
            "OSError: /m is not a local folder and is not a valid model identifier listed on 'https://huggingface.co'",
            1,
            "the model or its tokenizer was not found",
        ),
        ("ModuleNotFoundError: No module named 'deepspeed'", 1, "the package deepspeed is missing"),
        (
            "importlib.metadata.PackageNotFoundError: No package metadata was found for apollo_torch",
            1,
            "the package apollo_torch is missing",
        ),
        (
            "ImportError: This requires galore. To fix: please run `pip install galore_torch`",
            1,
            "the package galore_torch is missing",
        ),
        (
            "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1 unhandled system error",
            1,
            "the GPUs lost each other",
        ),
        (
            "torch.distributed.DistNetworkError: The server socket has failed to listen. EADDRINUSE, address in use",
            1,
            "the port of the distributed start is in use",
        ),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
            1,
            "the GPU or its driver cannot be used",
        ),
        (
            "ValueError: Your setup doesn't support bf16/gpu.",
            1,
            "the GPU or its driver cannot be used",
        ),
        ("{'loss': nan, 'grad_norm': nan, 'learning_rate': 1}", 1, "the loss is no number any more"),
        ("{'loss': '0', 'grad_norm': 'nan', 'learning_rate': '1'}", 1, "the loss is no number any more"),
        ("PermissionError: [Errno 13] Permission denied: '/saves'", 1, "permission denied"),
        ("some words", 137, "the trainer was killed, most likely because this machine is out of memory"),
        ("some words", 139, "the trainer crashed (segmentation fault)"),
        ("KeyboardInterrupt", 130, "stopped by Ctrl-C"),
        ("some words", 143, "stopped by SIGTERM"),
        ("RuntimeError: something new", 3, "the trainer ended with exit code 3"),
        ("", 1, "the trainer ended with exit code 1"),
    ],
)
def test_titles(last_words: str, exit_code: int, title: str) -> None:
    assert diagnose(f"loading\n{TRACE}{last_words}\n", exit_code).title == title


def test_every_rule_has_a_next_step() -> None:
    assert [title for title, _, hint in RULES if not hint] == []


def test_the_error_behind_torchruns_own_words_is_shown() -> None:
    worker = f"{TRACE}{GPU_MEMORY}"
    log = (
        "\x1b[32m{'loss': 1.2}\x1b[0m\n"
        + " 10%|█         | 1/10 [00:01<00:09,  1.0s/it]\r 20%|██        | 2/10 [00:02<00:08,  1.0s/it]\n"
        + "".join(f"[rank1]: {line}\n" for line in worker.splitlines())
        + "[rank0]: torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:9\n"
        + "E1120 10:55:05.1 12 torch/distributed/elastic/api.py:984] failed (exitcode: 1) local_rank: 1\n"
        + TRACE
        + "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        + "============================================================\n"
        + "train.py FAILED\n"
        + "Root Cause (first observed failure):\n[0]:\n  time      : 2026-11-20_10:55:05\n  exitcode  : 1 (pid: 12)\n"
        + TRACE
        + "subprocess.CalledProcessError: Command '['torchrun', '--nnodes', '1']' returned non-zero exit status 1.\n"
    )
    assert diagnose(log, 1) == Diagnosis(
        "the GPU is out of memory",
        (GPU_MEMORY,),
        "halve per_device_train_batch_size and double gradient_accumulation_steps; then reduce cutoff_len, "
        "or use a DeepSpeed ZeRO config",
    )


def test_a_message_of_several_lines_is_kept() -> None:
    message = "RuntimeError: Error(s) in loading state_dict for Model:\n\tsize mismatch for a\n\tsize mismatch for b"
    log = f"{TRACE}{message}\nbye\n"
    assert diagnose(log, 1).lines == (
        "RuntimeError: Error(s) in loading state_dict for Model:",
        "\tsize mismatch for a",
        "\tsize mismatch for b",
    )


def test_without_an_error_the_last_words_are_shown() -> None:
    lines = "".join(f"word {number}\n" for number in range(20))
    log = (
        f"{lines}----\n\n 50%|#####     | 1/2 [00:01<00:01]\n\x1b[31mlast\x1b[0m\nGenerating: 5 examples [00:01, 3/s]\n"
    )
    assert diagnose(log, 137).lines == (*(f"word {number}" for number in range(13, 20)), "last")


def test_a_warning_does_not_hide_the_error() -> None:
    warning = "W: CUDA initialization: no driver, using the CPU"
    log = f"{warning}\n{TRACE}ValueError: Undefined dataset a in dataset_info.json.\n"
    assert diagnose(log, 1).title == "the data set a is not registered"


def test_a_signal_says_more_than_a_warning() -> None:
    warning = "ModuleNotFoundError in an optional import: No module named 'kernels'\n"
    assert diagnose(f"{warning}KeyboardInterrupt\n", 130).title == "stopped by Ctrl-C"
    assert diagnose(f"{warning}KeyboardInterrupt\n", 143).title == "stopped by SIGTERM"
    assert diagnose(warning, 137).title.startswith("the trainer was killed")


def test_nan_in_a_run_that_ended_well_is_found() -> None:
    good = "{'loss': '5.8', 'grad_norm': '1.2', 'learning_rate': '1e-4'}\n"
    bad = (
        " 12%|#         | 1/8 [00:01<00:08,  1.16s/it]\r\r{'loss': '0', 'grad_norm': 'nan', 'learning_rate': '1e-4'}\n"
    )
    assert find_silent_failure(f"{bad}{good}done\n") is None
    assert find_silent_failure("") is None
    assert find_silent_failure(f"{good}{bad}done\n") == Diagnosis(
        "the loss is no number any more",
        ("{'loss': '0', 'grad_norm': 'nan', 'learning_rate': '1e-4'}",),
        "lower learning_rate, set max_grad_norm, and use bf16 instead of fp16",
    )


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    assert load_tail(log) == ""
    log.write_bytes(b"x" * 300_000 + "ü end".encode())
    assert load_tail(log) == "x" * (256 * 1024 - 6) + "ü end"
    assert load_tail(log, 5) == "\ufffd end"
