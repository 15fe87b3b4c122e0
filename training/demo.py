"""The whole way on embedded data: train, distill, compare, export, reload.

python -m training.demo
python -m training.demo --trials=5

A trained `vgg_small` teaches a `resnet_small` 2 000 glyphs; the same student
learns alone, with the same budget and seed.
"""

import json
import pathlib
import statistics
import subprocess
import sys

from absl import app, flags

import keras_mhgd
from keras_mhgd.files import write_atomically
from training import evaluate, export, options, pictures
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
    teacher = evaluate.measure(keras_mhgd.export.load(TEACHER), dataset)
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
    print(export.describe(files, len(dataset.x_test)))
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


def summary(teacher: float, alone: list[float], mhgd: list[float]) -> str:
    """Makes the table of accuracies, in percent, of the last epoch.

    Args:
        teacher: Test accuracy of the teacher, fraction.
        alone: Of the student alone, one for each seed.
        mhgd: Of the student with MHGD, one for each seed.

    Returns:
        Markdown.
    """
    gains = [100 * (b - a) for a, b in zip(alone, mhgd, strict=True)]
    gap = 100 * (teacher - statistics.mean(alone))
    seeds = range(len(alone))
    rows = [
        ["", *(f"seed {seed}" for seed in seeds), "mean ± deviation"],
        ["---"] * (len(alone) + 2),
        _row("student alone", [100 * value for value in alone], ".2f"),
        _row("student with MHGD", [100 * value for value in mhgd], ".2f"),
        _row("difference", gains, "+.2f"),
    ]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"{lines}\n\nTest accuracy in %, last epoch. Teacher: "
        f"{100 * teacher:.2f}. Gap closed: "
        f"{statistics.mean(gains) / gap:.0%}.\n"
    )


def _row(name: str, values: list[float], form: str) -> list[str]:
    mean = format(statistics.mean(values), form)
    if len(values) > 1:
        mean += f" ± {statistics.stdev(values):.2f}"
    return [name, *(format(value, form) for value in values), mean]


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
