"""Compares the first step of a distillation with that of the student alone.

python -m benchmarks.speed.first_steps [<rounds>]

A first step traces and optimises the graph. For three pairs of networks at 224
pixels, batch 8, each way runs in processes of its own, in turns. Methods are
prepared before. The table has the medians of the seconds, and of the ratios to
the student alone.
"""

import subprocess
import sys
import time

import keras
import numpy as np

import keras_mhgd

NETWORKS = keras.applications
PAIRS = {
    "ResNet50V2, MobileNetV3Small": (
        NETWORKS.ResNet50V2,
        NETWORKS.MobileNetV3Small,
    ),
    "Xception, MobileNetV2": (NETWORKS.Xception, NETWORKS.MobileNetV2),
    "DenseNet121, EfficientNetB0": (
        NETWORKS.DenseNet121,
        NETWORKS.EfficientNetB0,
    ),
}
WAYS = ("alone", "mhgd", "recommended")


def seconds(pair: str, way: str) -> float:
    """Measures the first step of a way."""
    teacher, student = (
        build(
            weights=None,
            classes=10,
            classifier_activation=None,
            input_shape=(224, 224, 3),
        )
        for build in PAIRS[pair]
    )
    model = student
    if way != "alone":
        model = keras_mhgd.Distiller(student, teacher, way)
        for method in model.methods:
            if method.preparation and not method.preparation.done:
                method.preparation.adopt(method.preparation.networks)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    x = np.random.default_rng(0).normal(size=(8, 224, 224, 3))
    begin = time.perf_counter()
    model.fit(x.astype("float32"), np.arange(8), batch_size=8, verbose=0)
    return time.perf_counter() - begin


def main(rounds: int) -> None:
    """Prints a line for each pair and way."""
    for pair in PAIRS:
        found = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                command = [sys.executable, "-m", __spec__.name, pair, way]
                output = subprocess.run(
                    command, stdout=subprocess.PIPE, check=True, text=True
                ).stdout
                found[way].append(float(output.split()[-1]))
        for way in WAYS:
            ratios = np.divide(found[way], found["alone"])
            print(
                f"{pair}: {way} {np.median(found[way]):.1f} s, "
                f"{np.median(ratios):.2f} of the student alone"
            )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(seconds(*sys.argv[1:]))
    else:
        main(int((sys.argv[1:] or ["3"])[0]))
