#!/usr/bin/env bash
# The tables of docs/evidence.md, or those that are named. Each goes on where
# it was ended; runs/evidence holds the run folders.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
glyphs=saved_models/teachers/vgg_small_glyphs.keras
fashion=runs/evidence/fashion_teacher

cross="--method=mhgd --set=attention=cross --set=senses_logits=true"
cross+=" --set=scale_logits=true --set=clipping=per_feature --set=clip_bound=0.3"
ways=(
    "--methods=student,soft_logits,dkd,mhgd,recommended"
    "--way=soft_logits, weight 4: --method=soft_logits --set=weight=4"
    "--way=MHGD, cross: $cross"
)

compare() { # name, then flags of training.compare
    local name=$1
    shift
    $python -m training.compare --batch_size=64 --schedule=cosine --views=8 \
        --validation_freq=5 --jobs=2 --run="runs/evidence/$name" "$@"
    mkdir -p "benchmarks/evidence/$name"
    cp "runs/evidence/$name"/{table.md,table.csv,result.png} \
        "benchmarks/evidence/$name"
}

resnet() {
    compare resnet --dataset=glyphs --subset=2000 --teacher=$glyphs \
        --student=resnet_small --epochs=40 --trials=3 "${ways[@]}"
}

thin() {
    compare thin --dataset=glyphs --subset=2000 --teacher=$glyphs \
        --student=vgg_thin --epochs=40 --trials=3 "${ways[@]}"
}

mobilenet() {
    compare mobilenet --dataset=glyphs --subset=2000 --teacher=$glyphs \
        --student=mobilenet_small --epochs=40 --trials=3 "${ways[@]}"
}

more() {
    compare more --dataset=glyphs --subset=10000 --teacher=$glyphs \
        --student=resnet_small --epochs=10 --trials=3 "${ways[@]}"
}

fashion_teacher() {
    $python -m training.train --dataset=fashion_mnist --model=vgg_small \
        --epochs=8 --schedule=cosine --run=$fashion
}

fashion_1000() {
    fashion_teacher
    compare fashion_1000 --dataset=fashion_mnist --subset=1000 \
        --teacher=$fashion --student=resnet_small --epochs=40 --trials=3 \
        "${ways[@]}"
}

fashion_5000() {
    fashion_teacher
    compare fashion_5000 --dataset=fashion_mnist --subset=5000 \
        --teacher=$fashion --student=resnet_small --epochs=15 --trials=3 \
        "${ways[@]}"
}

for table in "${@:-resnet thin mobilenet more fashion_1000 fashion_5000}"; do
    for each in $table; do
        "$each"
    done
done
