#!/usr/bin/env bash
# ./run.sh [flags of main.py]   set up, build the embedded dataset, train and evaluate (STRM unless --config says otherwise)
# ./run.sh test [pytest args]   set up and run the tests
# The environment lives in .venv/; a second call does not install again unless setup.cfg has changed.
set -euo pipefail
cd "$(dirname "$0")"

setup() {
  local purpose=$1 stamp=.venv/installed-$1 package=.
  [ "$purpose" = run ] || package=".[$purpose]"
  if [ -f "$stamp" ] && cmp -s setup.cfg "$stamp"; then return; fi
  local python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: fsar_jax needs Python 3.11 or newer, '$python' is $("$python" --version 2>&1): set PYTHON=..." >&2; exit 1; }
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  echo "installing fsar_jax into .venv/ ..."
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$package"
  cp setup.cfg "$stamp"
}

if [ "${1:-}" = test ]; then
  shift
  setup test
  # Two workers for two cores; each test file stays in one worker, so that what it compiles is reused.
  exec .venv/bin/python -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile "$@"
fi

setup run
defaults=() embedded=yes
case " $* " in *" --config="*|*" --config "*) ;; *) defaults=(--config=configs/strm.py) ;; esac
case " $* " in *"config.data.dataset"*|*"config.data.dir"*) embedded=no ;; esac
if [ $embedded = yes ]; then
  .venv/bin/python -m fsar_jax.data.build --dataset=synthetic_actions/misaligned --dir=data
fi
exec .venv/bin/python main.py ${defaults[@]+"${defaults[@]}"} "$@"
