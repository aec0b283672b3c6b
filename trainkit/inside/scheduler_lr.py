"""Give the copy of a checkpoint a new learning rate, in its scheduler's and its optimizer's state.

Run by path with the trainer's Python; the request is one JSON object on stdin, the answer the last line of stdout:

    echo '{"folder": "copy", "files": ["scheduler.pt", "optimizer.pt"], "learning_rate": 1e-6}' | python scheduler_lr.py
    {"ok": true, "old": 2e-05, "rewritten": ["scheduler.pt", "optimizer.pt"]}

`folder` is a copy whose files may be hard links to the user's: a file is never written to, but replaced by a new one.
Every rate keeps its ratio to the base rate, so a warm-up goes on where it was. Tensors are mapped, not loaded: little
memory is needed. Nothing in a file is run: only tensors, plain values and four named classes of DeepSpeed are read.
When it fails: `{"ok": false, "error": "..."}` and exit code 1.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The classes that DeepSpeed writes beside its tensors, and what holds parameter groups in its files.
DEEPSPEED_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
GETATTR = "builtins.getattr"
HOLDERS = ("optimizer", "optimizer_state_dict", "base_optimizer_state")


class BadRequest(Exception):
    """Something in the request or the checkpoint that cannot be carried out, in words for the user."""


def load_state(file: Path) -> dict[str, Any]:
    """Load what torch.save wrote, with its tensors mapped, and without running anything.

    Raises:
        BadRequest: the file cannot be read, or it names a class that is not one of DeepSpeed's four.
    """
    import torch

    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
        if refused := sorted(names - DEEPSPEED_CLASSES - {GETATTR}):
            raise BadRequest(f"{file}: names {', '.join(refused)}, which is not read")
        safe = [find_class(name) for name in sorted(names - {GETATTR})]
        with torch.serialization.safe_globals([*safe, (find_member, GETATTR)]):
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise BadRequest(f"{file}: cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise BadRequest(f"{file}: holds a {type(state).__name__}, not a state")
    return state


def find_member(owner: object, name: str) -> Enum:
    """Return a member of an enumeration by its name; Python 3.11.0 to 3.11.3 pickle one as a call of getattr.

    Raises:
        UnpicklingError: it is no member of an enumeration.
    """
    if not (isinstance(owner, type) and issubclass(owner, Enum) and name in owner.__members__):
        raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is not read")
    return owner[name]


def find_class(name: str) -> Any:
    """Return the class of that full name.

    Raises:
        BadRequest: its package is not installed.
    """
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise BadRequest(f"{name} is needed to read the checkpoint: {error}") from error


def save_state(state: dict[str, Any], file: Path) -> None:
    """Put a new file in the place of `file`; what else links to the old one is left as it is."""
    import torch

    temporary = file.with_name(f".{file.name}.new")
    torch.save(state, temporary)
    temporary.replace(file)


def find_base_rate(file: Path, scheduler: Mapping[str, Any]) -> float:
    """Return the one base rate of a scheduler's state.

    Raises:
        BadRequest: it has none, or several, or it is 0, so that no ratio to it is known.
    """
    rates = {float(rate) for rate in scheduler.get("base_lrs") or ()}
    if not rates:
        raise BadRequest(f"{file}: a scheduler without base_lrs (reduce_lr_on_plateau) cannot get a new learning rate")
    if len(rates) > 1:
        listed = ", ".join(map(str, sorted(rates)))
        raise BadRequest(f"{file}: several learning rates ({listed}): which of them to change is unknown")
    if (rate := rates.pop()) <= 0:
        raise BadRequest(f"{file}: the base learning rate is {rate}, a new one would have no ratio to it")
    return rate


def find_groups(state: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parameter groups of an optimizer's state, or of DeepSpeed's file around one."""
    yield from state.get("param_groups") or ()
    for holder in HOLDERS:
        if isinstance(state.get(holder), dict):
            yield from find_groups(state[holder])


def change_scheduler(scheduler: dict[str, Any], old: float, new: float) -> None:
    """Change the base rates, and the last ones in proportion."""
    scheduler["base_lrs"] = [new for _ in scheduler["base_lrs"]]
    scheduler["_last_lr"] = [new * (rate / old) for rate in scheduler.get("_last_lr", [])]


def change_groups(state: Mapping[str, Any], old: float, new: float) -> bool:
    """Change the rates of the parameter groups in proportion; return whether there are any."""
    groups = list(find_groups(state))
    for group in groups:
        for key in {"lr", "initial_lr"} & group.keys():
            group[key] = new * (group[key] / old)
    return bool(groups)


def rewrite(request: Mapping[str, Any]) -> dict[str, Any]:
    """Rewrite the files of the request that hold a rate, and return which these were.

    Raises:
        BadRequest: a file cannot be read or changed, or no optimizer's rate was found.
    """
    folder, new = Path(request["folder"]), float(request["learning_rate"])
    name, *others = request["files"]
    scheduler = load_state(folder / name)
    old = find_base_rate(folder / name, scheduler)
    change_scheduler(scheduler, old, new)
    save_state(scheduler, folder / name)
    rewritten = []
    for other in others:
        state = load_state(folder / other)
        changed = change_groups(state, old, new)
        if (inner := state.get("lr_scheduler")) and inner.get("base_lrs"):
            change_scheduler(inner, old, new)
            changed = True
        if changed:
            save_state(state, folder / other)
            rewritten.append(other)
    if not rewritten:
        raise BadRequest(f"{folder}: no learning rate found in {', '.join(others) or 'an optimizer'}")
    return {"ok": True, "old": old, "rewritten": [name, *rewritten]}


def load_request(text: str) -> dict[str, Any]:
    """Load the request.

    Raises:
        BadRequest: it is not a JSON object, or a key is missing.
    """
    try:
        request = json.loads(text)
    except ValueError as error:
        raise BadRequest(f"the request is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise BadRequest("the request is not a JSON object")
    if missing := [key for key in ("folder", "files", "learning_rate") if not request.get(key)]:
        raise BadRequest(f"the request has no {' and no '.join(missing)}")
    return request


def main() -> int:
    """Answer the request on stdin with one line of JSON on stdout; return the exit code."""
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not the answer
    try:
        answer = rewrite(load_request(sys.stdin.read()))
    except (BadRequest, OSError) as error:
        answer = {"ok": False, "error": str(error)}
    print(json.dumps(answer), file=stdout, flush=True)
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
