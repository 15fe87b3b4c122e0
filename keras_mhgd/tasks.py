"""Finds out what a network's outputs mean, and makes them comparable.

Outputs are scores of classes, scores of independent labels, values, or
embeddings. Each output has a `Task`, which follows from the compiled loss, the
last layers of both networks, and the labels. The task turns the networks'
outputs into rows that methods compare. There is one row for each sample, or for
each position of a sample if outputs are dense.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd.checks import require_known
from keras_mhgd.features import End
from keras_mhgd.linalg.directions import unit
from keras_mhgd.linalg.precision import as_float

__all__ = [
    "EMBEDDING",
    "KINDS",
    "MULTI_LABEL",
    "Output",
    "REGRESSION",
    "Rows",
    "SINGLE_LABEL",
    "Task",
    "UNKNOWN_CLASS",
    "require_class_numbers",
    "require_loss_fits",
    "settle",
    "tells",
]

SINGLE_LABEL = "single_label"
"""Scores of classes, of which one is right."""
MULTI_LABEL = "multi_label"
"""Scores of labels that are independent of each other."""
REGRESSION = "regression"
"""Values."""
EMBEDDING = "embedding"
"""Vectors whose directions are compared."""
KINDS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION, EMBEDDING)
"""All kinds of outputs."""

UNKNOWN_CLASS = -1
"""The class number of a row without a label."""

_LOGITS = End("linear", False)
_SMALLEST = 1e-7  # lower bound of probabilities in logarithms, as in Keras

# What the outputs mean under each of Keras's loss functions.
_LOSSES = {
    "sparse_categorical_crossentropy": SINGLE_LABEL,
    "categorical_crossentropy": SINGLE_LABEL,
    "categorical_focal_crossentropy": SINGLE_LABEL,
    "categorical_generalized_cross_entropy": SINGLE_LABEL,
    "categorical_hinge": SINGLE_LABEL,
    "kl_divergence": SINGLE_LABEL,
    "ctc": SINGLE_LABEL,
    "binary_crossentropy": MULTI_LABEL,
    "binary_focal_crossentropy": MULTI_LABEL,
    "hinge": MULTI_LABEL,
    "squared_hinge": MULTI_LABEL,
    "mean_squared_error": REGRESSION,
    "mean_absolute_error": REGRESSION,
    "mean_absolute_percentage_error": REGRESSION,
    "mean_squared_logarithmic_error": REGRESSION,
    "huber": REGRESSION,
    "log_cosh": REGRESSION,
    "poisson": REGRESSION,
    "cosine_similarity": EMBEDDING,
    "circle": EMBEDDING,
}
_LABELS = {None: "either", True: "class numbers", False: "one-hot labels"}
# The losses that take probabilities, unless `from_logits` is true.
_OF_PROBABILITIES = {name for name in _LOSSES if name.endswith("entropy")}
_OF_PROBABILITIES |= {"kl_divergence"}
_GIVES_LOGITS = {"linear": True, "softmax": False, "sigmoid": False}


class Rows(NamedTuple):
    """Holds the outputs of both networks in the form that methods compare.

    Attributes:
        student: The student's logits, values or embeddings, `(rows, outputs)`.
        teacher: The teacher's, `(rows, outputs)`.
        weights: 1 for rows that count and 0 for others, `(rows,)` float32;
            `None` if all count.
        labels: Class numbers `(rows,)`. In a multi-label task, 0 or 1 for each
            label, `(rows, outputs)`. Rows without a label have `UNKNOWN_CLASS`.
            `None` if the data has no labels of classes.
    """

    student: tf.Tensor
    teacher: tf.Tensor
    weights: tf.Tensor | None
    labels: tf.Tensor | None


class Output(NamedTuple):
    """Holds one output of a network for a batch.

    Attributes:
        outputs: The predictions `(batch, ..., outputs)`.
        logits: Logits or probabilities of that shape; `None` if not read.
        mask: Boolean `(batch, ...)`, false where there is padding; or `None`.
    """

    outputs: tf.Tensor
    logits: tf.Tensor | None = None
    mask: tf.Tensor | None = None


class Task:
    """Describes what one output means, and in which form networks give it.

    Args:
        kind: `"single_label"` (scores of classes, of which one is right),
            `"multi_label"` (one or more independent yes-or-no scores),
            `"regression"` (values) or `"embedding"` (directions).
        student: The `End` of the student's output: logits or probabilities.
        teachers: The `End` of each teacher's output.
        teacher_weights: Weights of the teachers, which add up to 1.
        ignored_class: The class number that marks a position or sample
            without a label; `None` if there is none.
        sparse: Whether labels are class numbers; `None` if that is not known
            before the labels are seen.
        aligned: Whether each row has its own label, unlike in CTC.
    """

    def __init__(
        self,
        kind: str = SINGLE_LABEL,
        student: End = _LOGITS,
        teachers: Sequence[End] = (_LOGITS,),
        teacher_weights: Sequence[float] = (1.0,),
        ignored_class: int | None = None,
        sparse: bool | None = None,
        aligned: bool = True,
    ):
        require_known("task", kind, KINDS)
        self.kind = kind
        self.student = student
        self.teachers = tuple(teachers)
        self.teacher_weights = tuple(teacher_weights)
        self.ignored_class = ignored_class
        self.sparse = sparse
        self.aligned = aligned

    def __repr__(self) -> str:
        return f"Task({self.kind!r})"

    def rows(
        self,
        student: Output,
        teachers: Sequence[Output],
        labels: tf.Tensor | None = None,
        sample_weight: tf.Tensor | None = None,
    ) -> Rows:
        """Turns the outputs of all networks and the labels into rows.

        The outputs of several teachers are averaged: their probabilities, their
        values or their directions.

        In an output with positions, a row does not count if its position is
        padded in either network, has the ignored class as label, or has the
        sample weight 0. All other rows count. A whole sample with the ignored
        class or the weight 0 has no label, but counts: the student can learn it
        from the teacher.

        Args:
            student: The student's output.
            teachers: Each teacher's output.
            labels: As the compiled loss takes them.
            sample_weight: As in `fit`.

        Raises:
            ValueError: If the networks differ in positions or classes, or if
                the labels don't fit the outputs.
        """
        ours = self._scores(student, self.student)
        theirs = self._average(
            [
                self._scores(output, end)
                for output, end in zip(teachers, self.teachers, strict=True)
            ]
        )
        _require_same_positions(ours.shape, theirs.shape)
        dense = ours.shape.rank > 2
        masks = [
            output.mask
            for output in (student, *teachers)
            if output.mask is not None
        ]
        numbers = None
        if labels is not None and self.aligned:
            numbers = self._labels(labels, ours)
        if numbers is not None:
            numbers = self._labelled(numbers, sample_weight, ours)
        if dense:
            masks += self._absent(labels, sample_weight, ours)
        weights = None
        if masks:
            there = functools.reduce(
                tf.logical_and, [_per_row(mask, ours) for mask in masks]
            )
            weights = tf.cast(tf.reshape(there, [-1]), tf.float32)
        if numbers is not None:
            shape = [-1, ours.shape[-1]] if self.kind == MULTI_LABEL else [-1]
            numbers = tf.reshape(numbers, shape)
        return Rows(_flat(ours), _flat(theirs), weights, numbers)

    def _scores(self, output: Output, end: End) -> tf.Tensor:
        """Gives logits `(batch, ..., outputs)`, or unchanged values."""
        if self.kind in (REGRESSION, EMBEDDING) or output.logits is None:
            scores = as_float(output.outputs)
        else:
            scores = as_float(output.logits)
            if end.is_probability:
                scores = self._logits(scores)
            elif end.form == "sigmoid" and self.kind == SINGLE_LABEL:
                scores = tf.math.log_sigmoid(scores)
        return scores[:, tf.newaxis] if scores.shape.rank == 1 else scores

    def _logits(self, probabilities: tf.Tensor) -> tf.Tensor:
        # The softmax of log p is p / sum p. The sigmoid of log(p / (1 - p)),
        # which is returned for independent labels, is p.
        smallest = tf.cast(_SMALLEST, probabilities.dtype)
        log = tf.math.log(tf.maximum(probabilities, smallest))
        if self.kind == SINGLE_LABEL:
            return log
        return log - tf.math.log(tf.maximum(1 - probabilities, smallest))

    def _average(self, scores: list[tf.Tensor]) -> tf.Tensor:
        if len(scores) == 1:
            return scores[0]

        def log_mean(logs):
            return tf.reduce_logsumexp(
                tf.stack(
                    [
                        log + math.log(weight)
                        for log, weight in zip(
                            logs, self.teacher_weights, strict=True
                        )
                    ]
                ),
                axis=0,
            )

        if self.kind == SINGLE_LABEL:
            return log_mean([tf.nn.log_softmax(each) for each in scores])
        if self.kind == MULTI_LABEL:
            yes = log_mean([tf.math.log_sigmoid(each) for each in scores])
            return yes - log_mean(
                [tf.math.log_sigmoid(-each) for each in scores]
            )
        if self.kind == EMBEDDING:
            scores = [unit(each) for each in scores]
        return tf.add_n(
            [
                weight * each
                for each, weight in zip(
                    scores, self.teacher_weights, strict=True
                )
            ]
        )

    def _labels(self, labels: tf.Tensor, scores: tf.Tensor) -> tf.Tensor | None:
        """Gives labels: numbers `(batch, ...)` or `(batch, ..., outputs)`."""
        labels = tf.convert_to_tensor(labels)
        if self.kind == MULTI_LABEL:
            _require_labels(labels.shape, scores.shape)
            yes = tf.cast(as_float(labels) > 0.5, tf.int64)
            return tf.reshape(yes, tf.shape(scores))
        if self.kind != SINGLE_LABEL:
            return None
        if self._is_sparse(labels.shape, scores.shape):
            return tf.reshape(tf.cast(labels, tf.int64), tf.shape(scores)[:-1])
        return tf.argmax(labels, axis=-1)

    def _labelled(
        self,
        numbers: tf.Tensor,
        sample_weight: tf.Tensor | None,
        scores: tf.Tensor,
    ) -> tf.Tensor:
        """Puts `UNKNOWN_CLASS` where the data marks a label as missing."""
        known = []
        if self.ignored_class is not None:
            known.append(numbers != self.ignored_class)
        if sample_weight is not None:
            weighted = _per_row(sample_weight != 0, scores)
            if self.kind == MULTI_LABEL:
                weighted = weighted[..., tf.newaxis]
            known.append(weighted)
        for each in known:
            unknown = tf.constant(UNKNOWN_CLASS, numbers.dtype)
            numbers = tf.where(each, numbers, unknown)
        return numbers

    def _is_sparse(self, labels: tf.TensorShape, scores: tf.TensorShape):
        one_hot = labels.is_compatible_with(scores)
        numbers = any(
            labels.is_compatible_with(scores[:-1].concatenate(last))
            for last in ([], [1])
        )
        sparse = not one_hot if self.sparse is None else self.sparse
        unclear = self.sparse is None and one_hot and numbers
        if unclear and scores[-1] != 1 or not (numbers if sparse else one_hot):
            raise ValueError(
                "`labels` must be class numbers (batch,) or (batch, 1), or "
                f"one-hot (batch, {scores[-1]}); of dense outputs the same at "
                f"each position. Received: labels of shape {labels} for "
                f"outputs of shape {scores}, and a loss of "
                f"{_LABELS[self.sparse]}. Change what the data gives, the "
                "loss, or the networks' number of classes."
            )
        return sparse

    def _absent(
        self,
        labels: tf.Tensor | None,
        sample_weight: tf.Tensor | None,
        scores: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Lists masks that are false at positions that the data leaves out."""
        found = []
        if self.ignored_class is not None and labels is not None:
            labels = tf.convert_to_tensor(labels)
            found.append(labels != tf.cast(self.ignored_class, labels.dtype))
        if sample_weight is not None and _has_positions(sample_weight, scores):
            found.append(sample_weight != 0)
        return found


