"""The network that is exported: one input, one output, float32."""

from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.features import input_specs

_INPUT_DTYPES = ("float32", "int32", "int64")


def checked_model(model: keras.Model) -> keras.Model:
    """Returns a built model of one input and output, as a graph of layers."""
    if hasattr(model, "student") or not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a plain `keras.Model`. Received: "
            f"model={model!r} of type {type(model).__name__}. Of a distiller, "
            "pass `distiller.student`."
        )
    # Neither unbuilt Sequential nor subclassed models have `inputs`.
    if not getattr(model, "inputs", None) and model.built:
        spec = input_specs(model)
        if isinstance(spec, tf.TensorSpec):
            inputs = keras.Input(spec.shape[1:], dtype=spec.dtype.name)
            model = keras.Model(inputs, model(inputs), name=model.name)
    inputs = getattr(model, "inputs", None) or []
    outputs = getattr(model, "outputs", None) or []
    fits = [
        tensor.dtype in _INPUT_DTYPES and tensor.shape[0] is None
        for tensor in inputs
    ]
    if fits != [True] or len(outputs) != 1:
        raise ValueError(
            "`model` must be a built model with one input of floats or "
            "integers, of any batch size, and one output. Received: "
            f"model={model!r} with inputs={inputs} and outputs={outputs}. "
            "Build it around one `keras.Input(shape)`."
        )
    return model


def shape_and_dtype(model: keras.Model) -> tuple[tuple[int | None, ...], str]:
    """Tells what a model takes: shape without the batch, and dtype."""
    (source,) = model.inputs
    return tuple(source.shape[1:]), source.dtype


def checked_images(
    name: str, images: np.ndarray, shape: Sequence[int | None], dtype: str
) -> np.ndarray:
    """Returns images as `dtype` if each has the shape; None fits any."""
    images = np.asarray(images, dtype)
    fits = tf.TensorShape((None, *shape)).is_compatible_with(images.shape)
    if not fits or len(images) == 0:
        expected = ", ".join(map(str, ("N", *shape)))
        raise ValueError(
            f"`{name}` must have the shape ({expected}) with N >= 1. "
            f"Received: {name}.shape={images.shape}. Pass at least one "
            "image, prepared as for training."
        )
    return images


def in_float32(model: keras.Model) -> keras.Model:
    """Rebuilds the model in float32 if a layer has another dtype policy."""
    config = model.get_config()
    policies = [p for p in _dtype_policies(config) if p["name"] != "float32"]
    if not policies:
        return model
    for policy in policies:
        policy["name"] = "float32"
    # Layers that make layers of their own take the global policy for them.
    global_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        rebuilt = type(model).from_config(config)
    finally:
        keras.config.set_dtype_policy(global_policy)
    rebuilt.set_weights(model.get_weights())
    return rebuilt


def _dtype_policies(config: object) -> Iterator[dict]:
    """Yields the config of each serialized dtype policy at any depth."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            yield config["config"]
        config = list(config.values())
    for value in config if isinstance(config, list | tuple) else ():
        yield from _dtype_policies(value)
