"""What a trainer's log says about its failure: a title, the last meaningful lines, the next step."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES = 256 * 1024
MOST_LINES = 8

INSTALL_HINT = "install the set of versions that work together: ./run_training.sh --install-deps"
MEMORY_HINT = (
    "halve per_device_train_batch_size and double gradient_accumulation_steps; then reduce cutoff_len, "
    "or use a DeepSpeed ZeRO config"
)
HOST_MEMORY_HINT = (
    "reduce preprocessing_num_workers, dataloader_num_workers and the batch size, or use a machine with more memory"
)
OUT_OF_MEMORY = "the GPU is out of memory"
NAN_TITLE = "the loss is no number any more"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a run failed: `Diagnosis("no valid samples", ("RuntimeError: Cannot find valid samples, ...",), "...")`."""

    title: str
    lines: tuple[str, ...]
    hint: str = ""


# (title, pattern, hint), the most specific first; {name} in a hint is the pattern's group of that name
RULES: tuple[tuple[str, str, str], ...] = (
    (
        "PyTorch, torchvision and torchaudio do not fit together",
        r"operator torchvision::nms does not exist|TorchAudio were compiled with different CUDA|"
        r"(?:libtorchaudio|torchaudio/|torchvision/_C)\S*: undefined symbol|Could not load this library: \S*torchaudio",
        INSTALL_HINT,
    ),
    (
        "no valid samples in the data set",
        r"Cannot find valid samples",
        "run `trainkit validate`: every row was skipped, because of its roles, its columns or cutoff_len",
    ),
    (
        "the data set {name} is not registered",
        r"Undefined dataset (?P<name>\S+) in",
        "run `trainkit convert`, or look for its name in dataset_info.json",
    ),
    (
        "the data file {name} is missing",
        r"ValueError: File (?P<name>.+) not found",
        "run `trainkit convert`, or correct file_name in dataset_info.json",
    ),
    (
        "LLaMA-Factory does not know these keys: {name}",
        r"not used by the HfArgumentParser: \[(?P<name>[^\]]*)\]",
        "run `trainkit validate` to see the nearest right names",
    ),
    (
        "LLaMA-Factory has no template {name}",
        r"Template (?P<name>\S+) does not exist",
        "run `trainkit validate` to see the templates that fit the model",
    ),
    (
        "a column of the data changes its type",
        r"Couldn't cast array of type|DatasetGenerationCastError",
        "a column holds nulls in the first rows and text later; convert the data again with `trainkit convert`",
    ),
    (
        "not enough shared memory for the data loader",
        r"insufficient shared memory|Unexpected bus error encountered in worker",
        "set dataloader_num_workers to 0, or give the container more shared memory (--shm-size)",
    ),
    (
        OUT_OF_MEMORY,
        r"OutOfMemoryError|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|HIP out of memory",
        MEMORY_HINT,
    ),
    (
        "this machine is out of memory",
        r"Cannot allocate memory|can't allocate memory|(?m:^MemoryError)|std::bad_alloc|exitcode\s*: -9|"
        r"killed by signal: Killed",
        HOST_MEMORY_HINT,
    ),
    (
        "the disk is full",
        r"No space left on device|\[Errno 28\]|Disk quota exceeded|os error 28",
        "free some space, or point output_dir to another disk; --resume auto goes on from the last complete checkpoint",
    ),
    (
        "the experiment tracker stopped the run",
        r"swanlab\S*(?:AuthenticationError|ApiError)|AuthenticationError: .*[Ss]wan[Ll]ab|"
        r"Failed to initialize SwanLab|wandb\.(?:sdk\.\S+|errors\S*)\.\w*Error",
        "log in again, or train with --monitor none",
    ),
    (
        "an adapter or checkpoint of another model",
        r"size mismatch for|Error\(s\) in loading state_dict",
        "check that model_name_or_path is the base of adapter_name_or_path and that lora_rank is the same",
    ),
    (
        "a weights file is damaged",
        r"SafetensorError|MetadataIncompleteBuffer|InvalidHeaderDeserialization|PytorchStreamReader failed",
        "the file was not copied or downloaded to its end: fetch it again, or resume from an older checkpoint",
    ),
    (
        "PyTorch refuses to unpickle a file",
        r"Weights only load failed|UnpicklingError",
        "the file is damaged or was written by another version; use safetensors weights, or an older checkpoint",
    ),
    (
        "the model or its tokenizer was not found",
        r"is not a local folder and is not a valid model identifier|Can't load tokenizer|Repo id must|"
        r"does not appear to have a file named|Error no file named|couldn't connect to 'https://huggingface|"
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|(?:Gated|RepositoryNotFound)\w*Error|Incorrect path_or_model_id",
        "model_name_or_path must be a folder that holds config.json, the weights and the tokenizer themselves",
    ),
    (
        "the package {name} is missing",
        r"No module named '?(?P<name>[\w.-]+)|PackageNotFoundError: (?:No package metadata was found for )?"
        r"(?:The ')?(?P<metadata>[\w.-]+)|please run `?pip install (?P<pip>[^`\s]+)",
        "pip install {name}",
    ),
    (
        "the GPUs lost each other",
        r"Watchdog caught collective operation timeout|DistBackendError|NCCL error|ProcessGroupNCCL.*[Tt]imeout|"
        r"ncclInternalError|ncclSystemError",
        "another rank's error may stand earlier in the log; otherwise raise ddp_timeout, or try NCCL_P2P_DISABLE=1",
    ),
    (
        "the port of the distributed start is in use",
        r"Address already in use|EADDRINUSE|errno: 98",
        "another training runs on this machine; set MASTER_PORT to a free port",
    ),
    (
        "the GPU or its driver cannot be used",
        r"CUDA driver version is insufficient|NVIDIA driver on your system is too old|no kernel image is available|"
        r"CUDA error|CUDA initialization|Found no NVIDIA driver|setup doesn't support bf16|No CUDA GPUs are available",
        "see `nvidia-smi`; the driver must be new enough for this PyTorch, and bf16 needs an Ampere GPU or newer",
    ),
    (
        NAN_TITLE,
        r"\b(?:grad_norm|loss)'?\"?: '?nan|loss is (?:nan|inf)|(?:nan|inf) or (?:nan|inf)|FloatingPointError|"
        r"Current loss scale already at minimum",
        "lower learning_rate, set max_grad_norm, and use bf16 instead of fp16",
    ),
    (
        "permission denied",
        r"PermissionError|Permission denied|Read-only file system",
        "check who owns output_dir, the model and the cache folders",
    ),
)

