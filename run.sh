#!/usr/bin/env bash
# ./run.sh [flags of main.py]   set up, build the config's dataset where it is an embedded one, train and evaluate
#                               (STRM unless --config says otherwise)
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
case " $* " in *" --config="*|*" --config "*) ;; *) set -- --config=configs/strm.py "$@" ;; esac
# What main.py would read; it is also the one to say what is wrong with the arguments.
read -r dataset dir < <(.venv/bin/python -c '
import sys
from absl import flags
from ml_collections import config_flags
config = config_flags.DEFINE_config_file("config")
flags.FLAGS(sys.argv, known_only=True)
print(config.value.data.dataset, config.value.data.dir)' "$@" 2>/dev/null) || dataset=
if [[ $dataset == synthetic_actions/* ]] && ! compgen -G "$dir/$dataset/[0-9]*/dataset_info.json" >/dev/null; then
  .venv/bin/python -m fsar_jax.data.build --dataset="$dataset" --dir="$dir"
fi
exec .venv/bin/python main.py "$@"
