#!/usr/bin/env bash
# Run the GPU tests and all measurements on the GPU of this machine, and write performance_gpu.md with its plots.
#   tools/analysis_tools/gpu_report.sh [--out docs] [--minutes 19] [--smoke] [--no-tests]
# It keeps each result in performance_gpu.json, and goes on from there when it is called again with the same --out.
# PYTHON chooses the interpreter (default: python3). No network is needed.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
report=("${PYTHON:-python3}" -m mmseg_segmenter.analysis.gpu_report --started "$(date +%s)" "$@")

while true; do
    "${report[@]}"
    status=$?
    # 75: a CUDA error broke the process; 134, 139: it crashed. A new one goes on with the next measurement.
    case $status in 75 | 134 | 139) ;; *) break ;; esac
done
if [ "$status" -eq 124 ]; then # ended by its own watchdog, which writes no page
    "${report[@]}" --write-only
fi
exit "$status"
