"""The whole way on embedded data: train, distill, compare, export, reload.

python -m training.demo
python -m training.demo --trials=5

A trained `vgg_small` teaches a `resnet_small` 2 000 glyphs; the same student
learns alone, with the same budget and seed.
"""

import json
import pathlib
import subprocess
import sys

from absl import app, flags

import keras_mhgd
from keras_mhgd.files import write_atomically
from training import options, pictures
from training.results import describe, measure, summary
from training.run import load_network, read_metrics

options.define_positive("trials", 1, "Seeds, from 0.")
options.define_positive("epochs", 40, "Passes over the training images.")
options.define_positive("preparation_epochs", 30, "Epochs of MHAN.")
options.define_positive("subset", 2000, "Training images, of 20 000.")
flags.DEFINE_string("run", "runs/demo", "Folder of the runs.")
flags.DEFINE_string("out", "saved_models/demo", "Folder of the export.")
FLAGS = flags.FLAGS

TEACHER = "saved_models/teachers/vgg_small_glyphs.keras"


def main(argv) -> None:
    """Runs the demo."""
    folder = pathlib.Path(FLAGS.run)
    for seed in range(FLAGS.trials):
        _train("alone", seed, "--model=resnet_small")
        _train(
            "mhgd",
            seed,
            f"--teacher={TEACHER}",
            "--student=resnet_small",
            "--method=mhgd",
            f"--set=preparation_epochs={FLAGS.preparation_epochs}",
        )
    dataset = keras_mhgd.data.load("glyphs")
    teacher = measure(keras_mhgd.export.load(TEACHER), dataset)
    results = {
        way: [_result(way, seed)["accuracy"] for seed in range(FLAGS.trials)]
        for way in ("alone", "mhgd")
    }
    table = summary(teacher, results["alone"], results["mhgd"])
    write_atomically(folder / "table.md", table)
    print(f"\n{table}")

    print("Exporting the student of MHGD and reading it back:")
    student = load_network(_folder("mhgd", 0))
    files = keras_mhgd.export.export_student(
        student, FLAGS.out, dataset.normalise(dataset.x_test)
    )
    print(describe(files, len(dataset.x_test)))
    picture = folder / "result.png"
    pictures.comparison(
        picture,
        {
            name: [
                read_metrics(_folder(way, seed) / "metrics.csv")
                for seed in range(FLAGS.trials)
            ]
            for way, name in (("alone", "alone"), ("mhgd", "with MHGD"))
        },
        teacher,
        "resnet_small on glyphs, "
        f"{FLAGS.subset} training images, {FLAGS.trials} seed(s)",
    )
    print(f"\nCurves and result: {picture}")


def _folder(way: str, seed: int) -> pathlib.Path:
    return pathlib.Path(FLAGS.run) / f"{way}_seed{seed}"


def _result(way: str, seed: int) -> dict:
    return json.loads((_folder(way, seed) / "result.json").read_text())


def _train(way: str, seed: int, *arguments: str) -> None:
    command = [
        "-m",
        f"training.{'train' if way == 'alone' else 'distill'}",
        "--dataset=glyphs",
        f"--subset={FLAGS.subset}",
        *arguments,
        "--batch_size=64",
        f"--epochs={FLAGS.epochs}",
        "--schedule=cosine",
        f"--seed={seed}",
        f"--run={_folder(way, seed)}",
    ]
    print(f"\n$ python {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], check=True)


if __name__ == "__main__":
    app.run(main)
