#!/bin/sh
# The whole way on the packaged sample: text, shards, student, figures. Needs no network.
# usage: demo.sh [GLUE_DIR]
set -eu
sd sample --out wiki.txt
sd embed --corpus wiki.txt --out shards/ --teacher minilm
sd train-student --shards shards/ --overwrite
sd eval ${1:+--glue-dir "$1"}
if [ $# -gt 0 ]; then
    sd eval --glue --glue-dir "$1"
else
    echo "for GLUE: make demo GLUE_DIR=folder-of-official-tsv-files, or sd eval --glue where the hub is reachable"
fi
