from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))


def run_exp(args: dict[str, Any] | None = None, callbacks: Any = ()) -> None:
    import llamafactory_cli

    sys.argv.insert(1, "train")
    values = llamafactory_cli.load_config()
    llamafactory_cli.write_down(values)
    llamafactory_cli.train(args or values, callbacks)
