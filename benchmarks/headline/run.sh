#!/bin/sh
# The sizes in README.md and benchmarks/students.md: students of every size from one corpus, what each keeps of its teacher and
# costs, beside what one would take instead, and how much the size of the corpus matters. Each step goes on where it was
# stopped.
# With 261,409 articles of English Wikipedia (2.9 million sentences) and three epochs about 20 hours on two cores; EPOCHS,
# SIZES, FRACTIONS and STEPS change the run: benchmarks/students.md shows EPOCHS=1 FRACTIONS="0.02 0.1 1" STEPS=5000. A folder of
# shards that stands in WORKDIR already is taken as it is.
# usage: run.sh CORPUS GLUE_DIR WORKDIR [PEER_PYTHON]       (PEER_PYTHON: see encode_speed.py)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
corpus=$(realpath "$1") glue=$(realpath "$2")
# Not the file that it is a link to: that one does not know the environment.
peer_python=${4:+$(cd "$(dirname "$4")" && pwd)/$(basename "$4")}
mkdir -p "$3" && cd "$3"
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"

. "$here/../train.sh"

test -f shards/manifest.json || sd embed --teacher minilm --corpus "$corpus" --out shards
for size in ${SIZES:-tiny small base large}; do
    train "$size" --shards shards --target-layers 6 --size "$size" --epochs "${EPOCHS:-3}"
    test -f "$size/eval.json" || sd eval "$size" --glue-dir "$glue"
    test -f "$size/onnx/export.json" || sd export "$size" --int8
    sd eval --glue "$size" --glue-dir "$glue" --tasks SST-2,CoLA,MRPC,STS-B,RTE --rows scratch,scratch-words,frozen,distilled
done
for fraction in ${FRACTIONS:-0.02 0.05 0.15 0.4 1}; do
    train "fraction-$fraction" --shards shards --target-layers 6 --size small --train-fraction "$fraction" \
        --epochs 1000 --max-steps "${STEPS:-8000}"
    test -f "fraction-$fraction/eval.json" || sd eval "fraction-$fraction" --glue-dir "$glue"
done
python "$here/speed.py" shards "$glue/STS-B/dev.tsv" . ${SIZES:-tiny small base large} ${peer_python:+--peer-python "$peer_python"}
python "$here/table.py" .
