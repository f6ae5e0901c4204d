#!/usr/bin/env bash
# The whole path on generated scenes: draw, train, kill, resume, evaluate, draw the predictions.
# Run by `make demo`; everything goes to work_dirs/demo, which is made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
CONFIG=configs/segmenter/segmenter_demo_1xb16-1200_shapes.py
OUT=work_dirs/demo
MIN_MIOU=60
DATA=(--cfg-options {train,val,test}_dataloader.dataset.data_root="$OUT/data")

show() { # FILE PATTERN: the lines that matter, or the end of the log if there are none
    grep -E "$2" "$1" || { tail -n 30 "$1"; exit 1; }
}

echo "== draw 600 labelled scenes"
rm -rf "$OUT"
mkdir -p "$OUT"
tools/dataset_converters/make_shapes.py "$OUT/data" --images 600

echo "== train, and kill the process without warning after its first checkpoint"
tools/train.py "$CONFIG" --work-dir "$OUT" "${DATA[@]}" > "$OUT/first_run.txt" 2>&1 &
trainer=$!
trap 'kill -9 $trainer 2> /dev/null || true' EXIT
while [ ! -f "$OUT/last_checkpoint" ]; do
    kill -0 $trainer 2> /dev/null || { tail -n 30 "$OUT/first_run.txt"; exit 1; }
    sleep 1
done
kill -9 $trainer
wait $trainer 2> /dev/null || true
trap - EXIT
show "$OUT/first_run.txt" 'Iter\(train\)|Saving checkpoint'

echo "== resume from the last checkpoint"
tools/train.py "$CONFIG" --work-dir "$OUT" --resume "${DATA[@]}" > "$OUT/second_run.txt" 2>&1 || true
show "$OUT/second_run.txt" 'resumed epoch|Iter\(train\).*00/|Iter\(val\).*mIoU'

echo "== evaluate, and draw image | annotation | prediction"
tools/test.py "$CONFIG" "$OUT/iter_1200.pth" --work-dir "$OUT/test" --show-dir "$OUT/pictures" --out "$OUT/labels" \
    "${DATA[@]}" > "$OUT/test.txt" 2>&1 || true
show "$OUT/test.txt" '^[|+]|Iter\(test\).*mIoU'

# The checkpoint must give what its last validation gave.
score() { grep -E "Iter\($2\).*mIoU" "$1" | tail -n 1 | grep -oE 'aAcc: .*mAcc: [0-9.]+'; }
[ "$(score "$OUT/test.txt" test)" = "$(score "$OUT/second_run.txt" val)" ] ||
    { echo 'the test of the last checkpoint and its validation differ'; exit 1; }
miou=$(score "$OUT/test.txt" test | grep -oE 'mIoU: [0-9.]+' | grep -oE '[0-9.]+')
pictures=$(find "$OUT/pictures" -name '*.png' | wc -l)
[ "$pictures" -gt 0 ] || { echo 'no pictures were drawn'; exit 1; }
echo "mIoU $miou (at least $MIN_MIOU expected)"
echo "$pictures pictures in $OUT/pictures, label maps in $OUT/labels"
awk -v miou="$miou" -v min="$MIN_MIOU" 'BEGIN { exit !(miou >= min) }'
