#!/usr/bin/env bash
# For dist_train.sh, dist_test.sh and dist_predict.sh: dist_run.sh GPUS TOOL [argument of the tool]...
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

ADDRESS="${MASTER_ADDR:-127.0.0.1}" PORT="${PORT:-29500}"
if [[ "${MAX_RESTARTS:-0}" != 0 ]]; then
    # With the static rendezvous, processes that are started again find the addresses of dead ones, and other machines
    # do not hear of a restart.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else gloo may find old addresses even so
    RENDEZVOUS=(--rdzv_backend=c10d --rdzv_endpoint="$ADDRESS:$PORT" --rdzv_id="${RUN_ID:-mmseg_segmenter}")
    RENDEZVOUS+=(--rdzv_conf="is_host=$([[ "${NODE_RANK:-0}" == 0 ]] && echo 1 || echo 0)")
    if [[ -n "${LOCAL_ADDR:-}" ]]; then RENDEZVOUS+=(--local_addr="$LOCAL_ADDR"); fi
else
    RENDEZVOUS=(--node_rank="${NODE_RANK:-0}" --master_addr="$ADDRESS" --master_port="$PORT")
fi
# Checkpoints that are younger are of this run: processes that are started again continue from them.
MMSEG_SEGMENTER_STARTED="$(date +%s)" PYTHONPATH="$HERE/..:${PYTHONPATH:-}" python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --nproc_per_node="$1" "${RENDEZVOUS[@]}" --max_restarts="${MAX_RESTARTS:-0}" \
    "$HERE/$2" --launcher pytorch "${@:3}"
