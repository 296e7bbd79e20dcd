#!/bin/sh
# SST-2 with all levers: a teacher that knows the task, fine-tuned on it; its logits over the training text and augmented
# copies; a student that was distilled from the same teacher over text of the task's kind (other_teacher.sh makes it), and
# learns from them. About 50 minutes on two cores with all-mpnet-base-v2. A step whose folder is there is not done again.
# usage: sst2.sh TEACHER STUDENT GLUE_DIR WORKDIR
set -eu
teacher=$(realpath "$1") student=$(realpath "$2") glue=$(realpath "$3")
mask=$(python -c 'import sys; from transformers import AutoTokenizer; print(AutoTokenizer.from_pretrained(sys.argv[1]).mask_token)' "$teacher")
mkdir -p "$4/sst2" && cd "$4/sst2"
task="--task SST-2 --glue-dir $glue"
test -d teacher || sd finetune "$teacher" $task --epochs 1 --out teacher
test -f text.jsonl || sd augment $task --copies 5 --mask "$mask" --out text.jsonl
sd embed --corpus text.jsonl --text-field sentence --no-split --min-words 1 --teacher teacher --out logits
test -d student || sd finetune "$student" $task --logits logits --epochs 20 --finetune-steps 20000 --out student
