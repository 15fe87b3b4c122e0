"""Fuses batch normalisation, or synchronises it over all replicas."""

import functools

import keras
import tensorflow as tf


def fuse_batch_normalization(model: keras.Layer) -> int:
    """Makes each batch normalisation of a network run as one operation.

    Keras 3 runs batch normalisation as several operations. On a processor, a
    training step of a small residual network then takes about a quarter
    longer. Results and gradients are equal up to rounding. The layers stay
    Keras's own: their weights, configuration, files and clones do not change.
    A network that is loaded from a file is not fused until this function is
    called on it.

    Layers are fused at any depth of the network. A fused layer that does not
    normalise maps `(batch, height, width, channels)` over the last axis still
    runs as in Keras. Synchronised layers and layers with renormalisation are
    not fused. In float16 and bfloat16, statistics are float32, as in Keras.

    Args:
        model: A built network, or a built layer that consists of others.

    Returns:
        The number of fused layers, including layers that were fused before.

    Example:
        >>> network = keras_mhgd.models.get("resnet_small", (28, 28, 1), 10)
        >>> keras_mhgd.models.fuse_batch_normalization(network)
        9
    """
    layers = [
        layer
        for layer in _layers(model)
        if not (layer.synchronized or layer.renorm)
    ]
    for layer in layers:
        # Takes `call` from the class, because `layer.call` may already be the
        # fused one from an earlier call of this function.
        unfused = functools.partial(type(layer).call, layer)
        layer.call = functools.partial(_call, layer, unfused)
    return len(layers)


def synchronize_batch_normalization(model: keras.Model) -> int:
    """Makes batch normalisation use the statistics of all replicas.

    By default, each replica of a `tf.distribute` strategy normalises its part
    of the batch with the statistics of that part. This function sets the
    option `synchronized` of the Keras layers, which is saved in their
    configuration. On one device the option changes nothing.

    Args:
        model: A network that is not fused.

    Returns:
        The number of batch-normalisation layers.

    Example:
        >>> network = keras_mhgd.models.get("resnet_small", (28, 28, 1), 10)
        >>> keras_mhgd.models.synchronize_batch_normalization(network)
        9
    """
    layers = _layers(model)
    for layer in layers:
        layer.synchronized = True
    return len(layers)


def _layers(model: keras.Layer) -> list[keras.layers.BatchNormalization]:
    return [
        layer
        for layer in model._flatten_layers()
        if type(layer) is keras.layers.BatchNormalization
    ]


def _call(layer, unfused, inputs, training=None, mask=None):
    rank = inputs.shape.rank
    fits = (
        rank == 4
        and layer.axis in (-1, 3)
        and layer.compute_dtype != "float64"
        and mask is None
    )
    if not fits:
        return unfused(inputs, training=training, mask=mask)
    channels = inputs.shape[-1]
    by_batch = bool(training and layer.trainable)
    mean, variance = (
        tf.convert_to_tensor(each)
        for each in (layer.moving_mean, layer.moving_variance)
    )
    scale = layer.gamma if layer.scale else tf.ones(channels)
    offset = layer.beta if layer.center else tf.zeros(channels)
    outputs, batch_mean, batch_variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=offset,
        mean=tf.zeros(0) if by_batch else mean,
        variance=tf.zeros(0) if by_batch else variance,
        epsilon=layer.epsilon,
        is_training=by_batch,
    )
    if by_batch:
        # The operation gives the unbiased variance. Keras stores the biased
        # one.
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        batch_variance *= (count - 1) / count
        old, new = layer.momentum, 1 - layer.momentum
        layer.moving_mean.assign(mean * old + batch_mean * new)
        layer.moving_variance.assign(variance * old + batch_variance * new)
    return outputs
