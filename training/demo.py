"""Trains, distills, compares, exports and reloads, on embedded data.

%s

A trained `vgg_small` teaches a `resnet_small` on 2 000 glyphs by the
recommended method. For comparison, the same student also learns alone, with
the same seed and images. Each image has eight augmented views, and the teacher
runs once on each view. A third student also sees the other 18 000 glyphs
without their labels, and learns what the teacher says of them. All take as many
steps.
"""

from absl import flags

import keras_mhgd

from . import commands, options
from .messages import closing
from .reports.comparison_report import Outcome
from .runs.comparison import Comparison, Way
from .saved.trained import load_network, network_file

options.define_positive("epochs", 30, "Passes over the training samples.")
options.define_positive("preparation_epochs", 30, "Epochs of MHAN.")
options.define_positive("subset", 2000, "Training images, of 20 000.")
options.define_positive(
    "jobs", 2, "Trainings at a time. A small network leaves cores idle."
)
flags.DEFINE_string("run", "runs/demo", "Folder of the runs.")
flags.DEFINE_string("out", "saved_models/demo", "Folder of the export.")
FLAGS = flags.FLAGS

TEACHER = "vgg_small_glyphs"


def main(argv) -> None:
    """Runs the demo."""
    dataset = keras_mhgd.data.load("glyphs")
    pair = {"teacher": TEACHER, "student": "resnet_small"}
    preparation = {"mhgd_cross.preparation_epochs": FLAGS.preparation_epochs}
    # As many steps as the others take. No image is seen often enough for a
    # cache, nor is there time to prepare MHGD for all images.
    part = FLAGS.subset / len(dataset.x_train)
    ways = [
        Way("alone", "train", {"model": "resnet_small"}),
        Way(
            "recommended",
            "distill",
            pair
            | {
                "method": "recommended",
                "set": preparation,
                "cache_teacher": True,
            },
        ),
        Way(
            "soft_logits, all images",
            "distill",
            pair
            | {
                "method": "soft_logits",
                "unlabeled": "rest",
                "epochs": max(1, round(FLAGS.epochs * part)),
                "validation_freq": 1,
            },
        ),
    ]
    comparison = Comparison(
        FLAGS.run,
        ways,
        {
            "dataset": "glyphs",
            "subset": FLAGS.subset,
            "batch_size": 64,
            "epochs": FLAGS.epochs,
            "learning_rate": 0.4,  # the best one: see docs/evidence.md
            "schedule": "cosine",
            "views": 8,
            "validation_freq": 5,
        },
    )
    comparison.run(1, FLAGS.jobs)
    finished = comparison.finished(1)
    outcome = Outcome(
        comparison.directory,
        finished,
        network_file(TEACHER),
        dataset,
        f"resnet_small on {FLAGS.subset} glyphs",
    )
    outcome.write({}, "")
    print(f"\n{outcome.text}")

    print("Exporting the distilled student and reading it back:")
    files = keras_mhgd.export.export_student(
        load_network(comparison.folder(ways[-1], 0)),
        FLAGS.out,
        dataset.normalise(dataset.x_test),
        labels=dataset.y_test,
        serving=keras_mhgd.export.Serving(
            dataset.mean, dataset.std, dataset.classes
        ),
    )
    print(*files, sep="\n")
    print(f"\nCurves and result: {comparison.directory}/report.html")
    print(closing.of_comparison(outcome.rows, outcome.teacher, finished))
    print(
        closing.next_steps(
            ("evaluate", {"dataset": "glyphs", "model": files[-1].path})
        )
    )
    print(f"For data of your own, see {commands.called('distill')} --help.")


if __name__ == "__main__":
    commands.run(main)