def tells(loss: Any, end: End, kind: str | None) -> bool:
    """Checks whether the meaning of an output is known without labels.

    Args:
        loss: As in `settle`.
        end: The `End` of the student's output.
        kind: As in `settle`.
    """
    function, _ = _function_of(loss)
    return (
        kind is not None
        or function in _LOSSES
        or end.form in ("softmax", "sigmoid")
    )


def settle(
    loss: Any,
    student: End,
    teachers: Sequence[End],
    outputs: Sequence[int | None],
    labels: Any = None,
    kind: str | None = None,
    name: str = "the output",
    teacher_weights: Sequence[float] = (1.0,),
    scores: bool = True,
) -> Task:
    """Finds out what an output means.

    Without `kind`, the first rule that applies decides:

    1. A final softmax means classes.
    2. One of Keras's losses says what the output means.
    3. A final sigmoid means independent labels.
    4. Class numbers as labels for two or more linear outputs mean classes.
    5. Two or more linear outputs, without loss and labels, mean classes.

    Args:
        loss: The output's loss as given to `compile`: a name, function or
            object; `None` if there is none.
        student: The `End` of the student's output.
        teachers: The `End` of each teacher's output.
        outputs: Shape of the student's output.
        labels: A tensor or its specification; `None` without labels.
        kind: What the output means according to the user; one of `KINDS`.
        name: Name of the output, for messages.
        teacher_weights: Weights of the teachers.
        scores: Whether a method reads the output's scores, not only labels.

    Raises:
        ValueError: If the meaning is unknown, or if it is unknown whether a
            network gives logits or probabilities.
    """
    function, options = _function_of(loss)
    if kind is None:
        kind = _kind(function, student, outputs, labels, name)
    if scores and kind in (SINGLE_LABEL, MULTI_LABEL):
        says = options.get("from_logits")
        student = _known_end(student, says, f"{name} of the student")
        teachers = [
            _known_end(each, None, f"{name} of the teacher")
            for each in teachers
        ]
    sparse = None
    if function in _LOSSES and function != "ctc":
        sparse = function == "sparse_categorical_crossentropy"
    return Task(
        kind,
        student,
        teachers,
        teacher_weights,
        ignored_class=options.get("ignore_class"),
        sparse=sparse,
        aligned=function != "ctc",
    )


