#!/usr/bin/env bash
# Continue pre-training a pruned model with the settings of the paper (arXiv 2310.06694, section 3.1):
# 48,000 steps of 256 x 4,096 tokens (50 billion), new domain weights every 400 steps.
# Every setting can be given from the environment; paths begin at the repository, wherever you stand:
#   MODEL=runs/prune/pruned-latest-rank0.pt DATA=data/mds TARGET=1.3b bash scripts/continue_pretraining.sh [key=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/launch.sh

MODEL=${MODEL:?the pruned model, made by: llmshearing prune CHECKPOINT}
DATA=${DATA:?the folder made by: llmshearing prepare}
TARGET=${TARGET:-1.3b} # 2.7b | 1.3b | 370m
CONFIG=${CONFIG:-configs/llama2/$TARGET.yaml}
RUN_NAME=${RUN_NAME:-llama2_${TARGET}_continued}
SAVE_FOLDER=${SAVE_FOLDER:-runs/$RUN_NAME}
AUTORESUME=${AUTORESUME:-false}
TEACHER=${TEACHER:-} # a model to learn from beside the text, mostly the source of MODEL

case $TARGET in # its losses
  2.7b) losses=[1.8712,0.6883,2.0325,1.5353,1.6297,1.3560,2.0328] ;;
  1.3b) losses=[1.9643,0.7459,2.1393,1.6117,1.7590,1.4449,2.1251] ;;
  370m) losses=[2.1401,0.8694,2.3625,1.7791,2.0470,1.6637,2.3139] ;;
  *) echo "TARGET is $TARGET; expected 2.7b, 1.3b or 370m" >&2; exit 2 ;;
esac

# Domains, and the weights that pruning ended with.
SET_NAMES=${SET_NAMES:-[cc,github,book,stackexchange,wiki,arxiv,c4-rp]}
PROPORTION=${PROPORTION:-[0.2192,0.0002,0.0791,0.0064,0.0096,0.001,0.6845]}
TARGET_LOSS=${TARGET_LOSS:-$losses} # what the scaling law of the source's family predicts for TARGET
UPDATE_TYPE=${UPDATE_TYPE:-doremi}

# Length and size of the run.
MAX_DURATION=${MAX_DURATION:-48000ba}
BATCH_SIZE=${BATCH_SIZE:-256}
MICROBATCH_SIZE=${MICROBATCH_SIZE:-8}
MAX_SEQ_LEN=${MAX_SEQ_LEN:-4096}
EVAL_INTERVAL=${EVAL_INTERVAL:-400ba}
SAVE_INTERVAL=${SAVE_INTERVAL:-3200ba}

# Learning rate; 3% of the run is warm-up.
LR=${LR:-1e-4}
LR_WARMUP=${LR_WARMUP:-1440ba}

launch "$CONFIG" \
  run_name="$RUN_NAME" save_folder="$SAVE_FOLDER" save_interval="$SAVE_INTERVAL" autoresume="$AUTORESUME" \
  model.path="$MODEL" data_local="$DATA" train_loader.dataset.split=for_ft eval_loader.dataset.split=eval_merge \
  max_duration="$MAX_DURATION" global_train_batch_size="$BATCH_SIZE" max_seq_len="$MAX_SEQ_LEN" \
  device_train_microbatch_size="$MICROBATCH_SIZE" eval_interval="$EVAL_INTERVAL" \
  optimizer.lr="$LR" scheduler.t_warmup="$LR_WARMUP" \
  callbacks.data_loading.dynamic=true callbacks.data_loading.update_type="$UPDATE_TYPE" \
  callbacks.data_loading.set_names="$SET_NAMES" callbacks.data_loading.proportion="$PROPORTION" \
  callbacks.data_loading.target_loss="$TARGET_LOSS" \
  ${TEACHER:+distillation.teacher="$TEACHER"} \
  "$@"
