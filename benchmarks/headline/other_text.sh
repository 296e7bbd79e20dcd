#!/bin/sh
# What text of other kinds brings: the default student from CORPUS and the training sentences of GLUE's tasks, without labels
# and without STS-B's, to compare with that of CORPUS alone (wiki.sh). Some fifty minutes on two cores with MiniLM and
# 330,000 sentences; what is done is not done again.
# usage: other_text.sh CORPUS GLUE_DIR WORKDIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../train.sh"
corpus=$(realpath "$1") glue=$(realpath "$2")
mkdir -p "$3" && cd "$3"
test -f glue.txt || python "$here/glue_text.py" "$glue" glue.txt
sd embed --teacher minilm --corpus "$corpus" --corpus glue.txt --out shards
train base --shards shards --target-layers 6
sd eval base --glue-dir "$glue"
sd eval --glue base --glue-dir "$glue" --tasks SST-2,CoLA,MRPC,STS-B,RTE --rows frozen,distilled
python "$here/../student_results.py" base --name other_text
