#!/usr/bin/env bash
# Test with one process per GPU, or with CPU processes where there is none.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as for mmseg's script.
set -euo pipefail
USAGE='usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]'
exec "$(dirname "${BASH_SOURCE[0]}")/dist_run.sh" "${3:?$USAGE}" test.py "$1" "$2" "${@:4}"
