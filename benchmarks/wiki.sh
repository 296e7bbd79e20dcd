#!/bin/sh
# The figures of benchmarks/students.md and its report: the first 350,000 lines of a WikiExtractor file of English
# Wikipedia, teacher MiniLM, default student, everything that sd eval measures, GLUE's table with three seeds for the
# small tasks. Three to four hours on two cores; each step goes on where it was stopped. Stage one beside its peers: embed.sh.
# usage: wiki.sh WIKIEXTRACTOR.zst GLUE_DIR WORKDIR      (needs the command zstdcat)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/train.sh"
corpus=$(realpath "$1") glue=$(realpath "$2")
mkdir -p "$3" && cd "$3"
test -f wiki.txt || {
    zstdcat "$corpus" | head -n 350000 > wiki.txt.part
    test -s wiki.txt.part
    mv wiki.txt.part wiki.txt
}
sd embed --teacher minilm --corpus wiki.txt --layers 3,6 --out shards
train student --shards shards --target-layers 6
sd eval student --glue-dir "$glue"
test -f student/onnx/export.json || sd export student --int8
sd eval --speed student --sts "$glue/STS-B/dev.tsv"
sh "$here/glue.sh" student "$glue"
python "$here/student_results.py" student