def require_loss_fits(loss: Any, end: End, name: str) -> None:
    """Raises if a Keras loss takes logits as probabilities or vice versa.

    Args:
        loss: The output's loss, as in `settle`.
        end: The `End` of the student's output.
        name: Name of the output, for messages.
    """
    function, options = _function_of(loss)
    takes_logits = options.get("from_logits")
    gives_logits = _GIVES_LOGITS.get(end.form)
    if (
        function in _LOSSES
        and None not in (takes_logits, gives_logits)
        and takes_logits != gives_logits
    ):
        takes, gives = (
            "logits" if each else "probabilities"
            for each in (takes_logits, gives_logits)
        )
        raise ValueError(
            f"`loss` must take what {name} of the student is: {gives}, since "
            f"its last activation is {end.form}. Received: {function}, which "
            f"takes {takes}. Pass from_logits={gives_logits} where the loss "
            "has that, another loss, or end the networks otherwise."
        )


def require_class_numbers(
    loss: Any,
    labels: tf.Tensor | None,
    outputs: tf.Tensor,
    sample_weight: tf.Tensor | None = None,
) -> tuple[list[tf.Operation | None], tf.Tensor | None]:
    """Checks in the graph that class numbers are in the loss's range.

    Only losses on class numbers are checked. On a GPU, numbers out of range
    would become NaN. A sample or position of weight 0 may have any number: one
    that is out of range is replaced by 0.

    Args:
        loss: The output's loss, as in `settle`.
        labels: The batch's labels, or `None`.
        outputs: The student's predictions.
        sample_weight: The batch's weights, or `None`.

    Returns:
        Checks that must run before the loss, and the labels.
    """
    function, options = _function_of(loss)
    if labels is None or function not in (
        "sparse_categorical_crossentropy",
        "binary_crossentropy",
    ):
        return [], labels
    classes = max(2, outputs.shape[-1])
    if function == "binary_crossentropy":
        _require_labels(labels.shape, outputs.shape)
        if not labels.dtype.is_integer:
            return [], labels
        classes = 2
    valid = (labels >= 0) & (labels < tf.cast(classes, labels.dtype))
    ignored = options.get("ignore_class")
    if ignored is not None:
        valid |= labels == tf.cast(ignored, labels.dtype)
    if sample_weight is not None:
        without = _like(sample_weight == 0, labels)
        labels = tf.where(without & ~valid, tf.zeros_like(labels), labels)
        valid |= without
    check = tf.debugging.Assert(
        tf.reduce_all(valid),
        [
            f"Labels must be class numbers from 0 to {classes - 1}"
            + (f", or {ignored}, which is ignored" if ignored else "")
            + ". Received labels in the range:",
            tf.reduce_min(labels),
            tf.reduce_max(labels),
        ],
    )
    return [check], labels


