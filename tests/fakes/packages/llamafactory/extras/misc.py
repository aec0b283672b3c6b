from __future__ import annotations

import os


def is_env_enabled(name: str) -> bool:
    return os.environ.get(name) == "1"


def get_device_count() -> int:
    return 0


def use_ray() -> bool:
    return False


use_kt = use_ray
