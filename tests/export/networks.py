"""Small networks and images for the tests of exported files."""

import keras
import numpy as np

import keras_mhgd

layers = keras.layers
SHAPE = (12, 12, 3)
SERVING = keras_mhgd.export.Serving(
    mean=(100.0, 120.0, 140.0),
    std=(50.0, 60.0, 70.0),
    classes=("a", "b", "ç", "d d", "e"),
)


@keras.saving.register_keras_serializable("test_export")
class Block(layers.Layer):
    """Makes its own layer without passing on a dtype policy."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)
        self.built = True

    def call(self, inputs):
        return self.dense(inputs)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("test_export")
class NoMethod(keras_mhgd.methods.Method):
    """A method without terms."""

    def call(self, student, teacher, labels):
        return {}


def randomise(model):
    """Gives every weight a value that shows, moving statistics included."""
    rng = np.random.default_rng(1)
    model.set_weights(
        [rng.uniform(0.1, 0.9, w.shape) - 0.4 * (w.ndim > 1) for w in
         model.get_weights()]
    )  # fmt: skip
    return model


def conv_net():
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(6, 3, padding="same", use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(max_value=6.0)(x)
    x = layers.MaxPooling2D()(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
    x = layers.Flatten()(x)
    return randomise(keras.Model(inputs, layers.Dense(5)(x), name="conv_net"))


def dense_net():
    model = [keras.Input((8,)), layers.Dense(4, "relu"), layers.Dense(3)]
    return randomise(keras.Sequential(model))


def composite_net():
    """Nested model, wrapper and a layer that makes a layer."""
    inner = keras.Sequential(
        [keras.Input((6, 3)), layers.TimeDistributed(layers.Dense(4))]
    )
    inputs = keras.Input((6, 3))
    x = layers.GlobalAveragePooling1D()(inner(inputs))
    return randomise(keras.Model(inputs, Block(5)(x)))


def distiller(student, **arguments):
    teacher = keras.models.clone_model(student)
    return keras_mhgd.Distiller(student, teacher, NoMethod(), **arguments)


def images(n=7, shape=SHAPE):
    return np.random.default_rng(0).normal(size=(n, *shape)).astype("float32")


def pixels(n, shape=SHAPE):
    return np.random.default_rng(2).integers(0, 256, (n, *shape), "uint8")


def normalised(pixels):
    values = (pixels - np.array(SERVING.mean)) / np.array(SERVING.std)
    return values.astype("float32")


def two_inputs():
    inputs = [keras.Input((2,)), keras.Input((2,))]
    return keras.Model(inputs, inputs[0] + inputs[1])
