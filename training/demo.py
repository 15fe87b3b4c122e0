"""Trains, distills, compares, exports and reloads, on embedded data.

%s

A trained `vgg_small` teaches a `resnet_small` on 2 000 glyphs by the
recommended method. For comparison, the same student also learns alone, with
the same budget, seed and images. Each image has eight augmented views, and the
teacher runs once on each view.
"""

from absl import flags

import keras_mhgd

from . import commands, options
from .reports.comparison_report import Outcome
from .runs.comparison import Comparison, Way
from .saved.trained import load_network, network_file

options.define_positive("epochs", 40, "Passes over the training images.")
options.define_positive("preparation_epochs", 40, "Epochs of MHAN.")
options.define_positive("subset", 2000, "Training images, of 20 000.")
options.define_positive(
    "jobs", 2, "Trainings at a time: a small network leaves cores idle."
)
flags.DEFINE_string("run", "runs/demo", "Folder of the runs.")
flags.DEFINE_string("out", "saved_models/demo", "Folder of the export.")
FLAGS = flags.FLAGS

TEACHER = "saved_models/teachers/vgg_small_glyphs.keras"


def main(argv) -> None:
    """Runs the demo."""
    alone = Way("alone", "train", {"model": "resnet_small"})
    epochs = {"mhgd_cross.preparation_epochs": FLAGS.preparation_epochs}
    recommended = Way(
        "recommended",
        "distill",
        {
            "teacher": TEACHER,
            "student": "resnet_small",
            "method": "recommended",
            "set": epochs,
            "cache_teacher": True,
        },
    )
    comparison = Comparison(
        FLAGS.run,
        [alone, recommended],
        {
            "dataset": "glyphs",
            "subset": FLAGS.subset,
            "batch_size": 64,
            "epochs": FLAGS.epochs,
            "schedule": "cosine",
            "views": 8,
            "validation_freq": 5,
        },
    )
    comparison.run(1, FLAGS.jobs)
    dataset = keras_mhgd.data.load("glyphs")
    outcome = Outcome(
        comparison.directory,
        comparison.finished(1),
        network_file(TEACHER),
        dataset,
        f"resnet_small on {FLAGS.subset} glyphs",
    )
    outcome.write({}, "")
    print(f"\n{outcome.text}")

    print("Exporting the distilled student and reading it back:")
    files = keras_mhgd.export.export_student(
        load_network(comparison.folder(recommended, 0)),
        FLAGS.out,
        dataset.normalise(dataset.x_test),
        labels=dataset.y_test,
        serving=keras_mhgd.export.Serving(
            dataset.mean, dataset.std, dataset.classes
        ),
    )
    print(*files, sep="\n")
    print(f"The files: {FLAGS.out}")
    print(f"\nCurves and result: {comparison.directory}/report.html")


if __name__ == "__main__":
    commands.run(main)
