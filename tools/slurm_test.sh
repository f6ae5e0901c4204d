#!/usr/bin/env bash
# Test under Slurm. Environment as for mmseg's script: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS.
set -euo pipefail
: "${4:?usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]}"
exec "$(dirname "${BASH_SOURCE[0]}")/slurm_run.sh" "$1" "$2" test.py "${@:3}"
