#!/usr/bin/env bash
# Fine-tune a model on 10,000 conversations of ShareGPT, the first round of each, as Sheared-LLaMA does (arXiv
# 2310.06694, section 3.1). The loss is that of the assistant's turns alone.
# Paths begin at the repository, wherever you stand:
#   MODEL=models/sheared-1.3b DATA=sharegpt.json OUT=models/sheared-1.3b-chat bash scripts/instruction_tuning.sh [key=value ...]
# Keys and defaults: docs/evaluation.md.
set -euo pipefail
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^[^#]/s/^# //p' "$0"; exit 0 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -z "${VIRTUAL_ENV:-}" ] && [ -d .venv ] && source .venv/bin/activate

MODEL=${MODEL:?an HF folder, a checkpoint or the folder of a run}
DATA=${DATA:?files of conversations, separated by commas}
OUT=${OUT:?the folder to write}
GPUS=${GPUS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')} # of this machine

command=(tune "$MODEL" "$OUT" --data "$DATA" "$@")
if [ "$GPUS" -gt 1 ]; then
  accelerate launch --num_processes "$GPUS" --num_machines 1 --mixed_precision no --dynamo_backend no \
    -m llmshearing "${command[@]}"
else
  python -m llmshearing "${command[@]}"
fi
