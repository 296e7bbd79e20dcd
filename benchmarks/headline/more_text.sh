#!/bin/sh
# What more text brings: students of a whole corpus, read once, beside those of its first lines (run.sh), on held-out
# sentences of these lines, which are held out of both. STEPS ends a training early, SIZES picks.
# With 261,409 articles of English Wikipedia two hours of embedding on two cores, 38 minutes for small; each step goes on
# where it was stopped. What benchmarks/students.md shows was made by SIZES="tiny small", then by SIZES="base large" STEPS=15625;
# run.sh with EPOCHS=1 then goes on with the same folder. A size that PART lacks is only trained.
# usage: more_text.sh CORPUS GLUE_DIR WORKDIR PART      (PART: a folder that run.sh filled from the first lines of CORPUS)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../train.sh"
corpus=$(realpath "$1") glue=$(realpath "$2") part=$(realpath "$4")
mkdir -p "$3" && cd "$3"
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
sd embed --teacher minilm --corpus "$corpus" --out shards
for size in ${SIZES:-small base}; do
    train "$size" --shards shards --size "$size" --epochs 1 ${STEPS:+--max-steps "$STEPS"}
    test -f "$size/eval.json" || sd eval "$size" --glue-dir "$glue"
    test -f "part-$size.json" || test ! -d "$part/$size" ||
        sd eval "$size" "$part/$size" --shards "$part/shards" --glue-dir "$glue" --json "part-$size.json"
done
python "$here/more_text.py" . "$part"
