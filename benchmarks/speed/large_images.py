"""Compares the steps of a distillation with those of the student alone.

python -m benchmarks.speed.large_images [<rounds>]

A first step traces and optimises the graph. For three pairs of networks at 224
pixels, batch 8, each way runs in processes of its own, in turns. Methods are
prepared before. A line has the medians of the seconds, and of the ratios to the
student alone with the least and the largest one: for the first step, and for
the median of the steps after it.
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
NARROW = "review_kd, 256 channels"  # published for MobileNet on ImageNet
WAYS = ("alone", "mhgd", "recommended", "review_kd", NARROW)
LATER = 6  # steps after the first one


class Clock(keras.callbacks.Callback):
    """Notes when each step ends."""

    def __init__(self):
        super().__init__()
        self.times = [time.perf_counter()]

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())


def seconds(pair: str, way: str) -> tuple[float, float]:
    """Measures the first step of a way, and the median of later ones."""
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
        method = keras_mhgd.methods.ReviewKD(256) if way == NARROW else way
        model = keras_mhgd.Distiller(student, teacher, method)
        for method in model.methods:
            if method.preparation and not method.preparation.done:
                method.preparation.adopt(method.preparation.networks)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    count = 8 * (1 + LATER)
    x = np.random.default_rng(0).normal(size=(count, 224, 224, 3))
    clock = Clock()
    model.fit(
        x.astype("float32"),
        np.arange(count) % 10,
        batch_size=8,
        verbose=0,
        callbacks=[clock],
    )
    first, *later = np.diff(clock.times)
    return first, np.median(later)


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
                found[way].append([float(each) for each in output.split()[-2:]])
        for way in WAYS:
            ratios = np.divide(found[way], found["alone"])
            for index, name in enumerate(("first step", "later steps")):
                ratio = ratios[:, index]
                print(
                    f"{pair}: {way}, {name}: "
                    f"{np.median(found[way], axis=0)[index]:.2f} s, "
                    f"{np.median(ratio):.2f} ({ratio.min():.2f} to "
                    f"{ratio.max():.2f}) of the student alone",
                    flush=True,
                )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(*seconds(*sys.argv[1:]))
    else:
        main(int((sys.argv[1:] or ["3"])[0]))
