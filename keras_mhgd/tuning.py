"""Searches over the settings of a distillation with keras-tuner's tuners."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import keras_tuner
import tensorflow as tf

from keras_mhgd import methods
from keras_mhgd.callbacks import Checkpoint
from keras_mhgd.checks import require_known
from keras_mhgd.data import Dataset
from keras_mhgd.distiller import Distiller
from keras_mhgd.features import SensingPoints
from keras_mhgd.reuse.preparations import Preparations
from keras_mhgd.reuse.teacher_cache import (
    TeacherCache,
    fingerprint,
    fingerprint_of,
)
from keras_mhgd.storage.files import require_writable, write_atomically

__all__ = ["DistillationHyperModel", "search_method"]

# A method's weight is searched between its default divided by this factor and
# its default times this factor.
_WEIGHT_FACTOR = 8.0

# The arguments that are searched besides the weight. A list holds the choices.
# `bool` stands for true or false. A pair holds the ends of a range, from which
# the logarithm is sampled uniformly.
_CLIP = {
    "clipping": ["per_variable", "per_feature"],
    "clip_bound": (0.25, 4.0),
}
_HEADS = {"num_heads": [4, 8, 16, 32], "scale_logits": bool}
_ARGUMENTS = {
    "mhgd": {**_HEADS, **_CLIP},
    "mhgd_cross": {**_HEADS, **_CLIP},
    "soft_logits": {"temperature": (1.0, 16.0)},
    "mutual_learning": {"temperature": (0.5, 4.0)},
    "dkd": {"beta": (1.0, 32.0), "temperature": (1.0, 16.0)},
    "dist": {
        "beta": (0.25, 4.0),
        "gamma": (0.25, 4.0),
        "temperature": (0.5, 4.0),
    },
    "nkd": {"gamma": (0.25, 8.0), "temperature": (0.5, 8.0)},
    "ttm": {"temperature": (1.0, 20.0)},
    "wttm": {"temperature": (1.0, 20.0)},
    "rld": {"beta": (0.5, 32.0), "temperature": (1.0, 16.0)},
    "ea_kd": {"temperature": (1.0, 8.0)},
    "activation_boundaries": {"margin": (0.25, 4.0)},
    "factor_transfer": {"rate": [0.25, 0.5, 0.75]},
    "kd_svd": {"bandwidth": (2.0, 32.0), **_CLIP},
    "kd_svdf": _CLIP,
    "rkd": {"distance_weight": (3.0, 200.0), "angle_weight": (6.0, 400.0)},
    "correlation_congruence": {"gamma": (0.1, 1.6)},
    "crd": {"temperature": (0.02, 0.3)},
    "srd": {"exponent": (1.0, 8.0)},
    "sdd": {"complementary": (0.5, 8.0)},
    "skd": {"temperature": (1.0, 16.0), "tikhonov": (0.01, 1.0)},
}


def search_method(
    hp: keras_tuner.HyperParameters,
    name: str,
    fixed: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[methods.Method]:
    """Makes methods with arguments that the search chooses.

    The search covers each method's weight and the arguments that are known to
    matter. These are, for example, the heads, their scaling and the clipping of
    MHGD, and the temperature of methods on logits. The method's defaults are
    the search's defaults.

    Args:
        hp: The hyperparameters of a trial.
        name: One of `keras_mhgd.methods.names()`, several joined by `+`, or
            `"recommended"`.
        fixed: Arguments that are not searched: for each method's name, a dict
            of the values by argument.

    Returns:
        The methods.

    Raises:
        ValueError: If a method or one of its arguments is unknown.

    Example:
        >>> hp = keras_tuner.HyperParameters()
        >>> method = keras_mhgd.tuning.search_method(
        ...     hp, "soft_logits", {"soft_logits": {"standardize": True}}
        ... )
        >>> hp.values
        {'weight': 0.9, 'temperature': 4.0}
    """
    parts = methods.parts(name)
    if len(parts) == 1:
        return [_searched(hp, *parts, fixed or {})]
    made = []
    for part in parts:
        with hp.name_scope(methods.name_of(part)):
            made.append(_searched(hp, part, fixed or {}))
    return made


def _searched(hp, default, fixed) -> methods.Method:
    """Makes one method with the arguments that the search chooses."""
    name = methods.name_of(default)
    config = default.get_config()
    given = fixed.get(name, {})
    for argument in given:
        require_known("fixed", argument, config)
    weights = default.weight / _WEIGHT_FACTOR, default.weight * _WEIGHT_FACTOR
    searched = {"weight": weights} | _ARGUMENTS.get(name, {})
    chosen = {
        argument: _choose(hp, argument, among, config[argument])
        for argument, among in searched.items()
        if argument not in given
    }
    return type(default)(**(config | chosen | given))


def _choose(hp, name, among, default):
    if among is bool:
        return hp.Boolean(name, default=default)
    if isinstance(among, list):
        return hp.Choice(name, among, default=default)
    return hp.Float(name, *among, sampling="log", default=default)


def _sgd(learning_rate: float) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)


class DistillationHyperModel(keras_tuner.HyperModel):
    """Builds and trains the distillations that a `keras_tuner` tuner tries.

    A trial chooses a method, its arguments (see `search_method`) and a learning
    rate. Where alternatives are given, it also chooses sensing points and a
    student. All trials have the same seed, so they see the same images and
    begin with the same student. A second execution of a trial would only repeat
    the first.

    Through `directory`, trials share everything that doesn't depend on the
    trial, also between processes and hosts that search together. They share
    networks that are learnt from the teacher alone, such as MHAN, which are
    trained once for each of their settings. With `views`, they also share the
    teacher's features.

    A trial that was killed resumes from `directory` after its last finished
    epoch. A trial of Hyperband that is given more epochs resumes exactly, with
    the state of optimizer and method. The tuner's own file of a trial holds
    only the student. After a kill, it holds the student of the best epoch since
    then. A trial fails if a loss or gradient is not finite, and the search
    continues.

    Args:
        teacher: The trained network.
        student: A network, which is copied and initialised anew for each
            trial, or a function that builds it from the trial's
            hyperparameters.
        data: The data. Trials are compared on its test images: see
            `keras_mhgd.data.Dataset.hold_out`.
        directory: Folder of the files that trials share. Each search needs its
            own.
        methods: Names of methods to choose from. One name may join several
            methods by `+`.
        learning_rate: Lowest and highest learning rate, of which the logarithm
            is sampled uniformly; or a fixed learning rate.
        sensing_points: As for `Distiller`; or a dict of alternatives by name,
            from which a trial chooses.
        space: Function of the hyperparameters and a method's name that makes
            the method. The hyperparameters that it adds belong to that method
            alone.
        optimizer: Function of the learning rate that makes the optimizer. The
            default is SGD with Nesterov momentum 0.9.
        loss: The student's task loss. That of `data.task()` if `None`.
        batch_size: Images in a batch.
        views: Number of augmented views of each image, for which the teacher
            runs only once. With `None`, each epoch has new views, and the
            teacher runs in every step.
        seed: Seed of the weights, the order of images and the augmentation.

    Raises:
        TypeError: If `student` is neither a network nor a function, or if
            `space` makes no method.
        ValueError: If a name is unknown or a number out of range.
        OSError: If the folder can't be written.

    Example:
        >>> glyphs = keras_mhgd.data.load("glyphs", subset=200).hold_out(0.5)
        >>> hypermodel = keras_mhgd.tuning.DistillationHyperModel(
        ...     teacher=keras_mhgd.models.get("vgg_small", (28, 28, 1), 100),
        ...     student=keras_mhgd.models.get("resnet_small", (28, 28, 1), 100),
        ...     data=glyphs,
        ...     directory="search/shared",
        ...     methods=["soft_logits", "dkd"],
        ... )
        >>> tuner = keras_tuner.RandomSearch(
        ...     hypermodel, "val_accuracy", max_trials=1, directory="search"
        ... )
        >>> tuner.search(epochs=1, verbose=0)
        >>> distiller = tuner.get_best_models()[0]
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model
        | Callable[[keras_tuner.HyperParameters], keras.Model],
        data: Dataset,
        directory: str | os.PathLike,
        methods: Sequence[str] = ("soft_logits", "mhgd"),
        learning_rate: float | tuple[float, float] = (0.02, 0.5),
        sensing_points: SensingPoints | Mapping[str, SensingPoints] = None,
        space: Callable[
            [keras_tuner.HyperParameters, str],
            methods.Method | Sequence[methods.Method],
        ] = search_method,
        optimizer: Callable[[float], keras.optimizers.Optimizer] = _sgd,
        loss: keras.losses.Loss | None = None,
        batch_size: int = 128,
        views: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if not callable(student):  # a network is callable too
            raise TypeError(
                "`student` must be a keras.Model or a function of "
                f"hyperparameters that builds one. Received: {student!r}."
            )
        _require_range(learning_rate)
        self.teacher = teacher
        self.student = student
        self.data = data
        self.directory = require_writable(directory)
        self.methods = list(methods)
        self.learning_rate = learning_rate
        self.sensing_points = sensing_points
        self.space = space
        self.optimizer = optimizer
        self.task = data.task()
        if loss:
            self.task["loss"] = loss
        self.batch_size = batch_size
        self.views = views
        self.seed = seed
        # Tuners reset Keras's global state, to which the dtype policy belongs.
        self._dtype_policy = keras.config.dtype_policy()
        # Wrong arguments must raise here. Within a trial, the tuner would only
        # count the error as a failed trial.
        self._stream(0)
        self._require_methods()

    def _require_methods(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(
                "`methods` must be one or more different names. Received: "
                f"methods={self.methods}."
            )
        for name in self.methods:
            made = self.space(keras_tuner.HyperParameters(), name)
            several = made if isinstance(made, (list, tuple)) else [made]
            if not all(isinstance(each, methods.Method) for each in several):
                raise TypeError(
                    "`space` must make a keras_mhgd.methods.Method. Received: "
                    f"{made!r} for {name!r}."
                )

    def methods_of(
        self, hp: keras_tuner.HyperParameters
    ) -> list[methods.Method]:
        """Makes the methods of a trial.

        Args:
            hp: The trial's hyperparameters. The choices of a method and of its
                arguments are added.

        Returns:
            The methods of the name that the trial chooses.
        """
        chosen = hp.Choice("method", self.methods)
        method = None
        for name in self.methods:
            # A tuner knows only scopes that were opened, so all are opened.
            with hp.conditional_scope("method", [name]), hp.name_scope(name):
                if name == chosen:
                    method = self.space(hp, name)
        return methods.parts(method)

    def build(self, hp: keras_tuner.HyperParameters) -> Distiller:
        """Builds and compiles the distiller of a trial.

        Args:
            hp: The trial's hyperparameters. Its choices are added.

        Returns:
            The compiled distiller. Its `save_weights` and `load_weights` are
            the student's.
        """
        keras.config.set_dtype_policy(self._dtype_policy)
        keras.utils.set_random_seed(self.seed)
        made = self.methods_of(hp)
        learns = any(each.trains_teacher for each in made)
        distiller = Distiller(
            self._student(hp),
            _copy(self.teacher) if learns else self.teacher,
            made,
            self._sensing_points(hp),
        )
        rate = self.learning_rate
        if isinstance(rate, Sequence):
            rate = hp.Float("learning_rate", *rate, sampling="log")
        distiller.compile(self.optimizer(rate), **self.task)
        # By these methods the tuner saves and loads the weights of a trial. A
        # trial needs only the student's.
        distiller.save_weights = distiller.student.save_weights
        distiller.load_weights = distiller.student.load_weights
        return distiller

    def _student(self, hp) -> keras.Model:
        if isinstance(self.student, keras.Model):
            return keras.models.clone_model(self.student)
        return self.student(hp)

    def _sensing_points(self, hp) -> SensingPoints:
        if not isinstance(self.sensing_points, Mapping):
            return self.sensing_points
        name = hp.Choice("sensing_points", list(self.sensing_points))
        return self.sensing_points[name]

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: Distiller,
        epochs: int = 1,
        initial_epoch: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int | str = "auto",
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the distiller of a trial, or resumes a killed trial.

        Args:
            hp: The trial's hyperparameters.
            model: The distiller that `build` made.
            epochs: Last epoch.
            initial_epoch: Number of epochs that an earlier trial has finished.
            callbacks: The tuner's callbacks. A progress bar among them shows
                the preparation, too.
            verbose: As in `keras.Model.fit`.
            **kwargs: Other arguments of `keras.Model.fit`.

        Returns:
            The history of the epochs from `initial_epoch` on.
        """
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
        folder = self.directory / "trials" / self._key(hp, model)
        progress = _Progress(folder, model)
        start = progress.restore().epochs
        if start < initial_epoch:
            raise keras_tuner.errors.FatalValueError(
                "`directory` must hold the trial that this one goes on with. "
                f"Received: directory={str(self.directory)!r}, which has "
                f"{start} of its {initial_epoch} epochs. All processes of a "
                "search need the same folder."
            )
        if start and verbose:
            print(f"Resuming the trial after epoch {start}.")
        stream = self._stream
        if self.views and not model.trains_teacher:
            stream = self._cache(model).train
        data = {
            "steps_per_epoch": self.data.steps_per_epoch(self.batch_size),
            "shuffle": False,  # the stream is shuffled already
            "verbose": verbose,
        }
        if not model.prepared:
            bars = [
                each
                for each in callbacks
                if isinstance(each, keras.callbacks.ProgbarLogger)
            ]
            self._prepare(model, x=stream(0), callbacks=bars, **data)
            progress.save(0)
        if start < epochs:
            try:
                model.fit(
                    stream(start),
                    initial_epoch=start,
                    epochs=epochs,
                    validation_data=self.data.test(self.batch_size),
                    callbacks=[*callbacks, progress],
                    **data,
                    **kwargs,
                )
            except tf.errors.InvalidArgumentError as error:
                raise keras_tuner.errors.FailedTrialError(
                    error.message
                ) from error
        return progress.history(initial_epoch, epochs)

    def _stream(self, initial_epoch: int) -> tf.data.Dataset:
        return self.data.train(
            self.batch_size, self.seed, initial_epoch, views=self.views
        )

    def _cache(self, model: Distiller) -> TeacherCache:
        return TeacherCache(
            model,
            self.data,
            self.batch_size,
            self.views,
            self.seed,
            self.directory / "teacher",
        )

    def _prepare(self, model: Distiller, **data: Any) -> None:
        points = [teacher for _, teacher in model.sensing_points]
        preparations = Preparations(
            self.directory / "preparations",
            self._shared | {"sensing_points": points},
        )
        with preparations.locked():
            preparations.restore(model.methods)
            if not model.prepared:
                model.prepare(**data)
            preparations.keep(model.methods)

    @functools.cached_property
    def _shared(self) -> dict[str, Any]:
        """What all trials have in common, as plain JSON values."""
        return {
            "teacher": fingerprint(*self.teacher.get_weights()),
            "data": fingerprint_of(self.data),
            "batch_size": self.batch_size,
            "views": self.views,
            "seed": self.seed,
        }

    def _key(self, hp: keras_tuner.HyperParameters, model: Distiller) -> str:
        """Gives a name to a trial's settings, whatever its number of epochs."""
        data = self.data
        made = [
            *map(_settings, model.methods),
            _settings(model.optimizer),
            _settings(self.task["loss"]),
            model.sensing_points,
            self._dtype_policy.name,
            fingerprint(data.y_train, data.x_test, data.y_test),
        ]
        values = {
            name: value
            for name, value in hp.values.items()
            if not name.startswith("tuner/")  # added by Hyperband
        }
        text = json.dumps([self._shared, values, made], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _settings(made: Any) -> list[Any]:
    """Gives an object's class and arguments, as plain JSON values."""
    # Keras numbers its default names, so equal objects have different names.
    config = made.get_config() | {"name": None}
    return [type(made).__name__, keras.saving.serialize_keras_object(config)]


class _Progress(Checkpoint):
    """Saves a trial's state, without the teacher, and metrics each epoch."""

    def __init__(self, directory: str | os.PathLike, model: Distiller):
        super().__init__(
            directory,
            [*model.resumable_variables, *model.optimizer.variables],
        )
        self._file = self.directory / "metrics.json"
        self._rows = []

    def restore(self):
        position = super().restore()
        if position.epochs:
            rows = json.loads(self._file.read_text())
            self._rows = rows[: position.epochs]
        return position

    def on_epoch_end(self, epoch, logs=None):
        self._rows.append({name: float(logs[name]) for name in logs})
        write_atomically(self._file, json.dumps(self._rows))
        super().on_epoch_end(epoch, logs)

    def history(
        self, initial_epoch: int, epochs: int
    ) -> keras.callbacks.History:
        rows = self._rows[initial_epoch:epochs]
        history = keras.callbacks.History()
        history.history = {
            name: [row[name] for row in rows if name in row]
            for name in rows[-1]
        }
        return history


def _copy(network: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    return copy


def _require_range(learning_rate: float | tuple[float, float]) -> None:
    ends = learning_rate
    if not isinstance(ends, Sequence):
        ends = (learning_rate, learning_rate)
    if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
        raise ValueError(
            "`learning_rate` must be a positive number, or the lowest and the "
            f"highest of a range. Received: learning_rate={learning_rate}."
        )