def _kind(function, end, outputs, labels, name) -> str:
    if end.form == "softmax":
        return SINGLE_LABEL
    if function in _LOSSES:
        return _LOSSES[function]
    if end.form == "sigmoid":
        return MULTI_LABEL
    width = outputs[-1] if len(outputs) > 1 else 1
    shape = getattr(labels, "shape", None)
    if shape is not None:
        fewer = len(shape) < len(outputs)
        one = len(shape) == len(outputs) and shape[-1] == 1
        is_integer = tf.as_dtype(labels.dtype).is_integer
        if width > 1 and is_integer and (fewer or one):
            return SINGLE_LABEL
    elif function is None and width > 1:
        return SINGLE_LABEL
    raise ValueError(
        f"What {name} means must be known to compare it with the teacher's: "
        f"one of {', '.join(KINDS)}. Received: {width} linear output(s), "
        f"loss={function!r} and labels of shape "
        f"{None if shape is None else tuple(shape)}, which don't tell. Pass "
        "`task=` to `compile`, or compile one of Keras's losses."
    )


def _known_end(end: End, from_logits: bool | None, what: str) -> End:
    if end.form is not None:
        return end
    if from_logits is None:
        raise ValueError(
            "A method that reads logits must know whether a network gives "
            f"logits or probabilities. Received: {what}, which ends in "
            "operations or code that do not show it. End the network in "
            "a Dense, Softmax or Activation layer."
        )
    return End("linear", not from_logits)


