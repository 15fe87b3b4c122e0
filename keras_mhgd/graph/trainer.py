"""Trains the multi-head attention network on the teacher alone."""

import keras
import tensorflow as tf

from keras_mhgd.distribution import replicas
from keras_mhgd.features import FeatureExtractor, Taught
from keras_mhgd.features.compression import teacher_vectors, varied_signs
from keras_mhgd.gradients import apply
from keras_mhgd.graph.mhan import MHAN


class MHANTrainer(keras.Model):
    """Fits an MHAN to a teacher's features by an ordinary `fit`.

    loss = sum over edges of mean_i (1 - back_i . estimate_i) + weight decay.

    Labels in the data are ignored; the teacher is frozen.

    Args:
        mhan: The network to train.
        teacher: Extractor of the teacher's sensing points.

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

    def __init__(self, mhan: MHAN, teacher: FeatureExtractor, **kwargs):
        super().__init__(**kwargs)
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
        # An MHAN computes in float32. Each replica trains on the whole batch,
        # since heads and normalisation must see all samples. That is cheap,
        # because the vectors are small.
        vectors = teacher_vectors(features)
        if not self.mhan.fix_signs:
            vectors = varied_signs(vectors, self._teacher.shapes.maps)
        vectors = replicas.joined(
            [tf.cast(each, tf.float32) for each in vectors]
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
    """Computes the sum over edges of mean_i (1 - back_i . estimate_i).

    Args:
        vectors: Unit vectors `(batch, D)` for each sensing point.
        estimates: Unit vectors `(batch, D)` for each edge.

    Returns:
        Scalar between 0 and twice the number of edges.
    """
    return tf.add_n(
        [
            tf.reduce_mean(1 - tf.reduce_sum(back * estimate, axis=-1))
            for back, estimate in zip(vectors[1:], estimates, strict=True)
        ]
    )
