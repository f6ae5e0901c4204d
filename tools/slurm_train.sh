#!/usr/bin/env bash
# Train under Slurm. Environment as for mmseg's script: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS.
set -euo pipefail
: "${3:?usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of train.py]}"
exec "$(dirname "${BASH_SOURCE[0]}")/slurm_run.sh" "$1" "$2" train.py "${@:3}"
