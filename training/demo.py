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

from absl import app, flags

import keras_mhgd
from training import options
from training.comparison import Comparison, Way
from training.networks import load_network
from training.outcome import Outcome

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
ALONE = Way("alone", "train", ("--model=resnet_small",))


def main(argv) -> None:
    """Runs the demo."""
    distill = (
        f"--teacher={TEACHER}",
        "--student=resnet_small",
        "--method=mhgd",
        f"--set=preparation_epochs={FLAGS.preparation_epochs}",
        "--cache_teacher",
    )
    own = (
        "--sensing_points=stage1,stage2,stage3,logits",
        "--set=scale_logits=true",
        "--set=num_heads=32",
        "--set=clipping=per_feature",
    )
    ways = [ALONE, Way("MHGD", "distill", distill + own)]
    if FLAGS.published:
        ways.append(Way("MHGD as published", "distill", distill))
    comparison = Comparison(
        FLAGS.run,
        ways,
        [
            "--dataset=glyphs",
            f"--subset={FLAGS.subset}",
            "--batch_size=64",
            f"--epochs={FLAGS.epochs}",
            "--schedule=cosine",
            "--views=8",
            "--validation_freq=5",
        ],
    )
    comparison.run(FLAGS.trials, FLAGS.jobs)
    dataset = keras_mhgd.data.load("glyphs")
    outcome = Outcome(
        comparison,
        FLAGS.trials,
        TEACHER,
        dataset,
        f"resnet_small on {FLAGS.subset} glyphs, "
        f"{FLAGS.trials} trial{'s' * (FLAGS.trials > 1)}",
    )
    outcome.write({}, "")
    print(f"\n{outcome.text}")

    print("Exporting the student of MHGD and reading it back:")
    files = keras_mhgd.export.export_student(
        load_network(comparison.folder(ways[1], 0)),
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
    app.run(main)
