#!/usr/bin/env bash
# The tables of docs/evidence.md, or those that are named. Each goes on where
# it was ended; runs/evidence holds the run folders.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}

declare -A students=(
    [resnet]=resnet_small
    [thin]=vgg_thin
    [mobilenet]=mobilenet_small
)
cross="--method=mhgd --set=attention=cross --set=senses_logits=true"
cross+=" --set=scale_logits=true --set=clipping=per_feature --set=clip_bound=0.3"

if [ $# -eq 0 ]; then
    set -- resnet thin mobilenet
fi
for table; do
    $python -m training.compare --dataset=glyphs --subset=2000 \
        --teacher=saved_models/teachers/vgg_small_glyphs.keras \
        --student="${students[$table]}" --epochs=40 --batch_size=64 \
        --schedule=cosine --views=8 --validation_freq=5 --trials=3 --jobs=2 \
        --methods=student,soft_logits,dkd,mhgd,recommended \
        "--way=soft_logits, weight 4: --method=soft_logits --set=weight=4" \
        "--way=MHGD, cross: $cross" --run="runs/evidence/$table"
    mkdir -p "benchmarks/evidence/$table"
    cp "runs/evidence/$table"/{table.md,table.csv,result.png} \
        "benchmarks/evidence/$table"
done
