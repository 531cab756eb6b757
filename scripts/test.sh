#!/usr/bin/env bash
# Set up, check format, lint and types, and run every test. Arguments go to pytest: scripts/test.sh -m "not slow"
#   STACK=current bash scripts/test.sh     the tests on the other stack (scripts/setup.sh)
case "$*" in -h | --help) sed -n '2,/^[^#]/s/^# //p' "$0"; exit 0 ;; esac
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
if [ "$STACK" = declared ]; then # the same text; types are those of this stack's packages
  ruff format --check .
  ruff check .
  pyright
fi
python -m pytest -n "${TEST_PROCESSES:-3}" --dist loadfile "$@"
