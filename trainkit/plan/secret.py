"""Which keys hold secrets: their values are not shown and not written to a file."""

from __future__ import annotations

# A secret's key -> the variable that the trainer and its libraries read; the others have none.
VARIABLE_OF_SECRET = {
    "hf_hub_token": "HF_TOKEN",
    "hub_token": "HF_TOKEN",
    "ms_hub_token": "MODELSCOPE_API_TOKEN",
    "swanlab_api_key": "SWANLAB_API_KEY",
    "wandb_api_key": "WANDB_API_KEY",
}
SECRET_ENDINGS = ("api_key", "_token", "webhook_url", "secret")


def is_secret(key: str) -> bool:
    """Whether the value of a key must not be shown or written to a file."""
    return key.endswith(SECRET_ENDINGS)


def shown(key: str, value: object) -> str:
    """Return a value as a message may show it: `shown("seed", 1)` is `1`, a secret is `a secret value`."""
    return "a secret value" if is_secret(key) else repr(value)
