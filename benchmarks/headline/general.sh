#!/bin/sh
# The packaged minilm-small: wiki-small, trained on with chat, questions, MNLI's sentences, what is made of them, and short
# sentences made by rule, next to Wikipedia; measured on text that no training saw. On two cores with AVX512-BF16 some forty minutes
# of embedding and a hundred of training; what is done is not done again. With TRIED=1 the runs that chose the mixture come first.
# usage: general.sh WIKI CHAT GLUE_DIR WORKDIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
wiki=$(realpath "$1") chat=$(realpath "$2") glue=$(realpath "$3")
mkdir -p "$4" && cd "$4"
. "$here/../train.sh"
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
teacher=$(python -c 'from sentence_distill.pipeline.load import locate_teacher; print(locate_teacher("minilm").folder)')
test -d text || python "$here/general_text.py" "$wiki" "$chat" "$glue" "$teacher" text
natural="chat mnli squad wiki"
parts="spans clauses words"
altered="altered-chat altered-mnli altered-questions swapped"
ruled="telegraphic captions questions headlines statements"
corpora=$(for kind in $natural $parts $altered $ruled; do printf -- '--corpus text/%s.txt ' "$kind"; done)
# shellcheck disable=SC2086
sd embed $corpora --teacher minilm --min-words 2 --out shards
without() { for kind in "$@"; do printf -- '--corpus %s.txt=0 ' "$kind"; done; }
tried=
if test -n "${TRIED:-}"; then
    tried="natural parts all"
    # shellcheck disable=SC2046,SC2086
    train natural --shards shards --init wiki-small --max-steps 4000 $(without $parts $altered $ruled)
    # shellcheck disable=SC2046,SC2086
    train parts --shards shards --init wiki-small --max-steps 4000 $(without $altered $ruled)
    train all --shards shards --init wiki-small --max-steps 4000
fi
train first --shards shards --init wiki-small --epochs 5 --max-steps 32000 --validate-every 10000 \
    --corpus wiki.txt=1.8 --corpus chat.txt=2 --corpus mnli.txt=2 --corpus spans.txt=0.5 --corpus clauses.txt=0.5 --corpus words.txt=0.5 \
    --corpus captions.txt=0.6 --corpus headlines.txt=0.6 --corpus statements.txt=0.8
train trained --shards shards --init first --epochs 6 --max-steps 68642 --validate-every 10000 --learning-rate 0.003 \
    --corpus wiki.txt=2 --corpus chat.txt=2.5 --corpus mnli.txt=2 --corpus spans.txt=0.5 --corpus clauses.txt=0.5 --corpus words.txt=0.5 \
    --corpus captions.txt=0.6 --corpus headlines.txt=0.6 --corpus statements.txt=0.8
test -d minilm-small || sd export trained --format folder --float16 --out minilm-small
# shellcheck disable=SC2086
sd eval minilm-small wiki-small $tried --shards shards --glue-dir "$glue" --json general.json \
    --text text/other-wiki.txt --text text/unseen-chat.txt --text text/unseen-qqp.txt --text text/unseen-sst2.txt \
    --word-order text/other-wiki.txt
python "$here/general.py" general.json
