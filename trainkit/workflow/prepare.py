"""What every verb after `convert` needs first: the machine, the trainer's arguments, the configuration, its faults."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit import environment
from trainkit.dataset.check import check_datasets
from trainkit.dataset.registry import find_eval_name
from trainkit.dataset.thoughts import has_thoughts
from trainkit.datatypes import Problem, gravest_first
from trainkit.errors import ConfigError, InputError, ProblemsFound, TrainkitError
from trainkit.plan.arguments import load_arguments
from trainkit.plan.check import check_config
from trainkit.plan.config import build_config, parse_override
from trainkit.plan.hardware import find_hardware
from trainkit.plan.paths import MODEL_KEYS, local_path
from trainkit.plan.secret import is_secret
from trainkit.plan.templates import templates_folder
from trainkit.plan.thinking import THINKING_TEMPLATES
from trainkit.plan.yamlfile import load_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from trainkit.datatypes import Hardware, TrainConfig
    from trainkit.plan.arguments import TrainerSchema

DEFAULT_CONFIG = Path("training_config.yaml")
# What a trainer leaves in its output folder; a folder with none of these is not ours to move.
TRAINER_FILES = (
    "trainkit_run.json",
    "trainer_log.jsonl",
    "trainer_state.json",
    "all_results.json",
    "adapter_config.json",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user said about a training.

    Attributes:
        config_file: the user's YAML; None means training_config.yaml when it is there.
        options: trainer's key -> (flag, value), from options such as --epochs; a value of None was not given.
        overrides: `key=value` words.
        base: the folder that relative paths start from.
        force_template: train although the template does not fit the model.
        needs_file: the user's YAML must be there, if only as training_config.yaml.
        name: the last part of the run folder's name; empty for the data set that the command line names.
        complete: the user's YAML is the whole configuration; no template lies under it.
        environment: variables for the training that win over those of this process; never shown, as a key may be one.
    """

    config_file: Path | None = None
    options: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    base: Path = field(default_factory=Path.cwd)
    force_template: bool = False
    needs_file: bool = True
    name: str = ""
    complete: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def environ(self) -> dict[str, str]:
        """Return the whole environment of the training."""
        return environment.snapshot() | dict(self.environment)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration with all that was found out about it.

    `problems` holds errors first, then warnings and notes; `environ` is the environment that the training starts from.
    """

    config: TrainConfig
    schema: TrainerSchema
    hardware: Hardware
    problems: tuple[Problem, ...]
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that keep the training from starting."""
        return tuple(problem for problem in self.problems if problem.level == "error")

    @property
    def node_rank(self) -> int:
        """This node's place among those that train together; 0 writes what there is once for all of them."""
        word = self.environ.get("NODE_RANK", "")
        return int(word) if word.isdecimal() else 0

    @property
    def dataset_dir(self) -> Path:
        """The folder of dataset_info.json."""
        return Path(str(self.config.values.get("dataset_dir", "data")))

    @property
    def public_values(self) -> dict[str, Any]:
        """The configuration without the secrets in it, as a report may show it."""
        return {key: value for key, value in self.config.values.items() if not is_secret(key)}

    @property
    def datasets(self) -> list[str]:
        """The names of the training data sets."""
        return names_of(self.config.values.get("dataset"))


def prepare(settings: Settings, hardware: Hardware | None = None) -> Prepared:
    """Build the configuration and find every problem in it; nothing is written but the cache of trainer arguments.

    Args:
        settings: what the user said.
        hardware: the machine that the training is meant for; None is this one.

    Raises:
        ConfigError: the user's file is missing or cannot be read.
        EnvironmentProblem: LLaMA-Factory is not installed.
    """
    env = settings.environ()
    schema = load_arguments(trainer_python(), cache_folder(), env)
    hardware = hardware or find_hardware(env)
    config = build(settings, schema, hardware)
    problems = check_config(config, schema, hardware, force_template=settings.force_template)
    problems += [*check_output(config, settings.base), *check_data(config)]
    return Prepared(config, schema, hardware, tuple(gravest_first([*problems, *config.notes])), env)


def require_sound(prepared: Prepared) -> None:
    """Raise what `prepare` found when it keeps the training from starting.

    Raises:
        ProblemsFound: at least one error.
    """
    if errors := prepared.errors:
        count = "1 problem" if len(errors) == 1 else f"{len(errors)} problems"
        raise ProblemsFound(f"{count} found; nothing was started", prepared.problems)


def build(settings: Settings, schema: TrainerSchema, hardware: Hardware) -> TrainConfig:
    """Build the configuration; a split data set is evaluated on its eval side unless the user says otherwise."""
    user_file = find_config(settings)
    templates = templates_folder()

    def built(options: Mapping[str, tuple[str, Any]], thoughts: bool | None = None) -> TrainConfig:
        return build_config(
            user_file,
            options,
            settings.overrides,
            schema=schema,
            hardware=hardware,
            templates=templates,
            base=settings.base,
            complete=settings.complete,
            has_thoughts=thoughts,
        )

    config = built(settings.options)
    thoughts = find_thoughts(config)
    eval_names = find_eval_sets(config)
    if thoughts is None and not eval_names:
        return config
    split = {"eval_dataset": (f"the eval split of {config.values['dataset']}", ",".join(eval_names))}
    return built({**settings.options, **(split if eval_names else {})}, thoughts)


