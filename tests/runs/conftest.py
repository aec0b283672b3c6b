from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def save_safetensors(path: Path, size: int = 64) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * size)


def save_archive(path: Path) -> None:
    """As torch.save does: a ZIP archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 200)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Make checkpoint-<step> as transformers writes it; `kind` is lora, full, sharded, bin or deepspeed."""

    def make(step: int, kind: str = "lora", total: int = 120, epoch: float | None = None) -> Path:
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        WEIGHTS[kind](folder)
        save_archive(folder / "scheduler.pt")
        if kind == "deepspeed":
            save_deepspeed(folder, step)
        else:
            save_archive(folder / "optimizer.pt")
            save_archive(folder / "rng_state.pth")
        state = {"global_step": step, "max_steps": total, "epoch": epoch}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        return folder

    return make


def save_lora(folder: Path) -> None:
    save_safetensors(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


def save_sharded(folder: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for shard in shards:
        save_safetensors(folder / shard)
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def save_deepspeed(folder: Path, step: int) -> None:
    state = folder / f"global_step{step}"
    state.mkdir()
    (folder / "latest").write_text(state.name)
    for rank in range(2):
        save_archive(state / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        save_archive(state / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        save_archive(folder / f"rng_state_{rank}.pth")


WEIGHTS: dict[str, Callable[[Path], object]] = {
    "lora": save_lora,
    "full": lambda folder: save_safetensors(folder / "model.safetensors"),
    "sharded": save_sharded,
    "bin": lambda folder: save_archive(folder / "pytorch_model.bin"),
    "deepspeed": lambda folder: save_safetensors(folder / "model.safetensors"),
}
