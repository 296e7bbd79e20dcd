#!/bin/sh
# GLUE's table of a student: rows from majority class to fine-tuned teacher, three seeds for the small tasks, and its report.
# Models that are in glue.json already are not made again.
# usage: glue.sh STUDENT GLUE_DIR
set -eu
student=$1 glue=$2
table() { sd eval --glue "$student" --glue-dir "$glue" "$@"; }
table --tasks SST-2,CoLA,MRPC,STS-B,RTE,WNLI --rows all
table --tasks CoLA,MRPC,STS-B,RTE,WNLI --rows scratch,scratch-words,distilled --seeds 3
table --tasks CoLA,MRPC,STS-B --rows task-specific,distilled-task-specific --seeds 3
table --tasks SST-2 --rows scratch,scratch-words,distilled --train-fraction 0.01,0.1
sd report "$student" --out report.html \
    --note 'MRPC=one training row is missing' \
    --note 'QNLI=training data is not the official one: 23,754 pairs derived from SQuAD' \
    --note 'MNLI=training data is not the official one: 15,900 of its rows and 45,000 of LingNLI' \
    --note 'QQP=another split of real question pairs than the official one'
