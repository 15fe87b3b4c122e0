"""Trains the multi-head attention network on the teacher alone."""

import keras
import tensorflow as tf

from keras_mhgd import replicas
from keras_mhgd.compression import teacher_vectors
from keras_mhgd.features import FeatureExtractor, Taught
from keras_mhgd.gradients import apply
from keras_mhgd.graph.mhan import MHAN


class MHANTrainer(keras.Model):
    """Fits an MHAN to a teacher's features by ordinary `fit`.

    loss = sum over edges of mean_i (1 - back_i . estimate_i) + weight decay.

    Labels in the data are ignored; the teacher is frozen.

    Args:
        mhan: The network to train.
        teacher: The teacher's predictions and sensing points.
        fix_signs: Of singular vectors: see `keras_mhgd.methods.MHGD`.

    Example:
        >>> trainer = keras_mhgd.graph.MHANTrainer(
        ...     keras_mhgd.graph.MHAN(sizes=[16, 32, 64]),
        ...     keras_mhgd.features.FeatureExtractor(
        ...         teacher, ["stage1", "stage2", "stage3"]
        ...     ),
        ... )
        >>> trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        >>> history = trainer.fit(images, epochs=40, verbose=0)

    Reference:
        S. Lee, B. C. Song, BMVC 2019, arXiv:1907.02226, section 3.2.
    """

    def __init__(
        self,
        mhan: MHAN,
        teacher: FeatureExtractor,
        fix_signs: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._fix_signs = fix_signs
        self.mhan = mhan
        self._teacher = teacher
        self._estimate_loss = keras.metrics.Mean("estimate_loss")
        self.built = True

    def train_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(x, Taught):
            features = x.features
        else:
            features = self._teacher(x).without_padding()
        # An MHAN computes in float32. Each replica trains on the whole batch:
        # vectors are small, and heads and normalisation see all samples.
        vectors = replicas.joined(
            [
                tf.cast(vector, tf.float32)
                for vector in teacher_vectors(features, self._fix_signs)
            ]
        )
        with tf.GradientTape() as tape:
            estimates = self.mhan.estimate(vectors)
            estimate_loss = estimation_loss(vectors, estimates)
            loss = estimate_loss + sum(self.mhan.losses)
            scaled = self.optimizer.scale_loss(replicas.share(loss))
        variables = self.mhan.trainable_variables
        apply(self.optimizer, tape.gradient(scaled, variables), variables)
        batch_size = tf.shape(vectors[0])[0]
        self._loss_tracker.update_state(loss, sample_weight=batch_size)
        self._estimate_loss.update_state(
            estimate_loss, sample_weight=batch_size
        )
        return self.get_metrics_result()


def estimation_loss(
    vectors: list[tf.Tensor], estimates: list[tf.Tensor]
) -> tf.Tensor:
    """Computes sum over edges of mean_i (1 - back_i . estimate_i).

    Args:
        vectors: Unit vectors `(batch, D)` a sensing point.
        estimates: Unit vectors `(batch, D)` an edge.

    Returns:
        Scalar between 0 and twice the number of edges.
    """
    return tf.add_n(
        [
            tf.reduce_mean(1 - tf.reduce_sum(back * estimate, axis=-1))
            for back, estimate in zip(vectors[1:], estimates, strict=True)
        ]
    )
