"""Measures the time and the accuracy of leading singular vectors."""

import numpy as np
import tensorflow as tf

from benchmarks.speed.contest import Run, looped
from benchmarks.speed.pairs import PAIRS
from keras_mhgd import linalg
from keras_mhgd.features import FeatureExtractor

SHAPES = ((256, 64), (64, 128), (784, 16), (16, 256), (196, 256), (49, 64))
_K = 4
_GAP = 1e-3


def make(batch_size: int) -> dict[str, Run]:
    """Makes a run for each shape and solver: forward and gradient.

    Args:
        batch_size: Number of matrices.

    Returns:
        Runs by `"HW x D, solver"`.
    """
    rng = np.random.default_rng(0)
    runs = {}
    for shape in SHAPES:
        rank = min(shape)
        x = rng.normal(size=(batch_size, shape[0], rank))
        x = x * 0.9 ** np.arange(rank) @ rng.normal(size=(rank, shape[1]))
        x = tf.constant(np.maximum(x, 0), tf.float32)
        upstream = tf.constant(
            rng.normal(size=(batch_size, shape[1], _K)), tf.float32
        )
        for name, solver in _SOLVERS.items():
            run = _differentiated(solver)
            runs[f"{label(shape)}, {name}"] = looped(
                lambda run=run, x=x, upstream=upstream: run(x, upstream)
            )
    return runs


def label(shape: tuple[int, int]) -> str:
    """Names a shape."""
    return f"{shape[0]} x {shape[1]}"


def accuracy(pair: str, batch_size: int) -> dict[str, list[float]]:
    """Compares our vectors with float64 on the feature maps of a pair.

    Args:
        pair: A name in `PAIRS`.
        batch_size: Number of images.

    Returns:
        For each network and sensing point, the largest sine of the angle
        between a vector and the exact vector, and the largest error of the
        gradient relative to its largest entry. A vector counts if its squared
        singular value differs from both neighbours' by more than 1e-3 of the
        largest. A sample's gradient counts if all its four vectors count.
    """
    images, _ = PAIRS[pair].batch(batch_size)
    points = [each for each in PAIRS[pair].points if each != "logits"]
    found = {}
    for role, network in zip(
        ("student", "teacher"), PAIRS[pair].networks(), strict=True
    ):
        read = FeatureExtractor(network, points)(images)
        for point, feature in zip(points, read.maps, strict=True):
            depth = feature.shape[3]
            x = tf.reshape(feature, (batch_size, -1, depth))
            found[f"{role}, {point}"] = _errors(x)
    return found


def _errors(x):
    _, values, right = np.linalg.svd(
        x.numpy().astype("float64"), full_matrices=False
    )
    squares = values**2
    gaps = -np.diff(squares, axis=1)[:, :_K] / squares[:, :1]
    before = np.pad(gaps[:, :-1], ((0, 0), (1, 0)), constant_values=1)
    apart = np.minimum(gaps, before) > _GAP
    exact = np.swapaxes(right[:, :_K], 1, 2)
    upstream = np.random.default_rng(0).normal(size=exact.shape)
    vectors, ours = _aligned(_SOLVERS["ours"], x, exact, upstream)
    along = np.sum(vectors * exact, axis=1, keepdims=True)
    sines = np.linalg.norm(vectors - along * exact, axis=1)
    _, reference = _aligned(
        _SOLVERS["eigendecomposition"],
        tf.cast(x, tf.float64),
        exact,
        upstream,
    )
    kept = apart.all(axis=1)
    error = np.abs(ours - reference)[kept]
    scale = np.abs(reference[kept]).max(axis=(1, 2), keepdims=True)
    return [
        float(sines[apart].max(initial=0)),
        float((error / scale).max(initial=0)),
    ]


def _aligned(solver, x, exact, upstream):
    """Gives float64 vectors with the exact ones' signs, and the gradient."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        vectors = solver(x)
    signs = np.sign(np.sum(vectors.numpy() * exact, axis=1, keepdims=True))
    arriving = tf.constant(upstream * signs, x.dtype)
    gradient = tape.gradient(vectors, x, arriving).numpy()
    return (vectors.numpy() * signs).astype("float64"), gradient


def _differentiated(solver):
    @tf.function
    def run(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            vectors = solver(x)
        return tape.gradient(vectors, x, upstream)

    return run


_SOLVERS = {
    "tf.linalg.svd": lambda x: tf.linalg.svd(x)[2][:, :, :_K],
    "eigendecomposition": lambda x: linalg.right_singular_vectors(
        x, _K, solver="eigh"
    ),
    "ours": lambda x: linalg.right_singular_vectors(x, _K),
}