def find_thoughts(config: TrainConfig) -> bool | None:
    """Return whether the training data hold think blocks, where that decides the template; None where it does not."""
    if config.values.get("template") not in THINKING_TEMPLATES:
        return None
    return has_thoughts(Path(str(config.values.get("dataset_dir", "data"))), names_of(config.values.get("dataset")))


def find_config(settings: Settings) -> Path | None:
    """Return the user's YAML; None when there is none and none is needed.

    Raises:
        ConfigError: the named file, or training_config.yaml when none is named, is not there.
    """
    path = settings.base / (settings.config_file or DEFAULT_CONFIG)
    if path.exists():
        return path
    if settings.config_file is None and not settings.needs_file:
        return None
    raise ConfigError(
        f"{settings.config_file or DEFAULT_CONFIG}: no such file", "trainkit init writes one to start from"
    )


def find_eval_sets(config: TrainConfig) -> list[str]:
    """Return the eval entries of the training data, empty when the user has said how to evaluate."""
    values = config.values
    # YAML reads a bare `no` as false
    if values.get("eval_dataset") or values.get("val_size") or asked_for_no_evaluation(config):
        return []
    dataset_dir = Path(str(values.get("dataset_dir", "data")))
    try:
        found = [find_eval_name(dataset_dir, name) for name in names_of(values.get("dataset"))]
    except InputError:
        return []  # check_data reports what is wrong there
    return [name for name in found if name]


def asked_for_no_evaluation(config: TrainConfig) -> bool:
    return config.values.get("eval_strategy") in (False, "no") and not any(
        note.where.endswith(" eval_strategy") for note in config.notes
    )


def check_data(config: TrainConfig) -> list[Problem]:
    """Return the problems of the data sets that the configuration names."""
    values = config.values
    dataset_dir = Path(str(values.get("dataset_dir", "data")))
    if str(values.get("dataset_dir")).startswith(("ONLINE", "REMOTE:")):
        return []
    names = names_of(values.get("dataset"))
    if not names:
        hint = "-d NAME, or dataset: NAME in the configuration"
        # nothing at all in that place is a matter of check_config
        return [Problem("dataset", "no data set is named", hint)] if values.get("dataset") else []
    problems = check_datasets(dataset_dir, names, "dataset")
    if eval_names := names_of(values.get("eval_dataset")):
        problems += check_datasets(dataset_dir, eval_names, "eval_dataset")
    return problems


def check_output(config: TrainConfig, base: Path) -> list[Problem]:
    """Return what speaks against the output folder: a new training moves aside all that is in it."""
    folder = Path(str(config.values.get("output_dir") or ""))
    if not folder.is_absolute() or not folder.is_dir() or not any(folder.iterdir()):
        return []
    where = f"{config.origin['output_dir']} output_dir"
    hint = "choose an empty or new folder"
    if used := read_from(config, folder):
        return [Problem(where, f"{folder}: is or holds what this training reads ({', '.join(used)})", hint)]
    ours = any((folder / name).exists() for name in TRAINER_FILES) or any(folder.glob("checkpoint-*"))
    if not ours or folder in (base, *base.parents):
        return [Problem(where, f"{folder}: is not empty and holds no training", hint)]
    return []


def read_from(config: TrainConfig, folder: Path) -> list[str]:
    """Return the keys that name something in a folder for the trainer to read."""
    named = {key: str(config.values.get(key) or "").split(",") for key in (*MODEL_KEYS, "dataset_dir")}
    return [key for key, paths in named.items() if any(Path(path).is_relative_to(folder) for path in paths)]


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn what the disk refuses into words.

    Raises:
        TrainkitError: something in or below `place` cannot be written.
    """
    try:
        yield
    except BrokenPipeError:  # of our own output, not of a file
        raise
    except OSError as error:
        hint = "is there space on the disk, and may you write there?"
        raise TrainkitError(f"{error.filename or place}: {error.strerror or error}", hint) from error


def names_of(value: Any) -> list[str]:
    """Return the names in a comma-separated value or list."""
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [str(word).strip() for word in words if str(word).strip()]


def trainer_python() -> Path:
    """Return the Python of the trainer's environment, which is trainkit's own."""
    return Path(sys.executable)


def cache_folder() -> Path:
    """Return the folder for what can be asked anew: $XDG_CACHE_HOME/trainkit or ~/.cache/trainkit."""
    root = environment.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "trainkit"


def output_dir_of(settings: Settings) -> Path:
    """Return the output folder that the configuration names."""
    return local_path(str(configured(settings, "output_dir", "saves/reward_model_training")), settings.base)


def dataset_dir_of(settings: Settings) -> Path:
    """Return the folder of dataset_info.json that the configuration names."""
    return local_path(str(configured(settings, "dataset_dir", "data")), settings.base)


def configured(settings: Settings, key: str, default: str) -> Any:
    """Return the value of one key as the command line and the user's file say it, without asking the trainer."""
    for word in reversed(settings.overrides):
        name, value = parse_override(word)
        if name == key:
            return value or default
    file = find_config(settings)
    return (load_yaml(file).values.get(key) if file else None) or default
