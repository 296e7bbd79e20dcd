#!/bin/sh
# SST-2 with all that helps: a large teacher that is fine-tuned on the task, its logits over the training text, augmented
# copies of it and sentences of Wikipedia that judge works, and a student that knows text of the tasks' kind (other_text.sh
# makes it). About an hour and a half on two cores with all-mpnet-base-v2; what is done is not done again.
# usage: sst2.sh TEACHER STUDENT CORPUS GLUE_DIR WORKDIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
teacher=$(realpath "$1") student=$(realpath "$2") corpus=$(realpath "$3") glue=$(realpath "$4")
mkdir -p "$5" && cd "$5"
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
task() { sd "$@" --task SST-2 --glue-dir "$glue"; }
mask=$(python -c 'import sys; from transformers import AutoTokenizer; print(AutoTokenizer.from_pretrained(sys.argv[1]).mask_token)' "$teacher")
test -f teacher/tokenizer.json || task finetune "$teacher" --epochs 1 --out teacher
test -f text.jsonl || task augment --copies 4 --mask "$mask" --out text.jsonl
test -f review.txt || python "$here/review_text.py" "$corpus" review.txt
test -f review.jsonl || sd augment --text review.txt --copies 0 --mask "$mask" --out review.jsonl
sd embed --corpus text.jsonl --corpus review.jsonl --text-field sentence --no-split --min-words 1 --teacher teacher --out logits
test -f student/task.json || task finetune "$student" --logits logits --epochs 20 --finetune-steps 8000 --learning-rate 2e-3 --out student
python "$here/sst2_results.py" .
