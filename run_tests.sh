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
if [ $# -gt 0 ]; then
  .venv/bin/coverage run -m pytest "$@"
else
  # side by side: the slow ones wait for trainers most of the time
  words=$(mktemp)
  .venv/bin/coverage run -m pytest -m 'not slow' >"$words" 2>&1 &
  fast=$!
  trap 'kill "$fast" 2>/dev/null || true; rm -f "$words"' EXIT
  slow_code=0 fast_code=0
  .venv/bin/coverage run -m pytest -m slow || slow_code=$?
  wait "$fast" || fast_code=$?
  cat "$words"
  [ $((slow_code + fast_code)) -eq 0 ]
fi
.venv/bin/coverage combine -q
[ $# -gt 0 ] || .venv/bin/coverage report
