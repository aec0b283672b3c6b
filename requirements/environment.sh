# Makes .venv from a committed lock file: `make_environment train` or `make_environment dev`, from the project's root.
# Sourced by run_training.sh and run_tests.sh. Quick when the lock has not changed since the last time.

export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"  # the certificates of this machine, its company's among them

fail() { printf 'error: %s\n    %s\n' "$1" "$2" >&2; exit 1; }

find_python() {
  local name
  for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  fail "Python 3.11 to 3.14 is needed, and $(python3 --version 2>/dev/null || echo 'no Python') was found" \
       "install it, or name one: PYTHON=/path/to/python3.11 $0"
}

find_uv() {  # the one on PATH, else a copy of our own
  if command -v uv >/dev/null 2>&1; then command -v uv; return; fi
  if [ ! -x .venv-uv/bin/uv ]; then
    echo "installing uv" >&2
    "$1" -m venv .venv-uv >&2 || fail "the module venv does not work" "on Debian: apt-get install python3-venv"
    .venv-uv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.lock >&2 ||
      fail "uv could not be installed" "is the network away? behind a mirror, set PIP_INDEX_URL and UV_INDEX_URL"
  fi
  echo .venv-uv/bin/uv
}

make_environment() {
  local lock="requirements/$1.lock" stamp=".venv/$1.stamp" python uv
  if [ -x .venv/bin/trainkit ] && cmp -s "$lock" "$stamp"; then return; fi
  python=$(find_python)
  uv=$(find_uv "$python")
  [ -x .venv/bin/python ] || "$uv" venv -q --python "$python" .venv || fail ".venv could not be made" "see above"
  echo "installing $lock into .venv (several GB the first time)" >&2
  "$uv" pip install -q --python .venv --require-hashes -r "$lock" ||
    fail "the packages could not be installed" "is the network away, or the disk full? run it again to go on"
  "$uv" pip install -q --python .venv --no-deps --no-build-isolation -e . ||
    fail "trainkit itself could not be installed" "see above"
  cp "$lock" "$stamp"
}
