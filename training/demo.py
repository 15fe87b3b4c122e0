"""The whole way on embedded data: train, distill, compare, export, reload.

python -m training.demo
python -m training.demo --trials=5 --run=runs/table

A trained `vgg_small` teaches a `resnet_small` 2 000 glyphs; the same student
learns alone, with the same budget, seed and images: eight augmented views of
each, for which the teacher runs once. MHGD differs from the published
settings in four: the networks' logits are a fourth sensing point, attention
logits are divided by the square root of a head's width, there are 32 heads,
and the transfer is clipped where it enters the student. On so few images the
heads hardly train; eight of them leave it open how the student's features are
turned, and some seeds then gain little.
"""

import concurrent.futures
import pathlib
import subprocess
import sys

from absl import app, flags

import keras_mhgd
from keras_mhgd.files import write_atomically
from training import options, pictures
from training.results import (
    describe,
    measure,
    read_metrics,
    read_result,
    summary,
)
from training.run import load_network

options.define_positive("trials", 1, "Seeds, from 0.")
options.define_positive("epochs", 40, "Passes over the training images.")
options.define_positive("preparation_epochs", 30, "Epochs of MHAN.")
options.define_positive("subset", 2000, "Training images, of 20 000.")
options.define_positive(
    "jobs", 2, "Trainings at a time: a small network leaves cores idle."
)
flags.DEFINE_boolean(
    "published", False, "Also MHGD with the published settings throughout."
)
flags.DEFINE_string("run", "runs/demo", "Folder of the runs.")
flags.DEFINE_string("out", "saved_models/demo", "Folder of the export.")
FLAGS = flags.FLAGS

TEACHER = "saved_models/teachers/vgg_small_glyphs.keras"
DISTILL = (
    "distill",
    f"--teacher={TEACHER}",
    "--student=resnet_small",
    "--method=mhgd",
)
# For each way of training: the program and its own arguments.
WAYS = {
    "alone": ("train", "--model=resnet_small"),
    "MHGD": (
        *DISTILL,
        "--sensing_points=stage1,stage2,stage3,logits",
        "--set=scale_logits=true",
        "--set=num_heads=32",
        "--set=clipping=per_feature",
    ),
}
PUBLISHED = {"MHGD as published": DISTILL}


def main(argv) -> None:
    """Runs the demo."""
    ways = WAYS | (PUBLISHED if FLAGS.published else {})
    with concurrent.futures.ThreadPoolExecutor(FLAGS.jobs) as pool:
        trainings = [
            pool.submit(_train, way, arguments, seed)
            for seed in range(FLAGS.trials)
            for way, arguments in ways.items()
        ]
    for training in trainings:
        training.result()
    runs = {
        way: [_folder(way, seed) for seed in range(FLAGS.trials)]
        for way in ways
    }
    dataset = keras_mhgd.data.load("glyphs")
    teacher = measure(keras_mhgd.export.load(TEACHER), dataset)
    accuracies = {
        way: [read_result(folder)["accuracy"] for folder in folders]
        for way, folders in runs.items()
    }
    table = summary(teacher, accuracies)
    write_atomically(pathlib.Path(FLAGS.run) / "table.md", table)
    print(f"\n{table}")

    print("Exporting the student of MHGD and reading it back:")
    files = keras_mhgd.export.export_student(
        load_network(runs["MHGD"][0]),
        FLAGS.out,
        dataset.normalise(dataset.x_test),
    )
    print(describe(files, len(dataset.x_test)))
    picture = pathlib.Path(FLAGS.run) / "result.png"
    pictures.comparison(
        picture,
        {
            way: [read_metrics(folder / "metrics.csv") for folder in folders]
            for way, folders in runs.items()
        },
        teacher,
        f"resnet_small on {FLAGS.subset} glyphs, {FLAGS.trials} seed(s)",
    )
    print(f"\nCurves and result: {picture}")


def _folder(way: str, seed: int) -> pathlib.Path:
    return pathlib.Path(FLAGS.run, f"{way.lower().replace(' ', '_')}_{seed}")


def _train(way: str, arguments: tuple[str, ...], seed: int) -> None:
    folder = _folder(way, seed)
    program, *own = arguments
    if program == "distill":
        own.append(f"--set=preparation_epochs={FLAGS.preparation_epochs}")
        own.append("--cache_teacher")
    command = [
        "-m",
        f"training.{program}",
        "--dataset=glyphs",
        f"--subset={FLAGS.subset}",
        *own,
        "--batch_size=64",
        f"--epochs={FLAGS.epochs}",
        "--schedule=cosine",
        "--views=8",
        "--validation_freq=5",
        f"--seed={seed}",
        f"--run={folder}",
    ]
    print(f"$ python {' '.join(command)}\n", flush=True)
    with subprocess.Popen(
        [sys.executable, "-u", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            print(f"{folder.name:>7} | {line}", end="", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


if __name__ == "__main__":
    app.run(main)