def _function_of(loss: Any) -> tuple[str | None, dict[str, Any]]:
    """Finds the name of Keras's function that a loss calls, and its options."""
    if loss is None:
        return None, {}
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    options = {}
    if isinstance(loss, keras.losses.Loss):
        # Some options are attributes of the loss object. Others are arguments
        # that it passes to its function.
        options = {
            key: getattr(loss, key)
            for key in ("from_logits", "ignore_class")
            if hasattr(loss, key)
        }
        options |= getattr(loss, "_fn_kwargs", {})
        loss = getattr(loss, "fn", type(loss))
    while isinstance(loss, functools.partial):
        options = {**loss.keywords, **options}
        loss = loss.func
    name = getattr(loss, "__name__", type(loss).__name__)
    if getattr(keras.losses, name, None) is not loss:
        return name if name not in _LOSSES else f"{name} of your own", options
    if name in _OF_PROBABILITIES:
        options.setdefault("from_logits", False)
    return name, options


def _require_labels(labels: tf.TensorShape, scores: tf.TensorShape) -> None:
    """Raises unless there is a label for each independent output."""
    if scores.rank == 1:
        scores = scores.concatenate([1])
    without_axis = scores[-1] == 1 and labels.is_compatible_with(scores[:-1])
    if not (without_axis or labels.is_compatible_with(scores)):
        raise ValueError(
            "`labels` must be 0 or 1 for each independent output, "
            f"(batch, {scores[-1]}); of dense outputs the same at each "
            f"position. Received: labels of shape {labels} for outputs of "
            f"shape {scores}. Change what the data gives, or end the networks "
            "in a softmax if only one of the outputs is right."
        )


def _require_same_positions(student, teacher) -> None:
    both = zip(student[1:], teacher[1:], strict=False)
    if len(student) != len(teacher) or any(
        None not in pair and pair[0] != pair[1] for pair in both
    ):
        raise ValueError(
            "A method that compares outputs must get the same positions and "
            f"classes of both networks. Received: outputs {tuple(student)} "
            f"of the student, {tuple(teacher)} of the teacher. Resize one of "
            "them inside its network, or choose a method on feature maps."
        )


def _flat(scores: tf.Tensor) -> tf.Tensor:
    if scores.shape.rank == 2:
        return scores
    return tf.reshape(scores, [-1, scores.shape[-1]])


def _has_positions(weight: tf.Tensor, scores: tf.Tensor) -> bool:
    """Checks whether there is a weight for each position, not each sample."""
    shape = weight.shape[1:]
    if shape.rank == scores.shape.rank - 1:  # a last axis of size 1
        shape = shape[:-1]
    return shape.rank == scores.shape.rank - 2 and any(
        size != 1 for size in shape
    )


def _per_row(x: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """Broadcasts values of samples or positions to `(batch, ...)`."""
    return _spread(x, tf.shape(scores)[:-1], scores.shape.rank - 1)


def _like(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return _spread(x, tf.shape(y), y.shape.rank)


def _spread(x: tf.Tensor, shape: tf.Tensor, rank: int) -> tf.Tensor:
    while x.shape.rank > rank:
        x = tf.squeeze(x, -1)
    while x.shape.rank < rank:
        x = x[..., tf.newaxis]
    return tf.broadcast_to(x, shape)
