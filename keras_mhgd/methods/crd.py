"""Distills embeddings by a contrastive loss (CRD).

Y. Tian, D. Krishnan, P. Isola, ICLR 2020, arXiv:1910.10699.
"""

import keras
import tensorflow as tf

from keras_mhgd.checks import require_positive
from keras_mhgd.linalg.directions import unit
from keras_mhgd.linalg.precision import as_float
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.targets import student_and_target
from keras_mhgd.tasks import KINDS, MULTI_LABEL, UNKNOWN_CLASS

_EMPTY = -2  # class number of an empty entry of the bank


def contrastive_loss(
    anchors: tf.Tensor,
    positives: tf.Tensor,
    negatives: tf.Tensor,
    counts: tf.Tensor,
    log_partition: tf.Tensor,
    temperature: float = 0.07,
) -> tf.Tensor:
    """Computes how badly anchors separate positives from negatives.

    loss = -mean over anchors of [log h(positive) + sum over negatives of
    log (1 - h(negative))], with h = r / (r + K), K the number of the anchor's
    negatives and r = exp(a . x / temperature) / Z. This is noise-contrastive
    estimation. An anchor without negatives adds 0.

    The published code divides r and K by the size of the data set, which
    cancels.

    Args:
        anchors: Unit vectors `(batch, D)` of one network.
        positives: Unit vectors `(batch, D)` of the other network, for the
            same images. No gradient flows into them.
        negatives: Unit vectors `(N, D)` of the other network, for any images.
            No gradient flows into them.
        counts: How often each vector of `negatives` counts as a negative of
            each anchor, 0 if never: `(batch, N)`, numeric or boolean.
        log_partition: log Z, a scalar: see `log_mean_score`.
        temperature: Divides the products, > 0.

    Returns:
        Scalar >= 0, float32 or float64.
    """
    positive, negative, counts = _scores(
        anchors, positives, negatives, counts, temperature
    )
    number = tf.reduce_sum(counts, axis=-1)
    log_z = tf.cast(log_partition, number.dtype)
    log_zk = log_z + tf.math.log(tf.maximum(number, 1))
    # With x = log(r / K): -log h = softplus(-x), -log(1 - h) = softplus(x).
    attraction = tf.where(number > 0, tf.nn.softplus(log_zk - positive), 0)
    repulsion = counts * tf.nn.softplus(negative - log_zk[:, tf.newaxis])
    return tf.reduce_mean(attraction + tf.reduce_sum(repulsion, axis=-1))


def log_mean_score(
    anchors: tf.Tensor,
    positives: tf.Tensor,
    negatives: tf.Tensor,
    counts: tf.Tensor,
    temperature: float = 0.07,
) -> tf.Tensor:
    """Estimates log Z: the log of the mean of exp(a . x / temperature).

    Args:
        anchors: As in `contrastive_loss`.
        positives: As in `contrastive_loss`; each counts once.
        negatives: As in `contrastive_loss`; `counts` says how often each
            counts.
        counts: As in `contrastive_loss`.
        temperature: As in `contrastive_loss`.

    Returns:
        Scalar, float32 or float64, without gradient.
    """
    positive, negative, counts = _scores(
        anchors, positives, negatives, counts, temperature
    )
    scores = tf.concat([positive[:, tf.newaxis], negative], axis=-1)
    counts = tf.concat([tf.ones_like(scores[:, :1]), counts], axis=-1)
    log_sum = tf.reduce_logsumexp(scores + tf.math.log(counts))
    return tf.stop_gradient(log_sum - tf.math.log(tf.reduce_sum(counts)))


