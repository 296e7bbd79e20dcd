#!/bin/sh
# Distils tasks of GLUE, and a problem of 1,000 labels and 20,000 texts without labels, in 15 minutes, into the packaged student:
# `sd finetune --teacher`, a command each. Where several seeds are run, the teacher's stages are those of the first.
# What is done is not done again.
# usage: recipe.sh TEACHER GLUE_DIR WORKDIR [TASK:SEEDS…]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
case $1 in */*) teacher=$(realpath "$1") ;; *) teacher=$1 ;; esac
glue=$(realpath "$2")
mkdir -p "$3" && cd "$3"
shift 3
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"

for wanted in "${@:-CoLA:1}"; do
    task=${wanted%%:*} seeds=${wanted##*:}
    for seed in $(seq 0 $((seeds - 1))); do
        test -f "tables/$task-$seed.json" && continue
        if test "$task" = few-labels; then
            test -f few-labels.tsv || python "$here/few_labels.py" "$glue" .
            sd finetune minilm-small --train few-labels.tsv --dev few-labels-dev.tsv --text-column sentence --unlabeled unlabeled.txt \
                --teacher "$teacher" --max-time 15m --seed "$seed" --out "few-labels-$seed" --overwrite
        else
            sd finetune minilm-small --task "$task" --glue-dir "$glue" --teacher "$teacher" --seed "$seed" --out "$task-$seed" --overwrite
        fi
        mkdir -p tables && mv "$(ls -t "$task-stages"/*/table.json | head -n 1)" "tables/$task-$seed.json"
    done
done
python "$here/recipe.py" tables
