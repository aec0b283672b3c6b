"""The YAML templates that trainkit ships, and which of them starts a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainkit.errors import TrainkitError

if TYPE_CHECKING:
    from trainkit.plan.families import Family

# Methods that train a few added weights start from lora.yaml, those that train the model's own from full.yaml.
FILE_OF_METHOD = {"lora": "lora.yaml", "oft": "lora.yaml", "full": "full.yaml", "freeze": "full.yaml"}


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


def find_template(folder: Path, family: Family | None, finetuning_type: str) -> Path:
    """Return the template for a family and a method; models without files of their own start from Qwen's."""
    return folder / (family.folder if family else "qwen") / FILE_OF_METHOD.get(finetuning_type, "lora.yaml")
