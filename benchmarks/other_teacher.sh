#!/bin/sh
# A student for CoLA and SST-2: of a teacher whose layers know these tasks (see probe_layers.py), over text of their own
# kind, with both tasks' rows and SST-2's with few examples. About an hour on two cores with all-mpnet-base-v2.
# usage: other_teacher.sh TEACHER LAYERS GLUE_DIR WIKI WORKDIR      (benchmarks/students.md: ./all-mpnet-base-v2 6,10,12)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/train.sh"
teacher=$1 layers=$2 glue=$(realpath "$3") wiki=$(realpath "$4")
test ! -d "$teacher" || teacher=$(realpath "$teacher")
mkdir -p "$5" && cd "$5"
test -f text.txt || python "$here/task_text.py" "$glue" "$wiki" text.txt
sd embed --teacher "$teacher" --corpus text.txt --no-split --min-words 1 --layers "$layers" --out shards
train student --shards shards --epochs 8
table() { sd eval --glue student --glue-dir "$glue" "$@"; }
table --tasks CoLA --rows scratch,scratch-words,frozen,distilled --seeds 3
table --tasks SST-2 --rows scratch-words,frozen,distilled
table --tasks SST-2 --rows scratch-words,distilled --train-fraction 0.01,0.1
python "$here/student_results.py" student --name other_teacher
