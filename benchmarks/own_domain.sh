#!/bin/sh
# What a general student is worth as the start of one for a text of another kind: questions of users (QQP's, without labels),
# from 1% to all of them. From the teacher's words each run has 2,000 steps, from wiki-small five epochs, but no more steps;
# the best validation counts. A quarter of an hour on two cores; what is done is not done again.
# usage: own_domain.sh GLUE_DIR WORKDIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/train.sh"
glue=$(realpath "$1")
mkdir -p "$2" && cd "$2"
test -f questions.txt || python "$here/headline/glue_text.py" "$glue" questions.txt --tasks QQP
sd embed --teacher minilm --corpus questions.txt --no-split --out shards
students=
for share in 0.01 0.05 0.2 1; do
    for init in pca wiki-small; do
        train "$init-$share" --shards shards --size small --init "$init" --train-fraction "$share" \
            --epochs "$(test $init = pca && echo 1000 || echo 5)" --max-steps 2000 --validate-every 100 --held-out 0.05
        students="$students $init-$share"
    done
done
sd eval $students wiki-small --shards shards --glue-dir "$glue" --json eval.json
python "$here/own_domain.py" .
