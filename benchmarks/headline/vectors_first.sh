#!/bin/sh
# A task with all that helps, SST-2 or CoLA: a large teacher, fine-tuned on it, and students that learn first its vectors of three
# layers and then its logits, over the training text and augmented copies of it. For SST-2 also over sentences of Wikipedia that
# judge works and, of the vectors alone, over text of other tasks. One student begins with the packaged wiki-small, one, wider,
# with MiniLM's word embeddings; beside each what it comes to without the vectors.
# Two to three hours on two cores with all-mpnet-base-v2 for SST-2, half an hour for CoLA; what is done is not done again.
# usage: vectors_first.sh TASK TEACHER CORPUS GLUE_DIR WORKDIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../train.sh"
task=$1 teacher=$(realpath "$2") corpus=$(realpath "$3") glue=$(realpath "$4")
case $task in
    SST-2) teacher_epochs=1 copies=4 vector_epochs=6 steps=6000 ;;
    CoLA) teacher_epochs=3 copies=8 vector_epochs=10 steps=4000 ;;
    *) echo "SST-2 or CoLA, not $task" >&2 && exit 2 ;;
esac
mkdir -p "$5" && cd "$5"
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
of_task() { sd "$@" --task "$task" --glue-dir "$glue"; }
embed() { sd embed --text-column sentence --no-split --min-words 1 "$@"; }
learn() { test -f "$2/task.json" || of_task finetune "$1" --logits logits --epochs 20 --finetune-steps "$steps" --out "$2"; }

mask=$(python -c 'import sys; from transformers import AutoTokenizer; print(AutoTokenizer.from_pretrained(sys.argv[1]).mask_token)' "$teacher")
test -f teacher/tokenizer.json || of_task finetune "$teacher" --epochs "$teacher_epochs" --out teacher
test -f text.jsonl || python "$here/augment.py" text.jsonl --task "$task" --glue-dir "$glue" --copies "$copies" --mask "$mask"
of_logits="--corpus text.jsonl" of_vectors=
if test "$task" = SST-2; then
    test -f review.txt || python "$here/review_text.py" "$corpus" review.txt
    test -f review.jsonl || python "$here/augment.py" review.jsonl --text review.txt --copies 0
    test -f other.txt || python "$here/glue_text.py" "$glue" other.txt --tasks MNLI CoLA RTE MRPC --sentences 40000
    of_logits="$of_logits --corpus review.jsonl" of_vectors="--corpus other.txt"
fi
embed $of_logits --teacher teacher --out logits
embed $of_logits $of_vectors --teacher teacher --pooling mean --layers 8,10,12 --out vectors

# A student of one step that changes nothing: word embeddings of MiniLM, all else random. It takes some text, no matter which.
test -f words.jsonl || head -n 400 text.jsonl > words.jsonl
embed --corpus words.jsonl --teacher minilm --out words
train words-base --shards words --pooling mean+max --held-out 0.1 --max-steps 1 --learning-rate 1e-12

train vectors-small --shards vectors --init wiki-small --epochs "$vector_epochs"
train vectors-base --shards vectors --init words-base --epochs "$vector_epochs"
learn vectors-small student-small
learn vectors-base student-base
learn wiki-small student-small-logits-alone
learn words-base student-base-logits-alone
python "$here/vectors_first.py" . "$task"
