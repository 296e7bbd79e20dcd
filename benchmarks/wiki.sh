#!/bin/sh
# The figures of README's "Results so far": the first 350,000 lines of a WikiExtractor file of English Wikipedia,
# teacher MiniLM, default student, everything that sd eval measures. About an hour and a half on two cores. Stage one
# beside its peers: embed.sh.
# usage: wiki.sh WIKIEXTRACTOR.zst GLUE_DIR WORKDIR      (needs the command zstdcat)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
corpus=$(realpath "$1") glue=$(realpath "$2")
mkdir -p "$3" && cd "$3"
zstdcat "$corpus" | head -n 350000 > wiki.txt
sd embed --teacher minilm --corpus wiki.txt --out shards
sd train-student --shards shards --out student
sd eval --student student --glue-dir "$glue"
sd eval --student student --glue --glue-dir "$glue" --from-scratch
python "$here/student_results.py" student
