#!/usr/bin/env bash
# Segment images with one process per GPU, or with CPU processes where there is none. `--resume` continues a run.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as for mmseg's scripts; all need the same --out.
set -euo pipefail
USAGE='usage: tools/dist_predict.sh GPUS CONFIG CHECKPOINT INPUT... --out DIR [options of predict.py]'
exec "$(dirname "${BASH_SOURCE[0]}")/dist_run.sh" "${1:?$USAGE}" predict.py "${2:?$USAGE}" "${3:?$USAGE}" "${@:4}"
