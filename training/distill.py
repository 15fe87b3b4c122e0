"""Trains a student by distillation from a trained teacher.

%s --dataset=glyphs --teacher=runs/teacher
    --student=resnet_small --method=mhgd --epochs=40 --run=runs/mhgd
"""

from absl import flags

import keras_mhgd
from keras_mhgd.reuse.teacher_cache import fingerprint, fingerprint_of

from . import commands, options
from .messages import closing, opening
from .runs.interruption import Interruption
from .runs.run import Run, damage_named
from .saved.trained import load_network

options.define_data()
options.define_training()
flags.DEFINE_string(
    "teacher",
    None,
    "Run folder, .keras file, or a preset. Presets: "
    f"{', '.join(keras_mhgd.presets.names())}.",
)
flags.DEFINE_string(
    "student",
    None,
    "Network, such as resnet_small. One of "
    f"{', '.join(keras_mhgd.models.names())}.",
)
flags.DEFINE_string(
    "method",
    "mhgd",
    "Method, several joined by +, or recommended. Any of "
    f"{', '.join(keras_mhgd.methods.names())}.",
)
flags.DEFINE_multi_string(
    "set",
    [],
    "An argument of the method, such as --set=num_heads=4. Of one of several "
    "methods, such as --set=mhgd.num_heads=4. May be given several times.",
)
flags.DEFINE_list(
    "sensing_points",
    None,
    "Layers, front end first. A name that both networks have, or "
    "student_layer:teacher_layer. Stage ends if not given.",
)
flags.DEFINE_enum(
    "nonfinite",
    "raise",
    ["raise", "skip"],
    "What follows a loss or gradient that is not finite. The training ends, "
    "or the step is undone and counted. A run may go on with the other.",
)
flags.DEFINE_boolean(
    "cache_teacher",
    False,
    "Run the teacher once for all --views, and keep what methods read.",
)
flags.DEFINE_string(
    "cache_dir",
    None,
    "Folder of --cache_teacher, for other runs as well. In memory if not "
    "given.",
)
flags.DEFINE_enum(
    "cache_dtype",
    "float32",
    ["float32", "float16"],
    "What --cache_teacher keeps. Exact features, or rounded ones in half the "
    "space.",
)
options.define_positive(
    "cache_top_k",
    None,
    "Number of the largest logits that --cache_teacher keeps of each sample. "
    "The other classes share the rest of the probability. All if not given.",
)
flags.DEFINE_string(
    "preparation_dir",
    None,
    "Folder of networks that methods learn from the teacher alone. They are "
    "used if they are there, and left there if not.",
)
flags.DEFINE_boolean(
    "gradient_norms",
    False,
    "Measure the norms of both gradients, and the share that is clipped. This "
    "takes backward passes beside the training's, which stays the same.",
)
flags.mark_flags_as_required(["teacher", "student"])
flags.register_multi_flags_validator(
    ["cache_teacher", "cache_top_k"],
    lambda values: values["cache_teacher"] or not values["cache_top_k"],
    "--cache_top_k needs --cache_teacher.",
)
flags.register_multi_flags_validator(
    ["cache_teacher", "views"],
    lambda values: values["views"] or not values["cache_teacher"],
    "--cache_teacher needs a number of --views.",
)
FLAGS = flags.FLAGS


def main(argv) -> None:
    """Distills the student that the flags name."""
    with Interruption() as interruption:
        _main(interruption)


def _main(interruption: Interruption) -> None:
    run = Run(
        FLAGS.run,
        options.configuration(
            "teacher",
            "student",
            "method",
            "set",
            "sensing_points",
            "cache_teacher",
            "cache_dtype",
            "cache_top_k",
            "preparation_dir",
            program="distill",
        ),
    )
    if not run.result:
        with options.strategy().scope():
            _distill(run, interruption)
    print(closing.of_run(run.directory, run.result))


def _distill(run: Run, interruption: Interruption) -> None:
    methods = options.methods(FLAGS.method, FLAGS.set)
    teacher = load_network(FLAGS.teacher)
    if FLAGS.fused:
        keras_mhgd.models.fuse_batch_normalization(teacher)
    # Sets the seed only now: random numbers drawn while the teacher is loaded
    # don't change the student's initial weights.
    options.start()
    dataset = options.load_training_data()
    student = options.network(FLAGS.student, dataset)
    distiller = keras_mhgd.Distiller(
        student,
        teacher,
        methods,
        options.sensing_points(FLAGS.sensing_points),
        gradient_norms=FLAGS.gradient_norms,
    )
    options.compile_model(distiller, dataset, nonfinite=FLAGS.nonfinite)
    if keras_mhgd.distribution.is_chief():
        with damage_named(dataset):
            teaching = run.measured_teacher(distiller, dataset)
        print(
            opening.of_distillation(
                distiller, teaching, dataset, run.config, run.directory
            )
        )
    preparations = None
    if FLAGS.preparation_dir:
        preparations = keras_mhgd.Preparations(
            FLAGS.preparation_dir,
            {
                "teacher": fingerprint(*teacher.get_weights()),
                "sensing_points": [
                    name for _, name in distiller.sensing_points
                ],
                "data": fingerprint_of(dataset),
                "batch_size": FLAGS.batch_size,
                "views": FLAGS.views,
                "dtype": FLAGS.cache_teacher and FLAGS.cache_dtype,
            },
        )
    cache = None
    if FLAGS.cache_teacher:
        with damage_named(dataset):
            cache = keras_mhgd.TeacherCache(
                distiller,
                dataset,
                FLAGS.batch_size,
                FLAGS.views,
                FLAGS.seed,
                FLAGS.cache_dir,
                FLAGS.cache_dtype,
                verbose=True,
                top_k=FLAGS.cache_top_k,
            )
    run.fit(
        distiller,
        student,
        dataset,
        distiller.resumable_variables,
        interruption,
        cache,
        preparations,
        FLAGS.save_freq,
        options.profile(),
    )


if __name__ == "__main__":
    commands.run(main)
