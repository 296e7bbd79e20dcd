#!/bin/sh
# SST-2 with all that helps: a large teacher, fine-tuned on the task, and students that learn first its vectors of three layers
# and then its logits, over the training text, augmented copies of it and sentences of Wikipedia that judge works, of the
# vectors also over text of other tasks. One student begins with the packaged wiki-small, one, wider, with MiniLM's word
# embeddings, which know more of this task than mpnet's; beside that one what it comes to without the vectors.
# Two to three hours on two cores with all-mpnet-base-v2; what is done is not done again.
# usage: sst2.sh TEACHER CORPUS GLUE_DIR WORKDIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../train.sh"
teacher=$(realpath "$1") corpus=$(realpath "$2") glue=$(realpath "$3")
mkdir -p "$4" && cd "$4"
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
task() { sd "$@" --task SST-2 --glue-dir "$glue"; }
embed() { sd embed --text-field sentence --no-split --min-words 1 "$@"; }
learn() { test -f "$2/task.json" || task finetune "$1" --logits logits --epochs 20 --finetune-steps 6000 --out "$2"; }

mask=$(python -c 'import sys; from transformers import AutoTokenizer; print(AutoTokenizer.from_pretrained(sys.argv[1]).mask_token)' "$teacher")
test -f teacher/tokenizer.json || task finetune "$teacher" --epochs 1 --out teacher
test -f text.jsonl || task augment --copies 4 --mask "$mask" --out text.jsonl
test -f review.txt || python "$here/review_text.py" "$corpus" review.txt
test -f review.jsonl || sd augment --text review.txt --copies 0 --mask "$mask" --out review.jsonl
test -f other.txt || python "$here/glue_text.py" "$glue" other.txt --tasks MNLI CoLA RTE MRPC --sentences 40000
embed --corpus text.jsonl --corpus review.jsonl --teacher teacher --out logits
embed --corpus text.jsonl --corpus review.jsonl --corpus other.txt --teacher teacher --pooling mean --layers 8,10,12 --out vectors

# A student of one step that changes nothing: word embeddings of MiniLM, all else random.
test -f words.txt || head -n 400 other.txt > words.txt
sd embed --teacher minilm --corpus words.txt --no-split --out words
train words-base --shards words --pooling mean+max --held-out 0.1 --max-steps 1 --learning-rate 1e-12

train vectors-small --shards vectors --init wiki-small --epochs 6
train vectors-base --shards vectors --init words-base --epochs 6
learn vectors-small student-small
learn vectors-base student-base
learn words-base student-base-logits-alone
python "$here/sst2_results.py" .
