"""Takes the classes of logits apart: one from the others, or some away."""

import tensorflow as tf


def is_target(labels: tf.Tensor, classes: int) -> tf.Tensor:
    """Marks the target class of each row.

    Args:
        labels: Class numbers `(batch,)` or `(batch, 1)`, or one-hot
            `(batch, classes)`, where the largest entry counts.
        classes: Number of classes.

    Returns:
        Boolean `(batch, classes)`; nowhere true in rows whose class number is
        out of range.

    Raises:
        ValueError: If the labels have another shape.
    """
    labels = tf.convert_to_tensor(labels)
    shape = labels.shape
    if shape.rank == 2 and shape[-1] == classes:
        labels = tf.argmax(labels, axis=-1)
    elif shape.rank == 1 or (shape.rank == 2 and shape[-1] == 1):
        labels = tf.reshape(labels, [-1])
    else:
        raise ValueError(
            "`labels` must be class numbers (batch,) or (batch, 1), or "
            f"one-hot (batch, {classes}). Received: labels of shape {shape}. "
            "Change what the data gives, or the networks' number of classes."
        )
    return _marked(labels, classes)


def is_largest(logits: tf.Tensor) -> tf.Tensor:
    """Marks the largest logit of each row, the first of equal ones.

    Args:
        logits: `(batch, classes)`.

    Returns:
        Boolean `(batch, classes)`.
    """
    return _marked(tf.argmax(logits, axis=-1), logits.shape[-1])


def of_marked(values: tf.Tensor, marked: tf.Tensor) -> tf.Tensor:
    """Gives the value of the one class that is marked in each row.

    Args:
        values: `(batch, classes)`.
        marked: Boolean `(batch, classes)`.

    Returns:
        `(batch,)`; 0 for rows in which no class is marked.
    """
    return tf.reduce_sum(tf.where(marked, values, 0), axis=-1)


def left_out(logits: tf.Tensor, marked: tf.Tensor) -> tf.Tensor:
    """Leaves the marked classes out of the softmax of logits.

    Their probability becomes 0. If all classes of a row are marked, the
    softmax is the same for any logits, and has no gradient.

    Args:
        logits: `(batch, classes)`, floating point.
        marked: Boolean `(batch, classes)`.

    Returns:
        Logits `(batch, classes)`.
    """
    # Half of the lowest number: its softmax is exactly 0, and the difference
    # of two log-softmax values is finite.
    return tf.where(marked, logits.dtype.min / 2, logits)


def one_or_other(logits: tf.Tensor, marked: tf.Tensor) -> tf.Tensor:
    """Joins all classes but the marked one.

    Args:
        logits: `(batch, classes)`, floating point, two classes or more.
        marked: Boolean `(batch, classes)`, true for one class of each row.

    Returns:
        Logits `(batch, 2)`. Their softmax is p and 1 - p, with p the
        probability of the marked class.
    """
    others = tf.reduce_logsumexp(left_out(logits, marked), axis=-1)
    return tf.stack([of_marked(logits, marked), others], axis=-1)


def _marked(numbers: tf.Tensor, classes: int) -> tf.Tensor:
    return tf.one_hot(
        tf.cast(numbers, tf.int32), classes, on_value=True, off_value=False
    )
