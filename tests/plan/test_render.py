from __future__ import annotations

from trainkit.datatypes import Problem, TrainConfig
from trainkit.plan.render import render_yaml, secret_environment

HEADER = "# Written by trainkit: all that LLaMA-Factory reads for this run. Secrets are left out.\n"
SECRETS = {
    "swanlab_api_key": "s1",
    "hf_hub_token": "s2",
    "wandb_api_key": "s3",
    "swanlab_lark_webhook_url": "s4",
    "swanlab_lark_secret": "s5",
}


def test_sorted_and_quoted_where_needed() -> None:
    values = {
        "run_name": "1e-4",
        "eval_strategy": "no",
        "learning_rate": 1e-05,
        "bf16": True,
        "list": ["b", "a"],
        "t": "模型",
    }
    shared = [1]
    text = render_yaml(TrainConfig(values | {"x": shared, "y": shared}, {}))
    assert text == HEADER + (
        "bf16: true\neval_strategy: 'no'\nlearning_rate: 1.0e-05\n"
        "list:\n- b\n- a\nrun_name: '1e-4'\nt: 模型\nx:\n- 1\ny:\n- 1\n"
    )


def test_secrets_are_never_rendered() -> None:
    assert (
        render_yaml(TrainConfig(SECRETS | {"seed": 1, "max_new_tokens": 2}, {}))
        == HEADER + "max_new_tokens: 2\nseed: 1\n"
    )


def test_secrets_move_to_the_environment() -> None:
    config, env = secret_environment(TrainConfig(SECRETS | {"seed": 1}, dict.fromkeys([*SECRETS, "seed"], "c.yaml:1")))
    assert config.values == {"seed": 1}
    assert env == {"SWANLAB_API_KEY": "s1", "HF_TOKEN": "s2", "WANDB_API_KEY": "s3"}
    passed, dropped = (
        "not written to the run's files: passed as ",
        ("left out: a secret is not written to the run's files, and no variable takes its place"),
    )
    assert config.notes == (
        Problem("c.yaml:1 swanlab_api_key", passed + "SWANLAB_API_KEY", level="note"),
        Problem("c.yaml:1 hf_hub_token", passed + "HF_TOKEN", level="note"),
        Problem("c.yaml:1 wandb_api_key", passed + "WANDB_API_KEY", level="note"),
        Problem("c.yaml:1 swanlab_lark_webhook_url", dropped, level="warning"),
        Problem("c.yaml:1 swanlab_lark_secret", dropped, level="warning"),
    )
