# How the recipes start a run; sourced by pruning.sh and continue_pretraining.sh.
# LAUNCHER=local (default): GPUS devices of this machine (default: all), by Composer's launcher.
# LAUNCHER=slurm: submit scripts/slurm.sbatch, NODES machines (default: 1) of GPUS devices (default: 8).
# DRY_RUN=1: print the command and what the run would do on NODES x GPUS devices (1 x 8), and stop.

[ -z "${VIRTUAL_ENV:-}" ] && [ -d .venv ] && source .venv/bin/activate

case " $* " in *" -h "* | *" --help "*)
  # The recipe's comments and settings, then the comments above.
  sed -nE '/^#!/d; s/^# ?//p; /^$/p; s/^([A-Z_]+)=\$\{\1:-(.*)\}/  \1=\2/p; s/^([A-Z_]+)=\$\{\1:\?(.*)\}/  \1 (required): \2/p' \
    "scripts/${0##*/}" scripts/launch.sh | cat -s
  exit 0 ;;
esac

launch() {
  if [ "${DRY_RUN:-0}" = 1 ]; then
    printf 'composer train.py'; printf ' %q' "$@"; printf '\n\n'
    llmshearing plan "$@" --devices "$((${GPUS:-8} * ${NODES:-1}))"
  elif [ "${LAUNCHER:-local}" = slurm ]; then
    sbatch --job-name "${RUN_NAME:-llmshearing}" --nodes "${NODES:-1}" --gpus-per-node "${GPUS:-8}" \
      scripts/slurm.sbatch "$@"
  else
    composer ${GPUS:+--nproc "$GPUS"} train.py "$@"
  fi
}
