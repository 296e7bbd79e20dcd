#!/bin/sh
# What text of other kinds brings: the same student from CORPUS and from CORPUS with the training sentences of GLUE's tasks,
# without labels and without STS-B's. Some fifty minutes on two cores with MiniLM and 330,000 sentences; each step goes on where
# it was stopped.
# usage: other_text.sh CORPUS GLUE_DIR WORKDIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
corpus=$(realpath "$1") glue=$(realpath "$2")
mkdir -p "$3" && cd "$3"
test -f glue.txt || python "$here/glue_text.py" "$glue" glue.txt
sd embed --teacher minilm --corpus "$corpus" --corpus glue.txt --out shards
test -f base/distillation.json || sd train-student --shards shards --target-layers 6 --out base
sd eval base --glue-dir "$glue"
sd eval --glue base --glue-dir "$glue" --tasks SST-2,CoLA,MRPC,STS-B,RTE --rows frozen,distilled
python "$here/../student_results.py" base --name other_text
