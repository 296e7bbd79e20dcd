#!/bin/sh
# A student for text of any kind: wiki-small, trained on with chat, questions, MNLI's sentences and short spans next to
# Wikipedia, and both measured on text that no training saw. On two cores with AVX512-BF16 some ten minutes of embedding
# and fifteen of training; what is done is not done again.
# usage: general.sh WIKI CHAT GLUE_DIR WORKDIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
wiki=$(realpath "$1") chat=$(realpath "$2") glue=$(realpath "$3")
mkdir -p "$4" && cd "$4"
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
test -d text || python "$here/general_text.py" "$wiki" "$chat" "$glue" text
corpora="--corpus text/chat.txt --corpus text/mnli.txt --corpus text/squad.txt --corpus text/spans.txt --corpus text/wiki.txt"
# shellcheck disable=SC2086
sd embed $corpora --teacher minilm --min-words 2 --out shards
test -f trained/distillation.json || sd train-student --shards shards --init wiki-small --epochs 3 --out trained
for share in 0.5 0.85; do
    test -d "averaged-$share" || python "$here/average.py" trained wiki-small "$share" "averaged-$share"
done
sd eval wiki-small trained averaged-0.5 averaged-0.85 --shards shards --glue-dir "$glue" --json general.json \
    --text text/other-wiki.txt --text text/unseen-chat.txt --text text/unseen-qqp.txt --text text/unseen-sst2.txt
python "$here/general.py" general.json
