#!/usr/bin/env bash
# ./run.sh [flags of main.py]      set up, build the config's dataset where it is an embedded one, train
#                                  and evaluate (STRM unless --config says otherwise)
# ./run.sh test [pytest args]      set up, check lint and format (ruff) and types (mypy), run the tests
#          test --quick            the fast ones, about 3 minutes, for people at work
#          test --oldest           the quick ones with the lowest versions that setup.cfg allows,
#          test --newest           or with the newest that there are, in an environment of their own
# ./run.sh lock                    write lock.txt and lock-oldest.txt anew from setup.cfg (docs/how_it_works.md)
#
# PYTHON=python3.13 ./run.sh ...   with this Python; otherwise python3, or the newest there is where that is too old
# VENV=folder ./run.sh ...         with the environment in this folder, otherwise .venv/
# What is installed is what lock.txt says. An environment that another Python, lock, setup.cfg or place of the
# checkout has made is made again; otherwise a second call installs nothing.
set -euo pipefail
cd "$(dirname "$0")"
fail() { echo "error: $*" >&2; exit 1; }

case "$(uname -s)" in MINGW* | MSYS* | CYGWIN*)
  fail "fsar_jax does not run on Windows itself: install WSL (wsl --install) and call run.sh there" ;;
esac

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: there is no such program"
    "$PYTHON" --version >/dev/null 2>&1 || fail "PYTHON=$PYTHON does not run ($("$PYTHON" --version 2>&1 | head -n 1)): give the path of a Python"
    is_new_enough "$PYTHON" || fail "fsar_jax needs Python 3.11 or newer, PYTHON=$PYTHON is $("$PYTHON" --version 2>&1)"
    echo "$PYTHON"; return
  fi
  for python in python3 python3.14 python3.13 python3.12 python3.11; do
    if is_new_enough "$python"; then echo "$python"; return; fi
  done
  fail "fsar_jax needs Python 3.11 or newer, and there is none on the PATH: set PYTHON=..."
}

# setup FOLDER EXTRA LOCK: the environment in FOLDER, with the extra test or '' and the versions of LOCK or ''.
setup() {
  local venv=$1 extra=$2 lock=$3 python made done
  python=$(find_python)
  made=$("$python" -c '
import hashlib, pathlib, sys
print(sys.version, sys.base_prefix, pathlib.Path.cwd(), sep="\n")
for name in sys.argv[1:]:
    print(name, hashlib.sha256(pathlib.Path(name).read_bytes()).hexdigest())' setup.cfg ${lock:+"$lock"})
  done=$venv/installed-${extra:-run}
  if [ -e "$venv" ] && ! { [ -e "$venv/made-by-run.sh" ] || [ -e "$venv/installed-run" ] || [ -e "$venv/installed-test" ]; }; then
    fail "$venv/ was not made by run.sh: move it away, or set VENV=another-folder"
  fi
  if [ ! -e "$venv" ] || [ "$made" != "$(cat "$venv/made-by-run.sh" 2>/dev/null)" ]; then
    mkdir -p "$venv" && : >"$venv/made-by-run.sh"          # it is ours from here on, finished or not
    find "$venv/" -mindepth 1 -maxdepth 1 ! -name made-by-run.sh -exec rm -rf {} +
    "$python" -m venv "$venv" || fail "$("$python" --version) cannot make an environment (on Debian and Ubuntu: apt install python3-venv)"
    echo "$made" >"$venv/made-by-run.sh"
  fi
  if [ -e "$done" ] && [ -n "$lock" ]; then return; fi
  echo "installing fsar_jax into $venv/ ($("$venv/bin/python" --version)) ..."
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${lock:+--constraint "$lock"} \
    $([ -n "$lock" ] || echo --upgrade --upgrade-strategy=eager) --editable ".${extra:+[$extra]}" ||
    fail "what fsar_jax needs could not be installed, see above; the same command tries again"
  touch "$done"
}

run_tests() {
  local venv=${VENV:-.venv} lock=lock.txt quick=
  while [ $# -gt 0 ]; do
    case $1 in
      --quick) quick=yes ;;
      --oldest) quick=yes venv=${VENV:-.venv-oldest} lock=lock-oldest.txt ;;
      --newest) quick=yes venv=${VENV:-.venv-newest} lock= ;;
      *) break ;;
    esac
    shift
  done
  setup "$venv" test "$lock"
  "$venv/bin/python" -m ruff check --quiet . && "$venv/bin/python" -m ruff format --check --quiet . ||
    fail "the code does not pass ruff: $venv/bin/ruff check --fix . && $venv/bin/ruff format ."
  if [ -z "$quick" ]; then "$venv/bin/python" -m mypy || fail "the types do not fit, see above"; fi
  # Two workers for two cores; each test file stays in one worker, so that what it compiles is reused.
  exec "$venv/bin/python" -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile ${quick:+-m "not slow"} "$@"
}

write_locks() {
  local folder name resolution
  folder=$(mktemp -d)
  trap "rm -rf '$folder'" EXIT
  "$(find_python)" -m venv "$folder" && "$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv
  for name in lock lock-oldest; do
    resolution=highest; [ $name = lock ] || resolution=lowest-direct
    { echo "# Versions for Python 3.11 and newer, written by ./run.sh lock. $([ $name = lock ] && echo What run.sh installs. ||
        echo The lowest that setup.cfg allows, for ./run.sh test --oldest.)"
      "$folder/bin/uv" pip compile --quiet --universal --python-version=3.11 --resolution=$resolution --extra=test \
        --no-annotate --no-header setup.cfg; } >"$folder/$name.txt"
    cp "$folder/$name.txt" $name.txt
  done
}

case ${1:-} in
  test) shift; run_tests "$@" ;;
  lock) write_locks; exit ;;
esac

venv=${VENV:-.venv}
setup "$venv" '' lock.txt
case " $* " in *" --config="*|*" --config "*) ;; *) set -- --config=configs/strm.py "$@" ;; esac
# The dataset and its folder as main.py would read them, where it is an embedded one that is not built yet.
# main.py is also the one to say what is wrong with the arguments.
{ read -r dataset && read -r dir; } < <("$venv/bin/python" -c '
import pathlib, sys
from fsar_jax.train import parse
given = parse(sys.argv)
data = given.config.data
folder = pathlib.Path(data.dir).expanduser() / data.dataset
if not given.help and data.dataset.startswith("synthetic_actions/") and not list(folder.glob("[0-9]*/dataset_info.json")):
    print(data.dataset, data.dir, sep="\n")' "$@" 2>/dev/null) || dataset=
if [ -n "$dataset" ]; then "$venv/bin/python" -m fsar_jax.build --dataset="$dataset" --dir="$dir"; fi
exec "$venv/bin/python" main.py "$@"
