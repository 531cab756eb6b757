#!/usr/bin/env bash
# Prune LLaMA-2-7B to the shape of TARGET with the settings of the paper (arXiv 2310.06694, section 3.1):
# 3,200 steps of 32 x 4,096 tokens, evaluation and new domain weights every 50 steps.
# Every setting can be given from the environment; paths begin at the repository, wherever you stand:
#   MODEL=models/llama2-7b.pt DATA=data/mds TARGET=1.3b bash scripts/pruning.sh [key=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/launch.sh

MODEL=${MODEL:?the source model, made by: llmshearing convert HF_FOLDER MODEL}
DATA=${DATA:?the folder made by: llmshearing prepare}
TARGET=${TARGET:-1.3b} # 2.7b | 1.3b | 370m
CONFIG=${CONFIG:-configs/llama2/7b.yaml}
RUN_NAME=${RUN_NAME:-llama2_7b_pruning_$TARGET}
SAVE_FOLDER=${SAVE_FOLDER:-runs/$RUN_NAME}
AUTORESUME=${AUTORESUME:-false}
TEACHER=${TEACHER:-} # a model to learn from beside the text, mostly the source itself

case $TARGET in # its shape and losses
  2.7b) shape="2560 20 32 6912" losses=[1.8712,0.6883,2.0325,1.5353,1.6297,1.3560,2.0328] ;;
  1.3b) shape="2048 16 24 5504" losses=[1.9643,0.7459,2.1393,1.6117,1.7590,1.4449,2.1251] ;;
  370m) shape="1024 8 24 2816" losses=[2.1401,0.8694,2.3625,1.7791,2.0470,1.6637,2.3139] ;;
  *) echo "TARGET is $TARGET; expected 2.7b, 1.3b or 370m" >&2; exit 2 ;;
esac
read -r d_model n_heads n_layers intermediate_size <<< "$shape"

# Domains and their share of the data the source was trained on.
SET_NAMES=${SET_NAMES:-[cc,github,book,stackexchange,wiki,arxiv,c4-rp]}
PROPORTION=${PROPORTION:-[0.67,0.045,0.045,0.02,0.045,0.025,0.15]}
TARGET_LOSS=${TARGET_LOSS:-$losses} # what the scaling law of the source's family predicts for TARGET
UPDATE_TYPE=${UPDATE_TYPE:-doremi}

# Length and size of the run.
MAX_DURATION=${MAX_DURATION:-3200ba}
BATCH_SIZE=${BATCH_SIZE:-32}
MICROBATCH_SIZE=${MICROBATCH_SIZE:-4}
MAX_SEQ_LEN=${MAX_SEQ_LEN:-4096}
EVAL_INTERVAL=${EVAL_INTERVAL:-50ba}
SAVE_INTERVAL=${SAVE_INTERVAL:-3200ba}

# Learning rates, and the first fifth of the run in which the targets rise.
LR=${LR:-1e-4}
LAG_LR=${LAG_LR:-1.0}
LR_WARMUP=${LR_WARMUP:-320ba}
LAG_WARMUP=${LAG_WARMUP:-640ba}

launch "$CONFIG" \
  run_name="$RUN_NAME" save_folder="$SAVE_FOLDER" save_interval="$SAVE_INTERVAL" autoresume="$AUTORESUME" \
  model.path="$MODEL" data_local="$DATA" train_loader.dataset.split=for_prune eval_loader.dataset.split=eval_merge \
  max_duration="$MAX_DURATION" global_train_batch_size="$BATCH_SIZE" max_seq_len="$MAX_SEQ_LEN" \
  device_train_microbatch_size="$MICROBATCH_SIZE" eval_interval="$EVAL_INTERVAL" \
  optimizer.lr="$LR" optimizer.lag_lr="$LAG_LR" scheduler.t_warmup="$LR_WARMUP" \
  model.l0_module.lagrangian_warmup_steps="$LAG_WARMUP" \
  model.l0_module.pruning_modules=[head,intermediate,layer,hidden] \
  model.l0_module.eval_target_model=false \
  model.l0_module.target_model.d_model="$d_model" \
  model.l0_module.target_model.n_heads="$n_heads" \
  model.l0_module.target_model.n_layers="$n_layers" \
  model.l0_module.target_model.intermediate_size="$intermediate_size" \
  callbacks.data_loading.dynamic=true callbacks.data_loading.update_type="$UPDATE_TYPE" \
  callbacks.data_loading.set_names="$SET_NAMES" callbacks.data_loading.proportion="$PROPORTION" \
  callbacks.data_loading.target_loss="$TARGET_LOSS" \
  ${TEACHER:+distillation.teacher="$TEACHER"} \
  "$@"
