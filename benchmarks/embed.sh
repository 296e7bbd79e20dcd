#!/bin/sh
# The figures of stage one: speed beside its peers, where the time goes, cost and memory by size, faults survived.
# About an hour and a half on two cores, most of it to make shards of 328,523 sentences to draw from.
# usage: embed.sh WIKIEXTRACTOR.zst WORKDIR [PEER_PYTHON]      (needs the command zstdcat)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
corpus=$(realpath "$1")
mkdir -p "$2" && cd "$2"
zstdcat "$corpus" | head -n 350000 > wiki.txt
head -n 60000 wiki.txt > wiki60k.txt
head -n 2000 wiki.txt > wiki2k.txt
sd embed --teacher minilm --corpus wiki.txt --out shards
python "$here/embed_speed.py" shards speed ${3:+--peer-python "$3"}
python "$here/embed_stages.py" wiki60k.txt stages
python "$here/embed_scale.py" "$corpus" scale
python "$here/faults.py" wiki2k.txt faults
