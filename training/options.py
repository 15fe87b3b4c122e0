"""Defines the flags that the programs share, and reads their values.

A flag has the same meaning in every program.
"""

import json
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import keras_mhgd
from keras_mhgd import features
from keras_mhgd.data import random_layers
from keras_mhgd.methods import Method
from keras_mhgd.transfer import require_one_rule

from .runs.flags import parsed

FLAGS = flags.FLAGS


def _mirrored() -> tf.distribute.Strategy:
    count = FLAGS.cpu_devices
    if not count:
        return tf.distribute.MirroredStrategy()
    (processor,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        processor, [tf.config.LogicalDeviceConfiguration()] * count
    )
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def _multi_worker() -> tf.distribute.Strategy:
    if "TF_CONFIG" not in os.environ:
        raise app.UsageError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG, "
            "which names all workers and which of them this is. "
            "Received: an environment without it. Set it on each worker: see "
            "BUILD.md."
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except ValueError as error:
        raise app.UsageError(
            "--strategy=tpu needs a TPU, which the environment variable "
            f"TPU_NAME may name. Received: none ({error}). Set the variable, "
            "or choose another --strategy."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


_STRATEGIES = {
    "mirrored": _mirrored,
    "multi_worker": _multi_worker,
    "tpu": _tpu,
}


def define_data() -> None:
    """Defines the flags of the data set."""
    flags.DEFINE_string(
        "dataset",
        "glyphs",
        "Data set: a name, a folder of images, or an .npz file. Names: glyphs, "
        "languages, fashion_mnist, cifar10, cifar100, tiny_imagenet, and any "
        "other of TFDS.",
    )
    flags.DEFINE_string("data_dir", None, "Folder that holds the data set.")
    flags.DEFINE_boolean("download", False, "Download a missing TFDS data set.")
    flags.DEFINE_integer(
        "subset", None, "Number of training samples used, balanced by class."
    )
    flags.register_validator(
        "subset",
        lambda value: value is None or value > 0,
        "--subset must be a positive number of samples.",
    )
    flags.DEFINE_float(
        "validation_split",
        None,
        "Part of the training samples that is held out, and tested on. It is "
        "held out before --subset, and used instead of the test samples, for "
        "example to choose settings. A teacher that was trained on it makes "
        "the results look better.",
    )
    flags.register_validator(
        "validation_split",
        lambda value: value is None or 0 < value < 1,
        "--validation_split must lie between 0 and 1.",
    )
    define_positive("batch_size", 128, "Global batch size, in samples.")
    _define_size("image_size", "Size that all images are resized to.")


def _define_size(name: str, text: str) -> None:
    flags.DEFINE_list(name, None, f"{text} In pixels: 224, or height,width.")
    flags.register_validator(
        name,
        lambda value: value is None or _is_size(value),
        f"--{name} must be a positive number, or two, such as 224 or 192,256.",
    )


def _is_size(words: list[str]) -> bool:
    return len(words) in (1, 2) and all(
        word.isdecimal() and int(word) for word in words
    )


def size(name: str) -> tuple[int, int] | None:
    """Gives a flag's height and width; `None` if it is not given."""
    words = FLAGS[name].value
    return words and (int(words[0]), int(words[-1]))


def define_training() -> None:
    """Defines the flags of a training."""
    define_positive("epochs", 100, "Passes over the training samples.")
    flags.DEFINE_enum(
        "optimizer",
        "sgd",
        ["sgd", "adam"],
        "SGD with Nesterov momentum 0.9, or Adam. Transformers need Adam. Its "
        "--learning_rate is much smaller, such as 0.001.",
    )
    flags.DEFINE_float("learning_rate", 0.1, "Learning rate at the start.")
    flags.register_validator(
        "learning_rate",
        lambda value: value > 0,
        "--learning_rate must be positive.",
    )
    flags.DEFINE_enum(
        "schedule",
        "step",
        ["step", "cosine", "constant"],
        "Learning rate over the epochs. In this order: x 0.1 at 30, 60 and "
        "80 %; half a cosine to 0; constant.",
    )
    flags.DEFINE_float(
        "weight_decay", 5e-4, "Coefficient w of the penalty w / 2 * sum v^2."
    )
    flags.register_validator(
        "weight_decay",
        lambda value: value >= 0,
        "--weight_decay must be 0 or more.",
    )
    flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.")
    define_positive(
        "views",
        None,
        "Augmented views of each sample, which the epochs cycle through. New "
        "ones each epoch if not given.",
    )
    flags.DEFINE_enum(
        "augmentation",
        None,
        list(random_layers.NAMES),
        "Views of the training images. In this order: the images; shifted "
        "crops, mirrored if the set allows it (if not given); resized crops, "
        "mirrored, in changed colours; the same with RandAugment and erasing, "
        "mixed by MixUp and CutMix.",
    )
    _define_size(
        "view_size",
        "Size of the views of --augmentation=standard or strong. The test "
        "images' if not given.",
    )
    flags.register_multi_flags_validator(
        ["view_size", "augmentation"],
        lambda values: (
            not values["view_size"]
            or values["augmentation"] in ("standard", "strong")
        ),
        "--view_size needs --augmentation=standard or strong.",
    )
    flags.DEFINE_string(
        "unlabeled",
        None,
        "Samples that teach without labels: a folder, a TFDS split, or rest. "
        "They are in each epoch. A folder holds images. rest stands for the "
        "training samples that --subset leaves out.",
    )
    flags.register_multi_flags_validator(
        ["unlabeled", "subset"],
        lambda values: values["unlabeled"] != "rest" or values["subset"],
        "--unlabeled=rest needs --subset.",
    )
    define_positive(
        "validation_freq",
        1,
        "Epochs from one test to the next. The last epoch is always tested.",
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["float32", "mixed_bfloat16", "mixed_float16"],
        "Dtype policy of networks. Keras's, for those that are built.",
    )
    flags.DEFINE_boolean(
        "fused",
        True,
        "Train with fused batch normalisation, which is faster on CPU.",
    )
    flags.DEFINE_enum(
        "strategy",
        "default",
        ["default", *_STRATEGIES],
        "What shares each batch. In this order: nothing; all GPUs of this "
        "machine; those of all machines in TF_CONFIG, each of which runs this "
        "command; a TPU.",
    )
    define_positive(
        "cpu_devices",
        None,
        "Devices that --strategy=mirrored makes of the processor. They are "
        "used instead of GPUs.",
    )
    flags.register_multi_flags_validator(
        ["cpu_devices", "strategy"],
        lambda values: (
            not values["cpu_devices"] or values["strategy"] == "mirrored"
        ),
        "--cpu_devices needs --strategy=mirrored.",
    )
    flags.DEFINE_boolean(
        "synchronized",
        True,
        "Batch normalisation by the statistics of the whole batch, on all "
        "devices together. Else by those of each device's part.",
    )
    define_positive(
        "save_freq",
        None,
        "Steps from one checkpoint to the next within an epoch. The end of an "
        "epoch has one too.",
    )
    flags.DEFINE_list(
        "profile",
        None,
        "First and last batch that TensorFlow's profiler records. Such as "
        "--profile=10,20.",
    )
    flags.register_validator(
        "profile",
        lambda value: value is None or _is_range(value),
        "--profile must be two rising batch numbers, such as 10,20.",
    )
    flags.DEFINE_string(
        "run", None, "Run folder. The same command again resumes it."
    )
    flags.mark_flag_as_required("run")


def _is_range(words: list[str]) -> bool:
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return False
    first, last = map(int, words)
    return 1 <= first <= last


def profile() -> tuple[int, int] | None:
    """Gives the first and last batch to profile, as the flags name them."""
    return FLAGS.profile and tuple(map(int, FLAGS.profile))


def define_positive(name: str, default: int | None, text: str) -> None:
    """Defines an integer flag that must be 1 or more if it is given."""
    flags.DEFINE_integer(name, default, text)
    flags.register_validator(
        name,
        lambda value: value is None or value >= 1,
        f"--{name} must be 1 or more.",
    )


def configuration(*names: str, **extra: Any) -> dict[str, Any]:
    """Collects the settings that determine a run's result.

    Args:
        *names: Names of flags to add to those of the data and the training.
        **extra: Further values, which are not flags.

    Returns:
        Plain JSON values by name.
    """
    shared = (
        "dataset data_dir subset validation_split batch_size epochs "
        "optimizer learning_rate schedule weight_decay seed views "
        "validation_freq precision fused strategy cpu_devices synchronized "
        "image_size augmentation view_size unlabeled"
    )
    values = {name: FLAGS[name].value for name in (*shared.split(), *names)}
    return json.loads(json.dumps(values | extra))


def load_data() -> keras_mhgd.data.Dataset:
    """Loads the part of a data set that the flags of the data name."""
    dataset = _whole()
    return dataset.take(FLAGS.subset) if FLAGS.subset else dataset


def load_training_data() -> keras_mhgd.data.Dataset:
    """Loads a data set with the views and images that the flags name."""
    dataset = _whole()
    if FLAGS.subset:
        rest = FLAGS.unlabeled == "rest"
        others = "unlabeled" if rest else "dropped"
        dataset = dataset.take(FLAGS.subset, others)
    if FLAGS.unlabeled not in (None, "rest"):
        if isinstance(dataset, keras_mhgd.data.Tokens):
            raise app.UsageError(
                f"--unlabeled must be rest for {dataset.name}, which holds "
                f"sequences of tokens. Received: --unlabeled={FLAGS.unlabeled}."
            )
        dataset = dataset.with_unlabeled(
            keras_mhgd.data.load_unlabeled(
                FLAGS.unlabeled,
                FLAGS.dataset,
                dataset.input_shape[:2],
                FLAGS.data_dir,
            )
        )
    if dataset.unlabeled:
        print(
            f"{dataset.unlabeled:,} of {len(dataset.x_train):,} training "
            f"{dataset.kind} have no labels."
        )
    if not isinstance(dataset.x_train, np.ndarray):
        print(
            f"Reads {len(dataset.x_train):,} training {dataset.kind} of "
            f"{dataset.name} when they are needed: in memory they would take "
            f"{dataset.x_train.size / 2**30:.1f} GB."
        )
    if FLAGS.augmentation:
        dataset = dataset.augmented(FLAGS.augmentation, size("view_size"))
    return dataset


def _whole() -> keras_mhgd.data.Dataset:
    dataset = keras_mhgd.data.load(
        FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        download=FLAGS.download,
        image_size=size("image_size"),
    )
    if FLAGS.validation_split:
        # The split has a fixed seed: all runs are tested on the same images.
        dataset = dataset.hold_out(FLAGS.validation_split)
    return dataset


def start() -> None:
    """Sets seed, determinism and precision; call it before making networks."""
    keras.utils.set_random_seed(FLAGS.seed)
    tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy(FLAGS.precision)


def strategy() -> tf.distribute.Strategy:
    """Makes the distribution strategy that the flags name.

    Call it before TensorFlow does anything else. A program builds and trains
    its models in the strategy's scope.
    """
    if FLAGS.strategy == "default":
        return tf.distribute.get_strategy()
    made = _STRATEGIES[FLAGS.strategy]()
    count = made.num_replicas_in_sync
    if FLAGS.batch_size % count:
        raise app.UsageError(
            "--batch_size must be a multiple of the number of devices that "
            f"share a batch. Received: --batch_size={FLAGS.batch_size}, "
            f"{count} devices."
        )
    return made


def network(name: str, dataset: keras_mhgd.data.Dataset) -> keras.Model:
    """Builds one of the library's networks for a data set."""
    shape = dataset.input_shape
    if dataset.view_shape != shape:
        shape = (None, None, shape[2])
    words = isinstance(dataset, keras_mhgd.data.Tokens)
    network = keras_mhgd.models.get(
        name,
        shape,
        dataset.num_classes,
        weight_decay=FLAGS.weight_decay,
        num_tokens=len(dataset.tokens) if words else None,
    )
    if FLAGS.strategy != "default" and FLAGS.synchronized:
        keras_mhgd.models.synchronize_batch_normalization(network)
    elif FLAGS.fused:
        keras_mhgd.models.fuse_batch_normalization(network)
    return network


def compile_model(
    model: keras.Model, dataset: keras_mhgd.data.Dataset, **arguments: Any
) -> None:
    """Compiles a model for cross-entropy with the flags' optimizer.

    Args:
        model: The model to train.
        dataset: The data, which says how many steps an epoch has.
        **arguments: Further arguments of `model.compile`.
    """
    model.compile(
        optimizer(FLAGS.learning_rate, dataset), **dataset.task(), **arguments
    )


def optimizer(
    rate: float, dataset: keras_mhgd.data.Dataset
) -> keras.optimizers.Optimizer:
    """Makes the flags' optimizer: SGD with Nesterov momentum 0.9, or Adam.

    The first is that of the published trainings.

    Args:
        rate: Learning rate at the start of the flags' schedule.
        dataset: The data, which says how many steps an epoch has.

    Returns:
        The optimizer.
    """
    steps = FLAGS.epochs * dataset.steps_per_epoch(FLAGS.batch_size)
    if FLAGS.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    elif FLAGS.schedule == "step":
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [round(steps * part) for part in (0.3, 0.6, 0.8)],
            [rate * factor for factor in (1.0, 0.1, 0.01, 0.001)],
        )
    if FLAGS.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)


