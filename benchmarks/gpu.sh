#!/bin/sh
# Both stages on a GPU, in under nine minutes of one: the text with MiniLM and, for TEACHER_SECONDS, with a second teacher; `small`
# and `base` for TRAIN_SECONDS each; the teacher beside SentenceTransformer in bfloat16 at its best batch size; and the weights in
# pieces of 16 MiB, to carry them away. On a machine without a GPU it all runs on the CPU, for a trial on little text.
# usage: gpu.sh TEXT WORKDIR [SECOND_TEACHER]      (TEXT: a folder of text files; TEACHER_SECONDS=90 TRAIN_SECONDS=100 SENTENCES=20000)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
text=$(realpath "$1") second=${3:-}
mkdir -p "$2" && cd "$2"
corpora=$(for file in "$text"/*.txt; do printf -- '--corpus %s ' "$file"; done)
# shellcheck disable=SC2086
sd embed $corpora --teacher minilm --min-words 2 --out shards
python "$here/gpu_speed.py" embed shards --sentences "${SENTENCES:-20000}" --teacher minilm
if test -n "$second"; then
    # What it stops is complete up to its last shard, and the same command goes on with it.
    # shellcheck disable=SC2086
    timeout --signal=INT "${TEACHER_SECONDS:-90}" sd embed $corpora --teacher "$second" --min-words 2 --out shards-second || test $? -eq 124
    python "$here/gpu_speed.py" embed shards --sentences "${SENTENCES:-20000}" --teacher "$second"
fi
for size in small base; do
    test -f "$size/distillation.json" ||
        sd train-student --shards shards --size "$size" --epochs 100 --batch-size 1024 --learning-rate 0.008 \
            --max-time "${TRAIN_SECONDS:-100}s" --out "$size"
    python "$here/gpu_speed.py" train shards --size "$size"
done
tar -cf - small base | split -b 16m - weights.tar.
echo "cat weights.tar.* | tar -xf - puts the students together again"
