"""The configuration as the trainer reads it: one YAML file, without secrets."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import yaml

from trainkit.datatypes import Problem, TrainConfig
from trainkit.plan.secret import VARIABLE_OF_SECRET, is_secret
from trainkit.plan.yamlfile import Loader

if TYPE_CHECKING:
    from typing import Any

HEADER = "# Written by trainkit: all that LLaMA-Factory reads for this run. Secrets are left out.\n"


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that quotes a text like "1e-4", which this room's loader would read as a number."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write a value out each time it occurs."""
        return True


Dumper.yaml_implicit_resolvers = Loader.yaml_implicit_resolvers | {
    first: [*Loader.yaml_implicit_resolvers.get(first, []), *resolvers]
    for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes these line breaks as they are, and a reader folds them into spaces; quoted, they are escaped.
    quoted = any(mark in text for mark in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


Dumper.add_representer(str, _represent_text)


def secret_environment(config: TrainConfig) -> tuple[TrainConfig, dict[str, str]]:
    """Return the configuration without secrets, and the environment variables that take their place."""
    secrets = {key: value for key, value in config.values.items() if is_secret(key)}
    additions = {VARIABLE_OF_SECRET[key]: str(value) for key, value in secrets.items() if key in VARIABLE_OF_SECRET}
    notes = tuple(
        Problem(
            f"{config.origin[key]} {key}",
            f"not written to the run's files: passed as {VARIABLE_OF_SECRET[key]}"
            if key in VARIABLE_OF_SECRET
            else "left out: a secret is not written to the run's files, and no variable takes its place",
            level="note" if key in VARIABLE_OF_SECRET else "warning",
        )
        for key in secrets
    )
    values = {key: value for key, value in config.values.items() if key not in secrets}
    return dataclasses.replace(config, values=values, notes=config.notes + notes), additions


def render_yaml(config: TrainConfig) -> str:
    """Return the YAML text for the trainer: keys sorted, secrets left out, the same text for the same values."""
    values = {key: value for key, value in config.values.items() if not is_secret(key)}
    text: str = yaml.dump(
        values, Dumper=Dumper, sort_keys=True, allow_unicode=True, default_flow_style=False, width=1000
    )
    return HEADER + text
