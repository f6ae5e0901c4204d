#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [train.py options]: one process per GPU (or CPU process where there is none).
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as for mmseg's script.
set -euo pipefail
CONFIG=${1:?usage: tools/dist_train.sh CONFIG GPUS [options of train.py]}
GPUS=${2:?usage: tools/dist_train.sh CONFIG GPUS [options of train.py]}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

PYTHONPATH="$HERE/..:${PYTHONPATH:-}" python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$GPUS" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$HERE/train.py" "$CONFIG" --launcher pytorch "${@:3}"