def methods(name: str, arguments: list[str]) -> list[Method]:
    """Makes methods from their name and arguments.

    Args:
        name: One of `keras_mhgd.methods.names()`, several joined by `+`, or
            recommended.
        arguments: `name=value` if there is one method, or
            `method.name=value`, alone or among several methods.

    Returns:
        The methods.
    """
    values = method_arguments(arguments, name)
    parts = keras_mhgd.methods.parts(name)
    made = [_with_arguments(part, values) for part in parts]
    require_one_rule(made)
    return made


def method_arguments(
    arguments: list[str], name: str = ""
) -> dict[str, dict[str, Any]]:
    """Parses arguments of methods into values by method and argument.

    Args:
        arguments: `method.name=value`, or `name=value`.
        name: The method of the arguments that name no method.
    """
    values = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        owner, dot, key = key.rpartition(".")
        owner = owner if dot else name
        if not separator or owner not in keras_mhgd.methods.names():
            form = "method.name=value"
            if name:
                form = f"name=value, or {form} where there are several methods"
            raise app.UsageError(
                f"--set must be {form}. Received: --set={argument}."
            )
        values.setdefault(owner, {})[key] = parsed(value)
    return values


def sensing_points(layers: list[str] | None) -> features.SensingPoints:
    """Parses sensing points: names, or `student_layer:teacher_layer`."""
    if layers is None:
        return None
    return [
        tuple(point.split(":")) if ":" in point else point for point in layers
    ]


def _with_arguments(
    default: keras_mhgd.methods.Method, given: dict[str, dict[str, Any]]
) -> keras_mhgd.methods.Method:
    name = keras_mhgd.methods.name_of(default)
    values = given.get(name, {})
    config = default.get_config()
    if values.keys() - config.keys():
        raise app.UsageError(
            f"--set must name an argument of {name}: {', '.join(config)}. "
            f"Received: {', '.join(values.keys() - config.keys())}."
        )
    return type(default).from_config(config | values)
