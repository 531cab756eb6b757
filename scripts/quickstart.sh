#!/usr/bin/env bash
# The whole method on a plain machine, in five minutes: train a small model on the text that every Python
# installation holds, prune it to less than half, continue its pre-training, and compare it with the same
# shape trained from scratch on as many tokens as these two took (the source's own tokens are not counted).
# Every command it runs is printed, and is the one you would run yourself (after `source .venv/bin/activate`).
# Starts over: what an earlier quickstart left in runs/quickstart is removed.
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^[^#]/s/^# //p' "$0"; exit 0 ;; esac
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore

out=runs/quickstart
rm -rf "$out"
mkdir -p "$out"
step() { printf '\n\033[1m== %s\033[0m\n' "$1"; }
run() { printf '$ %s\n' "$*"; "$@"; }

step "1/9  Text of four domains, and a tokenizer for it"
run python scripts/quickstart_corpus.py $out

step "2/9  Tokenize, split and pack it"
run llmshearing prepare --input $out/text --output $out/mds --tokenizer $out/tokenizer \
  --seq_length 256 --eval_tokens 8192 --prune_tokens 400000

step "3/9  A source model (yours would come from elsewhere)"
run python train.py configs/quickstart/source.yaml tokenizer_name=$out/tokenizer

step "4/9  The source as a Hugging Face model, and back to Composer's weights"
run llmshearing export $out/source/latest-rank0.pt $out/source-hf
run llmshearing convert $out/source-hf $out/source.pt

step "5/9  Prune: learn masks until the model has the target's shape"
run python train.py configs/quickstart/prune.yaml

step "6/9  Cut what the masks closed"
run llmshearing prune $out/prune/latest-rank0.pt

step "7/9  Continue pre-training the small model"
run python train.py configs/quickstart/target.yaml model.path=$out/prune/pruned-latest-rank0.pt \
  save_folder=$out/continue

step "8/9  The control: the same shape from scratch, on as many tokens as 5 and 7 took"
run python train.py configs/quickstart/target.yaml save_folder=$out/scratch max_duration=110ba save_interval=110ba eval_interval=55ba

step "9/9  Export to Hugging Face, report, reload, generate"
run llmshearing export $out/continue/latest-rank0.pt $out/hf
run llmshearing speed $out/source-hf $out/hf --context 128 --out $out/continue
run llmshearing report $out/prune $out/continue $out/scratch --out $out/report.html
run python scripts/quickstart_table.py $out
