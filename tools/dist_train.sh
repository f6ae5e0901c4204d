#!/usr/bin/env bash
# Train with one process per GPU, or with CPU processes where there is none.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as for mmseg's script.
set -euo pipefail
USAGE='usage: tools/dist_train.sh CONFIG GPUS [options of train.py]'
exec "$(dirname "${BASH_SOURCE[0]}")/dist_run.sh" "${2:?$USAGE}" train.py "$1" "${@:3}"
