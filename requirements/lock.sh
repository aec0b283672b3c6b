#!/usr/bin/env bash
# Writes the lock files anew from pyproject.toml; run it after a change of the dependencies, with uv on the PATH.
# A package keeps its version unless you name it: requirements/lock.sh -P transformers
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
how=(--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header -q)
uv pip compile "${how[@]}" "$@" requirements/uv.in -o requirements/uv.lock
uv pip compile "${how[@]}" "$@" --extra train pyproject.toml requirements/build.in -o requirements/train.lock
uv pip compile "${how[@]}" "$@" --extra train --extra dev pyproject.toml requirements/build.in \
  -c requirements/train.lock -o requirements/dev.lock
uv pip compile "${how[@]}" "$@" --extra train --extra ray pyproject.toml requirements/build.in \
  -c requirements/train.lock -o requirements/ray.lock
