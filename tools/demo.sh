#!/usr/bin/env bash
# The whole path on generated scenes: draw, train, kill, resume, evaluate, draw the predictions.
# Run by `make demo`; everything goes to data/shapes and work_dirs/demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
CONFIG=configs/segmenter/segmenter_demo_1xb16-1400_shapes.py
OUT=work_dirs/demo
MIN_MIOU=60

rm -rf "$OUT"
if [ ! -d data/shapes ]; then
    tools/dataset_converters/make_shapes.py data/shapes --images 600
fi

echo "== train, and kill the process without warning after its first checkpoint"
mkdir -p "$OUT"
tools/train.py "$CONFIG" --work-dir "$OUT" > "$OUT/first_run.txt" 2>&1 &
trainer=$!
trap 'kill -9 $trainer 2> /dev/null || true' EXIT
while [ ! -f "$OUT/last_checkpoint" ]; do
    kill -0 $trainer 2> /dev/null || { tail -n 30 "$OUT/first_run.txt"; exit 1; }
    sleep 1
done
kill -9 $trainer
wait $trainer 2> /dev/null || true
grep 'Iter(train)' "$OUT/first_run.txt" | tail -n 2

echo "== resume from the last checkpoint"
tools/train.py "$CONFIG" --work-dir "$OUT" --resume 2>&1 | tee "$OUT/second_run.txt" |
    grep --line-buffered -E 'resumed|Iter\((train|val)\)' || { tail -n 30 "$OUT/second_run.txt"; exit 1; }

echo "== evaluate, and draw annotation | prediction"
tools/test.py "$CONFIG" "$OUT/iter_1400.pth" --work-dir "$OUT/test" --show-dir "$OUT/pictures" --out "$OUT/labels" \
    > "$OUT/test.txt" 2>&1 || { tail -n 30 "$OUT/test.txt"; exit 1; }
grep -A 12 'per class results' "$OUT/test.txt" || true
grep 'Iter(test).*mIoU' "$OUT/test.txt"

miou=$(grep -oE 'Iter\(test\).*mIoU: [0-9.]+' "$OUT/test.txt" | grep -oE '[0-9.]+$')
pictures=$(find "$OUT/pictures" -name '*.png' | wc -l)
echo "mIoU $miou (at least $MIN_MIOU expected); $pictures pictures below $OUT/pictures, label maps in $OUT/labels"
awk -v miou="$miou" -v min="$MIN_MIOU" 'BEGIN { exit !(miou >= min) }'
[ "$pictures" -gt 0 ]
