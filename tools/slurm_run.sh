#!/usr/bin/env bash
# For slurm_train.sh and slurm_test.sh: slurm_run.sh PARTITION JOB_NAME TOOL [argument of the tool]...
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
GPUS_PER_NODE=${GPUS_PER_NODE:-8}

# shellcheck disable=SC2086 # SRUN_ARGS holds several options
PYTHONPATH="$HERE/..:${PYTHONPATH:-}" srun -p "$1" --job-name="$2" \
    --gres=gpu:"$GPUS_PER_NODE" --ntasks="${GPUS:-8}" --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$HERE/$3" --launcher slurm "${@:4}"
