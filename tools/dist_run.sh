#!/usr/bin/env bash
# For dist_train.sh, dist_test.sh and dist_predict.sh: dist_run.sh GPUS TOOL [argument of the tool]...
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

PYTHONPATH="$HERE/..:${PYTHONPATH:-}" python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$1" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --max_restarts="${MAX_RESTARTS:-0}" \
    "$HERE/$2" --launcher pytorch "${@:3}"
