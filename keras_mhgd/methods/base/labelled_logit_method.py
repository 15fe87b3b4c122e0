"""Defines the base class of methods that take the labelled class apart."""

import tensorflow as tf

from keras_mhgd.methods.base.logit_method import LogitMethod
from keras_mhgd.tasks import MULTI_LABEL, UNKNOWN_CLASS


class LabelledLogitMethod(LogitMethod):
    """Compares logits with the help of labels.

    Rows without a label are left out.

    Raises:
        ValueError: If the data has no labels of classes.
    """

    needs = LogitMethod.needs._replace(labels=True)

    def rows(self, student, teacher, labels):
        if labels is None:
            raise ValueError(
                f"{type(self).__name__} must get labels: it takes the labelled "
                "class and the others apart. Received: data without labels of "
                "classes. Pass labels, or choose another method, such as "
                "'soft_logits'."
            )
        weights = self.row_weights(student, labels)
        return super().rows(student._replace(weights=weights), teacher, labels)

    def row_weights(self, student, labels):
        if labels is None:
            return student.weights
        labels = tf.convert_to_tensor(labels)
        independent = self.task.kind == MULTI_LABEL
        if labels.shape.rank > 1 and not independent:
            return student.weights  # no one-hot row is unlabelled
        labelled = labels != tf.cast(UNKNOWN_CLASS, labels.dtype)
        if independent:
            labelled = tf.reduce_all(
                tf.reshape(labelled, [-1, student.logits.shape[-1]]), axis=-1
            )
        labelled = tf.reshape(labelled, [-1])
        if student.weights is None:
            return tf.cast(labelled, tf.float32)
        return student.weights * tf.cast(labelled, student.weights.dtype)