BY_EXIT_CODE = {
    130: ("stopped by Ctrl-C", "--resume auto goes on from the last complete checkpoint"),
    134: ("the trainer aborted", "a library failed below Python; see the log"),
    137: (
        "the trainer was killed, most likely because this machine is out of memory",
        HOST_MEMORY_HINT,
    ),
    139: ("the trainer crashed (segmentation fault)", INSTALL_HINT),
    143: ("stopped by SIGTERM", "--resume auto goes on from the last complete checkpoint"),
}

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
_RANK = re.compile(r"^\[rank\d+\]:\s?")
_PROGRESS = re.compile(r"^.*?(?:\d+%\s*\||\d+\s*(?:it|examples?|B|MB) \[).*?(?:\[[^\]]*\]|$)")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Timeout|NotFound)\b(?::|$)")
# what torchrun and the launcher say about a worker's failure, instead of the failure
_WRAPPER = re.compile(r"ChildFailedError|CalledProcessError|SystemExit|^KeyboardInterrupt|SignalException")
_NOISE = re.compile(r"^[-=*\s|^~]*$|^\s*File \"|^Traceback|^E\d{4} |^W\d{4} |^\s*<NO_OTHER_FAILURES>")


def load_tail(path: Path, limit: int = TAIL_BYTES) -> str:
    """Return the last `limit` bytes of a log as text; empty when there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - limit))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def diagnose(log_tail: str, exit_code: int) -> Diagnosis:
    """Return what went wrong in a run that ended with `exit_code`, judged by the end of its log."""
    lines = _clean(log_tail)
    failures = _failures(lines)
    shown = failures[-1] if failures else [line for line in lines if not _NOISE.search(line)][-MOST_LINES:]
    # warnings speak of missing packages and drivers too, so other lines count only where there is no exception
    text = "\n".join(line for failure in failures for line in failure) or "\n".join(lines[-60:])
    killed = exit_code == 128 + signal.SIGKILL and not failures
    for title, pattern, hint in RULES if exit_code not in STOPPED and not killed else ():
        if match := re.search(pattern, text):
            name = next((group for group in match.groups() if group), "")
            shown = _failure_of(failures, pattern) or shown
            return Diagnosis(title.format(name=name), tuple(shown), hint.format(name=name))
    title, hint = BY_EXIT_CODE.get(exit_code, (f"the trainer ended with exit code {exit_code}", "see the log"))
    return Diagnosis(title, tuple(shown), hint)


def find_silent_failure(log_tail: str) -> Diagnosis | None:
    """Return what is wrong with a run whose exit code is 0: LLaMA-Factory trains on to the end with a loss of NaN."""
    metrics = [line for line in _clean(log_tail) if re.match(r"^\{'(?:loss|grad_norm)'", line)]
    title, pattern, hint = next(rule for rule in RULES if rule[0] == NAN_TITLE)
    broken = metrics and re.search(pattern, metrics[-1])
    return Diagnosis(title, (metrics[-1],), hint) if broken else None


def _clean(text: str) -> list[str]:
    """Split into lines as a terminal would show them: no colours, no rank prefixes, no progress bars."""
    plain = _ANSI.sub("", text)
    # a carriage return starts a line anew: only what was written last stands there
    shown = (line.rstrip().rsplit("\r", 1)[-1] for line in plain.split("\n"))
    lines = (_RANK.sub("", _PROGRESS.sub("", line)).rstrip() for line in shown)
    return [line for line in lines if line]


def _failures(lines: list[str]) -> list[list[str]]:
    """Return each exception with the lines that continue its message; torchrun's wrappers only when alone."""
    found = [_with_continuation(lines, number) for number, line in enumerate(lines) if _EXCEPTION.search(line)]
    own = [failure for failure in found if not _WRAPPER.search(failure[0])]
    return own or found


def _with_continuation(lines: list[str], start: int) -> list[str]:
    end = start + 1
    while end < len(lines) and end - start < MOST_LINES and re.match(r"^\s+(?!File \")\S", lines[end]):
        end += 1
    return lines[start:end]


def _failure_of(failures: list[list[str]], pattern: str) -> list[str]:
    """Return the last failure that the pattern is about: another rank's may stand behind it."""
    return next((failure for failure in reversed(failures) if re.search(pattern, "\n".join(failure))), [])
