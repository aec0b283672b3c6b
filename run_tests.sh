#!/usr/bin/env bash
# The whole test suite, as CI runs it: lint, types, tests with coverage. Words are passed on to pytest:
#
#   ./run_tests.sh                    everything
#   ./run_tests.sh -m 'not slow'      without the runs of real trainers
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. requirements/environment.sh
make_environment dev
.venv/bin/ruff check
.venv/bin/ruff format --check -q
.venv/bin/mypy
.venv/bin/coverage erase
.venv/bin/coverage run -m pytest "$@"
.venv/bin/coverage combine -q
[ $# -gt 0 ] || .venv/bin/coverage report
