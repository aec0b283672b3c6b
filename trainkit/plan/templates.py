"""The YAML templates that trainkit ships, and which of them starts a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.errors import TrainkitError
from trainkit.plan.yamlfile import load_yaml

if TYPE_CHECKING:
    from trainkit.plan.families import Family

# Methods that train a few added weights start from lora.yaml, those that train the model's own from full.yaml.
FILE_OF_METHOD = {"lora": "lora", "oft": "lora", "full": "full", "freeze": "full"}
# These stages start from a file of their own. It is for LoRA; these are the rates for training the model's own weights.
FULL_RATE_OF_STAGE = {"rm": 1.0e-5, "dpo": 5.0e-7, "kto": 5.0e-7}


def templates_folder() -> Path:
    """Return the folder of the templates: templates/ of a checkout, trainkit/templates of an installed wheel.

    Raises:
        TrainkitError: neither is there.
    """
    package = Path(__file__).parent.parent
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / "training_config.yaml").is_file():
            return folder
    raise TrainkitError("trainkit's templates are missing", "install trainkit again")


def find_template(folder: Path, family: Family | None, method: str, stage: str = "sft", bits: Any = None) -> Path:
    """Return the template for a family, a finetuning_type, a stage and a quantization_bit (None is 16 bits).

    The stages rm, dpo and kto have one each; for the others the method decides, and bits turn lora into qlora. Models
    without files of their own start from Qwen's.
    """
    name = stage if stage in FULL_RATE_OF_STAGE else FILE_OF_METHOD.get(method, "lora")
    if name == "lora" and bits is not None:
        name = "qlora"
    return folder / (family.folder if family else "qwen") / f"{name}.yaml"


def load_template(file: Path, method: str) -> dict[str, Any]:
    """Return the keys of a template for a finetuning_type; without a chat template it has that of Qwen 2."""
    values = {"template": "qwen"} | load_yaml(file).values | {"finetuning_type": method}
    if file.stem in FULL_RATE_OF_STAGE and FILE_OF_METHOD.get(method) == "full":
        values = {key: value for key, value in values.items() if not key.startswith("lora_")}
        values["learning_rate"] = FULL_RATE_OF_STAGE[file.stem]
    return values