@keras.saving.register_keras_serializable(package="keras_mhgd")
class CRD(Method):
    """Pulls the two embeddings of an image together, and others apart.

    loss = weight [L(s, t) + L(t, s)], with L(a, x) = `contrastive_loss` of
    anchors a in one network and constants x in the other. s and t are the
    embeddings of student and teacher, each mapped by a dense layer and scaled
    to unit length. Both dense layers train with the student.

    The published code keeps a memory with a moving average for each image of
    the data set. An anchor's positive is the entry of its own image, and its
    negatives are drawn from the entries of other classes. Here a training
    step doesn't know which images of the data set it gets. So the positive is
    the other network's current embedding of the image. The negatives are all
    images of other classes in the batch and in a bank of the latest images.
    Without class numbers, the negatives are all images except the anchor's
    own in the batch.

    Z is estimated from the first batch and then kept, as in the published
    code. The paper's h has no Z.

    The loss is steep. At high learning rates the first steps can push all
    embeddings apart for good. An optimizer with `global_clipnorm=1.0`
    prevents that.

    Args:
        embedding_size: Width of the dense layers, >= 1.
        bank_size: Number of images in the bank, >= 1. The bank is saved with
            the weights. The default is the published number of negatives.
        temperature: Divides the products, > 0. The default is the published
            code's.
        weight: Multiplier of the loss, >= 0. The default is the published
            weight.

    Call arguments:
        student: `Features` of the student; `embedding` is `(batch, D)`.
        teacher: `Features` of the teacher; D may differ.
        labels: Class numbers `(batch,)` or `(batch, 1)`, or one-hot
            `(batch, classes)`. Other labels are not used.

    Returns:
        `{"crd": loss}`, a scalar, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> method = keras_mhgd.methods.CRD(bank_size=4096)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation
        Distillation", ICLR 2020, arXiv:1910.10699.
    """

    terms = ("crd",)
    needs = Needs(embedding=True, tasks=KINDS)  # to get labels

    def __init__(
        self,
        embedding_size: int = 128,
        bank_size: int = 16384,
        temperature: float = 0.07,
        weight: float = 0.8,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        require_positive(
            embedding_size=embedding_size,
            bank_size=bank_size,
            temperature=temperature,
        )
        self.embedding_size = embedding_size
        self.bank_size = bank_size
        self.temperature = temperature

    def build(self, student, teacher):
        super().build(student, teacher)
        sizes = self.embedding_size, self.bank_size
        self.student_side = _Side(*sizes, name="student_side")
        self.teacher_side = _Side(*sizes, name="teacher_side")
        self.student_side.build(student.embedding)
        self.teacher_side.build(teacher.embedding)
        self.bank_classes = self.add_weight(
            name="bank_classes",
            shape=(self.bank_size,),
            initializer=keras.initializers.Constant(_EMPTY),
            dtype="int64",  # int32 would stay in a GPU's host memory
            trainable=False,
        )

    def call(self, student, teacher, labels):
        losses = [
            contrastive_loss(
                *comparison,
                self._log_partition(side, comparison),
                self.temperature,
            )
            for side, comparison in self._comparisons(student, teacher, labels)
        ]
        return {"crd": self.weight * tf.add_n(losses)}

    def update(self, student, teacher, labels):
        comparisons = self._comparisons(student, teacher, labels)
        for side, comparison in comparisons:
            side.log_partition.assign(self._log_partition(side, comparison))
        for side, (anchors, *_) in comparisons:
            _append(side.bank, anchors)
        classes = self._class_numbers(student, labels)
        _append(self.bank_classes, classes)

    def _comparisons(self, student, teacher, labels):
        """Gives each side with its first arguments of `contrastive_loss`."""
        s = self.student_side(student.embedding)
        t = self.teacher_side(tf.stop_gradient(teacher.embedding))
        others_s = tf.concat([s, self.student_side.bank], axis=0)
        others_t = tf.concat([t, self.teacher_side.bank], axis=0)
        classes = self._class_numbers(student, labels)
        is_negative = _is_negative(classes, self.bank_classes)
        return [
            (self.student_side, (s, t, others_t, is_negative)),
            (self.teacher_side, (t, s, others_s, is_negative)),
        ]

    def _class_numbers(self, student, labels):
        """Gives class numbers `(batch,)`, int64; `UNKNOWN_CLASS` without."""
        shape = tf.TensorShape(None if labels is None else labels.shape)
        if shape.rank == 1 or (shape.rank == 2 and shape[1] == 1):
            return tf.cast(tf.reshape(labels, [-1]), tf.int64)
        if shape.rank == 2 and self.task.kind != MULTI_LABEL:
            return tf.argmax(labels, axis=-1)
        count = tf.shape(student.embedding)[0]
        return tf.fill([count], tf.constant(UNKNOWN_CLASS, tf.int64))

    def _log_partition(self, side, comparison):
        """Gives the side's log Z or, until it is known, an estimate."""
        known = tf.convert_to_tensor(side.log_partition)
        return tf.cond(
            known == 0,
            lambda: log_mean_score(*comparison, self.temperature),
            lambda: known,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "embedding_size": self.embedding_size,
            "bank_size": self.bank_size,
            "temperature": self.temperature,
        }


class _Side(keras.Layer):
    """Holds one network's dense layer, bank, and log Z of its anchors.

    log Z is 0 until it is estimated.
    """

    def __init__(self, embedding_size: int, bank_size: int, name: str):
        super().__init__(dtype="float32", name=name)
        self.embedding_size = embedding_size
        self.bank_size = bank_size

    def build(self, shape):
        self.dense = keras.layers.Dense(self.embedding_size, dtype="float32")
        self.dense.build(shape)
        self.bank = self.add_weight(
            name="bank",
            shape=(self.bank_size, self.embedding_size),
            initializer="zeros",
            trainable=False,
        )
        self.log_partition = self.add_weight(
            name="log_partition", initializer="zeros", trainable=False
        )

    def call(self, embedding):
        return unit(self.dense(embedding))


def _scores(anchors, positives, negatives, counts, temperature):
    """Computes scaled products `(batch,)` and `(batch, N)`; casts counts."""
    anchors, positives = student_and_target(anchors, positives)
    anchors, negatives = student_and_target(anchors, negatives)
    positive = tf.reduce_sum(anchors * positives, axis=-1)
    negative = tf.matmul(anchors, negatives, transpose_b=True)
    counts = as_float(counts, anchors)
    return positive / temperature, negative / temperature, counts


def _is_negative(classes: tf.Tensor, bank_classes: tf.Tensor) -> tf.Tensor:
    """Marks each anchor's negatives: boolean `(batch, batch + bank_size)`."""
    others = tf.concat([classes, bank_classes], axis=0)
    numbers = tf.range(tf.shape(others)[0])
    is_itself = numbers[: tf.shape(classes)[0], tf.newaxis] == numbers
    is_other_class = classes[:, tf.newaxis] != others
    return (
        (is_other_class | (others == UNKNOWN_CLASS))
        & (others != _EMPTY)
        & ~is_itself
    )


def _append(bank: keras.Variable, entries: tf.Tensor) -> None:
    """Appends entries to a bank; the oldest, at the front, drop out."""
    bank.assign(tf.concat([bank, entries], axis=0)[-bank.shape[0] :])
