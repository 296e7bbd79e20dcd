#!/bin/sh
# A first look at the packaged student; then the whole way on the packaged sample: text, shards, student, figures. Needs no
# network.
# usage: demo.sh [GLUE_DIR]
set -eu
python - << 'END'
from sentence_distill import Student

query, *others = sentences = ["A man is eating bread.", "Someone has a meal.", "Bread is made of flour.", "Parliament passed the bill."]
first, *rest = Student.load("wiki-small").encode(sentences)
print(f"the packaged student, wiki-small, on {query!r}:")
print("\n".join(f"  {first @ vector:6.3f}  {other}" for vector, other in zip(rest, others)))
END
sd sample --out wiki.txt --overwrite
sd embed --corpus wiki.txt --out shards/ --teacher minilm
sd train-student --shards shards/ --overwrite
sd eval ${1:+--glue-dir "$1"}
if [ $# -gt 0 ]; then
    sd eval --glue --glue-dir "$1"
else
    echo "for GLUE: make demo GLUE_DIR=folder-of-official-tsv-files, or sd eval --glue where the hub is reachable"
fi
