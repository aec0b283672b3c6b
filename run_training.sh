#!/usr/bin/env bash
# From finetune.jsonl and ./model to a trained reward model:
#
#   ./run_training.sh --demo                               the whole way on a sample, with a tiny model
#   ./run_training.sh -d reward_model_full -e 5 --export   convert, validate, train, export
#   ./run_training.sh --validate-only | --no-convert | --install-deps | --help
#
# It makes the environment and hands every word on to `trainkit pipeline`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here"
. requirements/environment.sh
[ "${1:-}" != --install-deps ] || rm -f .venv/train.stamp
make_environment train
[ "${1:-}" != --install-deps ] || { echo "everything is installed in .venv"; exit 0; }
exec .venv/bin/trainkit pipeline "$@"
