"""LLaMA-Factory's own training with one more callback: every process saves and stops after the same step.

    python train_together.py train CONFIG.yaml    as `llamafactory-cli train CONFIG.yaml`, torchrun included
    python train_together.py CONFIG.yaml          one of torchrun's workers

A signal is not enough to stop several processes: each sees it between other steps, and a checkpoint of two halves is
none. So trainkit asks by a file, named in $TRAINKIT_STOP_FILE. The first process of a node makes it when the training
begins; trainkit writes the number of a signal into it; after each step all processes take the largest number that any
of them read, on any node, so that one node is enough. When they have saved, the step is added to the file.

Reads no JSON and prints none: its words are the trainer's, its exit code is 0 after a stop.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

STOP_VARIABLE = "TRAINKIT_STOP_FILE"
RESUME, OVERWRITE = "resume_from_checkpoint", "overwrite_output_dir"


class StopTogether:
    """The part of the callback that needs no transformers; `stop_file` is absent until the training begins."""

    def __init__(self, stop_file: Path) -> None:
        self.stop_file = stop_file
        self.signal = 0

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        """Show trainkit that a stop can be asked for."""
        if args.local_process_index == 0:
            self.stop_file.touch()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save now, without looking at the eval data first, when a process was asked to stop."""
        # after the last step the trainer saves and ends by itself
        if state.global_step < state.max_steps and (number := agree(self.asked(), args)):
            self.signal = number
            # a checkpoint without optimizer is no use to a training that is to go on
            args.save_only_model = False
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """End here when this was the last save: what follows would look like a finished training."""
        if self.signal:
            wait_for_all(args)
            self.leave_word(args, state)
            sys.exit(0)

    def on_train_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Leave the word also where a trainer stops without a save, as PPO's does."""
        if self.signal:
            self.leave_word(args, state)

    def asked(self) -> int:
        """Return the number of the signal that trainkit wrote, 0 before."""
        try:
            words = self.stop_file.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return 0
        return int(words[0]) if words else 0

    def leave_word(self, args: Any, state: Any) -> None:
        """Write down for which signal and after which step the training stopped."""
        if args.local_process_index == 0:
            beside = self.stop_file.with_name(f"{self.stop_file.name}.tmp")
            beside.write_text(f"{self.signal} {state.global_step}", encoding="utf-8")
            beside.replace(self.stop_file)


def agree(number: int, args: Any) -> int:
    """Return the largest number of all processes."""
    if args.world_size == 1:
        return number
    import torch
    from torch import distributed

    told = torch.tensor([number], device=args.device)
    distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
    return int(told.item())


def wait_for_all(args: Any) -> None:
    """Wait until every process has saved its part; after this they speak no more to each other."""
    if args.world_size > 1:
        from torch import distributed

        distributed.barrier()
        distributed.destroy_process_group()


def work() -> None:
    """Train in this process, with the configuration that the first word names."""
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    if STOP_VARIABLE not in os.environ:
        run_exp()
        return
    stop_file = Path(os.environ[STOP_VARIABLE])
    # torchrun starts its workers again with the same words: what was trained until then must not be overwritten
    values = resumed_values() if stop_file.exists() else None
    callback = type("StopTogetherCallback", (StopTogether, TrainerCallback), {})(stop_file)
    run_exp(args=values, callbacks=[callback])


def resumed_values() -> dict[str, Any] | None:
    """Return the configuration that goes on from the newest checkpoint; None when there is none yet."""
    from llamafactory.hparams import read_args

    values: dict[str, Any] = read_args()
    # the trainer writes its state last
    saved = Path(values["output_dir"]).glob("checkpoint-*/trainer_state.json")
    newest = max((path.parent for path in saved), key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    if newest is None:
        return None
    return {key: value for key, value in values.items() if key != OVERWRITE} | {RESUME: str(newest)}


def start_workers() -> None:
    """Let LLaMA-Factory's launcher call torchrun, with this file for each worker instead of its own."""
    from llamafactory import launcher

    if " " not in __file__:
        launcher.__file__ = __file__
        launcher.launch()
        return
    # the launcher splits its words at spaces; the workers share the run folder it works in
    link = Path("train_together.py")
    link.symlink_to(__file__)
    launcher.__file__ = str(link)
    try:
        launcher.launch()
    finally:
        link.unlink()


def needs_torchrun() -> bool:
    """Return whether LLaMA-Factory's launcher would call torchrun."""
    from llamafactory.extras.misc import get_device_count, is_env_enabled, use_kt, use_ray

    forced = is_env_enabled("FORCE_TORCHRUN") or is_env_enabled("USE_MCA")
    return forced or (get_device_count() > 1 and not use_ray() and not use_kt())


def main() -> None:
    """Train, or start the workers that do."""
    # programs beside this one have names that a library may look for
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [folder for folder in sys.path if folder != here]
    if sys.argv[1] == "train" and needs_torchrun():
        start_workers()
        return
    if sys.argv[1] == "train":
        del sys.argv[1]
    work()


if __name__ == "__main__":
    main()
