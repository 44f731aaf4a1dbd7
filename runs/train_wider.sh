#!/bin/sh
# Check, benchmark, train and evaluate on a machine with GPUs:
#
#     sh runs/train_wider.sh                       # one GPU, WIDER FACE in data/widerface
#     GPUS=8 EPOCHS=400 DATA=/data/widerface sh runs/train_wider.sh
#
# Results: $OUT/benchmark_train.csv, $OUT/training_log.csv, $OUT/FeatherFaceV2_final.pth, $OUT/evaluation.txt.
# Started again it continues where it was stopped (SIGTERM and Ctrl-C save).
set -eu

PYTHON=${PYTHON:-python}
DATA=${DATA:-data/widerface}
TEACHER=${TEACHER:-weights/featherface_v1.pth}
OUT=${OUT:-weights/v2_gpu}
GPUS=${GPUS:-1}        # processes, one GPU each
BATCH=${BATCH:-128}    # images per step of all GPUs together
EPOCHS=${EPOCHS:-400}
SIZE=${SIZE:-640}
LR=${LR:-2e-3}
CACHE=${CACHE:-auto}   # ram on a card of 24 GB; none to read the photos again in each epoch
EXTRA=${EXTRA:-}       # more flags of train_v2.py, such as --min-face 2

cd "$(dirname "$0")/.."
mkdir -p "$OUT"
"$PYTHON" -c 'import torch, sys; n = torch.cuda.device_count(); print(f"{n} GPUs, torch {torch.__version__}"); sys.exit(n == 0)' || {
    echo "error: no CUDA device here" >&2; exit 2; }
nvidia-smi --query-gpu=name,memory.total,memory.free --format=csv || true

"$PYTHON" scripts/prepare_data.py --data "$DATA"

if [ ! -e "$OUT/benchmark_train.csv" ]; then
    for batch in 64 128 256; do
        "$PYTHON" scripts/benchmark.py train --data "$DATA" --teacher-model "$TEACHER" --image-size "$SIZE" \
            --batch-size "$batch" --cache "$CACHE" --photos 1024 --rounds 20 --out "$OUT/benchmark_train_$batch.csv" || {
            echo "benchmark: a batch of $batch did not run; continuing"; break; }
        cp "$OUT/benchmark_train_$batch.csv" "$OUT/benchmark_train.csv"
    done
fi

resume=""
[ -e "$OUT/FeatherFaceV2_last.pth" ] && resume="--resume"
# in the background, so that a signal to this script reaches it
# shellcheck disable=SC2086
"$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$GPUS" scripts/train_v2.py \
    --data "$DATA" --teacher-model "$TEACHER" --save-folder "$OUT" --epochs "$EPOCHS" --image-size "$SIZE" \
    --batch-size "$BATCH" --lr "$LR" --cache "$CACHE" --bn-batches 50 --validate-every 20 --validate-photos 500 \
    $EXTRA $resume &
training=$!
trap 'kill -TERM "$training"; wait "$training"; exit 130' TERM INT
wait "$training"
trap - TERM INT

: > "$OUT/evaluation.txt"
for protocol in original vga; do
    "$PYTHON" scripts/evaluate.py --weights "$OUT/FeatherFaceV2_final.pth" --data "$DATA" --protocol "$protocol" \
        >> "$OUT/evaluation.txt"
done
cat "$OUT/evaluation.txt"
