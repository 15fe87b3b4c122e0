"""Paraphrasing complex network: network compression via factor transfer.

J. Kim, S. Park, N. Kwak, NeurIPS 2018, arXiv:1802.04977.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.choices import require_known
from keras_mhgd.directions import unit
from keras_mhgd.features import FeatureExtractor, Taught
from keras_mhgd.methods.maps import (
    common_size,
    flatten_positions,
    require_positions,
    to_one_size,
)
from keras_mhgd.methods.preparation import PreparedMethod
from keras_mhgd.methods.ranges import require_positive
from keras_mhgd.methods.targets import student_and_target

_FACTORS = ("paraphraser", "pyramid", "attention")
_DISTANCES = {"absolute": tf.abs, "squared": tf.square}


def factor_transfer_loss(
    student: tf.Tensor,
    teacher: tf.Tensor,
    distance: str = "absolute",
    per_position: bool = False,
) -> tf.Tensor:
    """Computes how far the directions of factors differ.

    loss = mean over samples, positions and channels of |F^S - F^T| or of
    (F^S - F^T)^2, F the factor over its Euclidean length.

    Args:
        student: Factors `(batch, height, width, D)`, any float dtype.
        teacher: The same; the larger of two sizes is average-pooled to the
            smaller. No gradient flows into them.
        distance: `"absolute"` (p = 1) or `"squared"` (p = 2).
        per_position: Whether the length is that of the channels at one
            position, instead of the whole factor of a sample.

    Returns:
        Scalar >= 0, float32 or float64.

    Raises:
        ValueError: If `distance` is unknown.
    """
    require_known("distance", distance, _DISTANCES)
    student, teacher = to_one_size(*student_and_target(student, teacher))
    axis = -1 if per_position else (1, 2)
    difference = unit(flatten_positions(student), axis) - unit(
        flatten_positions(teacher), axis
    )
    return tf.reduce_mean(_DISTANCES[distance](difference))


class _Convolutions(keras.Layer):
    """Three 3 x 3 convolutions with biases, a leaky ReLU behind each.

    Args:
        convolution: `keras.layers.Conv2D` or its transpose.
        widths: Channels of their outputs.
        pyramid: Whether the second one has stride 2, and the slope is 0.2
            instead of 0.1.
        activate_last: Whether a leaky ReLU is behind the third one too.
    """

    def __init__(
        self,
        convolution: type[keras.Layer],
        widths: Sequence[int],
        pyramid: bool,
        activate_last: bool,
        **kwargs,
    ):
        super().__init__(**{"dtype": "float32", **kwargs})
        strides = (1, 2, 1) if pyramid else (1, 1, 1)
        self.convolutions = [
            convolution(width, 3, stride, padding="same", dtype="float32")
            for width, stride in zip(widths, strides, strict=True)
        ]
        self.slope = 0.2 if pyramid else 0.1
        self.activate_last = activate_last

    def build(self, input_shape):
        for layer in self.convolutions:
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], layer.filters)

    def call(self, inputs):
        x = self.convolutions[0](inputs)
        for layer in self.convolutions[1:]:
            x = layer(tf.nn.leaky_relu(x, self.slope))
        return tf.nn.leaky_relu(x, self.slope) if self.activate_last else x


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Paraphraser(keras.Model):
    """Encodes a teacher's maps to factors, and factors to maps again.

    Trained on the teacher alone, see `ParaphraserTrainer`. Three 3 x 3
    convolutions to D, kD and kD channels and three transposed ones to kD, D
    and D, leaky ReLU of slope 0.1 behind each; with `pyramid`, to kD, k^2 D
    and k^3 D and back, the second with stride 2, slope 0.2, and the factor
    is what comes before the third leaky ReLU.

    Computes in float32 whatever the dtype policy.

    Args:
        channels: The teacher's channels D.
        rate: Paraphrase rate k, > 0.
        pyramid: Whether factors are smaller than the maps, as above.

    Call arguments:
        inputs: Maps `(batch, height, width, channels)`.

    Returns:
        Factors `(batch, height, width, kD)`, or `(batch, height / 2, width /
        2, k^3 D)`.

    Example:
        >>> from keras_mhgd.methods.factor_transfer import Paraphraser
        >>> paraphraser = Paraphraser(channels=64)
        >>> paraphraser(tf.zeros((2, 7, 7, 64))).shape
        TensorShape([2, 7, 7, 32])

    Reference:
        J. Kim, S. Park, N. Kwak, NeurIPS 2018, arXiv:1802.04977.
    """

    def __init__(
        self,
        channels: int,
        rate: float = 0.5,
        pyramid: bool = False,
        name: str = "paraphraser",
        **kwargs,
    ):
        super().__init__(name=name, **{**kwargs, "dtype": "float32"})
        require_positive(channels=channels, rate=rate)
        self.channels = channels
        self.rate = rate
        self.pyramid = pyramid
        self.encoder = self.make_encoder(channels)
        self.decoder = _Convolutions(
            keras.layers.Conv2DTranspose,
            [*reversed(self._widths(channels)[:2]), channels],
            pyramid,
            activate_last=True,
            name="decoder",
        )
        self.decoder.build((None, None, None, self._widths(channels)[-1]))
        self.built = True

    def make_encoder(self, channels: int, name: str = "encoder") -> keras.Layer:
        """Makes a layer from maps, of any network, to factors alike.

        Args:
            channels: Of those maps.
            name: Name of the layer.

        Returns:
            A built layer, with weights of its own.
        """
        layer = _Convolutions(
            keras.layers.Conv2D,
            self._widths(channels),
            self.pyramid,
            activate_last=not self.pyramid,
            name=name,
        )
        layer.build((None, None, None, channels))
        return layer

    def _widths(self, channels: int) -> list[int]:
        exponents = (1, 2, 3) if self.pyramid else (1, 1)
        widths = [
            max(1, round(self.channels * self.rate**exponent))
            for exponent in exponents
        ]
        return widths if self.pyramid else [channels, *widths]

    def call(self, inputs):
        return self.encoder(inputs)

    def reconstruct(self, inputs: tf.Tensor) -> tf.Tensor:
        """Encodes maps and decodes the factors.

        Args:
            inputs: As in the call.

        Returns:
            Maps of the same shape, float32.
        """
        factors = self(inputs)
        if not self.encoder.activate_last:
            factors = tf.nn.leaky_relu(factors, self.encoder.slope)
        # An odd size, halved and doubled, has become one larger.
        height, width = tf.unstack(tf.shape(inputs)[1:3])
        return self.decoder(factors)[:, :height, :width]

    def get_config(self):
        return {
            "channels": self.channels,
            "rate": self.rate,
            "pyramid": self.pyramid,
            "name": self.name,
        }


class ParaphraserTrainer(keras.Model):
    """Fits a paraphraser to a teacher's last sensing point by `fit`.

    loss = mean over all entries of |x - P(x)| or of (x - P(x))^2.

    Labels in the data are ignored; the teacher is frozen.

    Args:
        paraphraser: The network to train.
        teacher: The teacher's predictions and sensing points.
        reconstruction: `"absolute"` or `"squared"`.

    Reference:
        J. Kim, S. Park, N. Kwak, NeurIPS 2018, arXiv:1802.04977.
    """

    def __init__(
        self,
        paraphraser: Paraphraser,
        teacher: FeatureExtractor,
        reconstruction: str = "absolute",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.paraphraser = paraphraser
        self._teacher = teacher
        self._distance = _DISTANCES[reconstruction]
        self.built = True

    def train_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        taught = isinstance(x, Taught)
        features = x.features if taught else self._teacher(x)
        maps = tf.cast(features.maps[-1], tf.float32)
        variables = self.paraphraser.trainable_variables
        with tf.GradientTape() as tape:
            difference = self.paraphraser.reconstruct(maps) - maps
            loss = tf.reduce_mean(self._distance(difference))
            scaled = self.optimizer.scale_loss(loss)
        self.optimizer.apply(tape.gradient(scaled, variables), variables)
        self._loss_tracker.update_state(loss, tf.shape(maps)[0])
        return self.get_metrics_result()


@keras.saving.register_keras_serializable(package="keras_mhgd")
class FactorTransfer(PreparedMethod):
    """Matches what a trained encoder keeps of the teacher's last map.

    loss = weight mean |F^S - F^T|, F^T the teacher's factor, given by a
    `Paraphraser` that has learnt to encode and decode the teacher's last
    sensing point before the student trains, F^S the student's, given by a
    translator of the same shape that trains with the student; both over
    their lengths. See `factor_transfer_loss`.

    Args:
        factor: `"paraphraser"` as above, the whole factor of a sample brought
            to unit length; `"pyramid"`, a smaller one, each position brought
            to unit length; or `"attention"`, the mean of squares over the
            channels, of which nothing is learnt.
        rate: The factor's channels over the teacher's, > 0. 0.5 is the
            paper's. See `Paraphraser`.
        distance: `"absolute"` (paper) or `"squared"` differences of factors.
        reconstruction: `"absolute"` (the published code) or `"squared"`
            (paper) differences, in the paraphraser's training. With squares
            the rate of 0.1 is too high where maps have entries well above 1.
        preparation_epochs: Epochs of that training; 0 leaves the paraphraser
            as it is.
        preparation_learning_rate: Rate of its SGD (Nesterov momentum 0.9),
            > 0.
        paraphraser: A trained `Paraphraser` of the same teacher and sensing
            point: it is used as it is and not trained again. `factor` and
            `rate` are its own then.
        weight: Multiplier of the loss, >= 0. The published code's is 500,
            for the mean over a whole factor of unit length, whose entries
            are small; those of a `"pyramid"` are larger.

    Call arguments:
        student: `Features`; its last map `(batch, height, width, D)` is read,
            or `(batch, length, D)` for `"attention"`.
        teacher: The same; size and channels may differ. The larger of two
            factors is average-pooled to the size of the smaller.
        labels: Not used.

    Returns:
        `{"factor_transfer": loss}`, a scalar, float32.

    Raises:
        TypeError: If `paraphraser` is none.
        ValueError: If an argument is out of range, if the last sensing point
            is no map or, for `"attention"`, has one position, or if
            `paraphraser` is for other channels.

    Example:
        >>> method = keras_mhgd.methods.FactorTransfer()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        J. Kim, S. Park, N. Kwak, "Paraphrasing Complex Network: Network
        Compression via Factor Transfer", NeurIPS 2018, arXiv:1802.04977.
    """

    terms = ("factor_transfer",)
    needs = ("maps",)

    def __init__(
        self,
        factor: str = "paraphraser",
        rate: float = 0.5,
        distance: str = "absolute",
        reconstruction: str = "absolute",
        preparation_epochs: int = 30,
        preparation_learning_rate: float = 0.1,
        paraphraser: Paraphraser | None = None,
        weight: float = 500.0,
        **kwargs,
    ):
        super().__init__(
            preparation_epochs, preparation_learning_rate, weight, **kwargs
        )
        require_known("factor", factor, _FACTORS)
        require_positive(rate=rate)
        require_known("distance", distance, _DISTANCES)
        require_known("reconstruction", reconstruction, _DISTANCES)
        if paraphraser is not None:
            if not isinstance(paraphraser, Paraphraser):
                raise TypeError(
                    "`paraphraser` must be a Paraphraser of "
                    "keras_mhgd.methods.factor_transfer. Received: "
                    f"{paraphraser!r} of type {type(paraphraser).__name__}. "
                    "Load a saved one with keras.saving.load_model."
                )
            factor = "pyramid" if paraphraser.pyramid else "paraphraser"
            rate = paraphraser.rate
        self.factor = factor
        self.rate = rate
        self.distance = distance
        self.reconstruction = reconstruction
        self.paraphraser = paraphraser
        self._paraphraser_given = paraphraser is not None

    def build(self, student, teacher):
        super().build(student, teacher)
        source, target = student.maps[-1], teacher.maps[-1]
        if self._paraphraser_given or self.factor == "attention":
            self._prepared.assign(1.0)
        if self.factor == "attention":
            require_positions([source], [target], type(self).__name__)
            return
        if len(source) != 4 or len(target) != 4:
            raise ValueError(
                "FactorTransfer convolves: the last sensing point must be "
                "`maps (batch, height, width, D)` in both networks. Received: "
                f"shapes {tuple(source)} and {tuple(target)}. Choose another "
                'last one of `sensing_points`, or factor="attention".'
            )
        common_size(source, target)
        if self.paraphraser is None:
            self.paraphraser = Paraphraser(
                target[-1], self.rate, pyramid=self.factor == "pyramid"
            )
        elif self.paraphraser.channels != target[-1]:
            raise ValueError(
                "`paraphraser` must have been trained at the same sensing "
                "point. Received: one for "
                f"{self.paraphraser.channels} channels, and a teacher with "
                f"{target[-1]}. Leave it out to train a new one."
            )
        self.paraphraser.trainable = False
        self.translator = self.paraphraser.make_encoder(
            source[-1], "translator"
        )

    def trainer(self, teacher, student):
        return ParaphraserTrainer(
            self.paraphraser, teacher, self.reconstruction
        )

    def prepare(self, teacher, student, **fit_arguments):
        if self.factor == "attention":
            return
        self.paraphraser.trainable = True
        try:
            super().prepare(teacher, student, **fit_arguments)
        finally:
            self.paraphraser.trainable = False

    def artifacts(self):
        if self.factor == "attention":
            return {}
        return {"paraphraser": self.paraphraser}

    def targets(self, teacher):
        # Not the factor: a cache is filled before the paraphraser trains.
        return teacher._replace(maps=teacher.maps[-1:])

    def call(self, student, teacher, labels):
        source, target = student.maps[-1], teacher.maps[-1]
        if self.factor == "attention":
            source, target = (
                tf.reduce_mean(tf.square(each), axis=-1, keepdims=True)
                for each in to_one_size(source, target)
            )
        else:
            source, target = self.translator(source), self.paraphraser(target)
        loss = factor_transfer_loss(
            source,
            target,
            self.distance,
            per_position=self.factor == "pyramid",
        )
        return {"factor_transfer": self.weight * loss}

    def get_config(self):
        # No paraphraser: `build` makes one like it, and its weights are
        # saved and loaded as all weights are.
        return {
            **super().get_config(),
            "factor": self.factor,
            "rate": self.rate,
            "distance": self.distance,
            "reconstruction": self.reconstruction,
        }
