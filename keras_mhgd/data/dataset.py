"""Holds a labelled image set in memory and streams its batches."""

import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf

from keras_mhgd.checks import check_integer, require_not_negative
from keras_mhgd.data import augmentation

# Lower bound of a channel's standard deviation, in units of 0..255. Without
# this bound, scaling would blow up a nearly constant channel.
_LEAST_DEVIATION = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Holds a labelled image set in memory and streams its batches.

    Images are uint8 `(count, height, width, channels)` in 0..255, labels int32
    `(count,)`. The streams give normalised float32 images.

    Args:
        name: Name of the set in messages and reports.
        x_train: Training images.
        y_train: Training labels.
        x_test: Test images, of the same height, width and channels.
        y_test: Test labels.
        classes: Name of each label.
        flip: Whether a mirrored image keeps its label.
        padding: Largest shift of the random crop, pixels.
        index_train: Position of each training image in the full training
            set, integers `(count,)`. An image's augmentation depends on its
            position. Defaults to `None`: `x_train` is the full set.
        full_size: Number of images in the full training set. Defaults to
            `None`: the number in `x_train`.
        moments: Mean and standard deviation of each channel over the full
            training set. Defaults to `None`: computed from `x_train`.

    Raises:
        ValueError: If an array has the wrong dtype or shape, or the arguments
            do not fit together.
    """

    name: str
    x_train: np.ndarray = dataclasses.field(repr=False)
    y_train: np.ndarray = dataclasses.field(repr=False)
    x_test: np.ndarray = dataclasses.field(repr=False)
    y_test: np.ndarray = dataclasses.field(repr=False)
    classes: tuple[str, ...] = dataclasses.field(repr=False)
    flip: bool = False
    padding: int = 0
    index_train: np.ndarray | None = dataclasses.field(default=None, repr=False)
    full_size: int | None = None
    moments: tuple[np.ndarray, np.ndarray] | None = dataclasses.field(
        default=None, repr=False
    )

    def __post_init__(self):
        for part in ("train", "test"):
            self._check_images(part)
            self._check_labels(part)
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise ValueError(
                f"{self.name}: training and test images must have the same "
                "height, width and channels. Received: x_train of shape "
                f"{self.x_train.shape}, x_test of shape {self.x_test.shape}. "
                "Resize one of them."
            )
        largest = min(self.input_shape[:2]) - 1
        if not 0 <= check_integer("padding", self.padding) <= largest:
            raise ValueError(
                f"{self.name}: `padding` must lie in 0..{largest}, less than "
                "the shorter side of an image, because the padding reflects. "
                f"Received: padding={self.padding}, images of shape "
                f"{self.input_shape}. Pass a smaller padding."
            )
        # A frozen dataclass forbids plain assignment of its fields.
        if self.full_size is None:
            object.__setattr__(self, "full_size", len(self.x_train))
        if self.index_train is None:
            object.__setattr__(self, "index_train", np.arange(self.full_size))
        self._check_index()

    def _check_images(self, part: str) -> None:
        images = getattr(self, f"x_{part}")
        fits = isinstance(images, np.ndarray) and images.dtype == np.uint8
        if not (fits and images.ndim == 4 and images.size):
            raise ValueError(
                f"{self.name}: `x_{part}` must be a non-empty uint8 array of "
                "shape (count, height, width, channels). Received: "
                f"{_describe(images)}. Convert or reshape it."
            )

    def _check_labels(self, part: str) -> None:
        labels, count = (
            getattr(self, f"y_{part}"),
            len(getattr(self, f"x_{part}")),
        )
        fits = isinstance(labels, np.ndarray) and labels.dtype == np.int32
        if not (fits and labels.shape == (count,)):
            raise ValueError(
                f"{self.name}: `y_{part}` must be an int32 array with one "
                f"label for each of the {count} images. Received: "
                f"{_describe(labels)}. Convert or reshape it."
            )
        wrong = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
        if wrong.size:
            raise ValueError(
                f"{self.name}: labels must lie in [0, {self.num_classes}), the "
                f"number of classes. Received: y_{part}[{wrong[0]}] = "
                f"{labels[wrong[0]]} and {wrong.size - 1} more outside. Number "
                "the classes from 0, or name all of them in `classes`."
            )

    def _check_index(self) -> None:
        index = self.index_train
        fits = isinstance(index, np.ndarray) and index.dtype.kind in "iu"
        if not (
            fits
            and index.shape == self.y_train.shape
            and index.min() >= 0
            and index.max() < self.full_size
        ):
            raise ValueError(
                f"{self.name}: `index_train` must hold one integer in [0, "
                f"full_size) for each of the {len(self.y_train)} training "
                f"images. Received: {_describe(index)}, full_size="
                f"{self.full_size}. Leave both out for a full training set."
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width (pixels) and channels of an image."""
        return self.x_train.shape[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        if self.moments is not None:
            return self.moments
        # Integer sums are exact in any order. Chunks bound the memory.
        total = np.zeros(self.input_shape[2], np.int64)
        squares = np.zeros_like(total)
        for start in range(0, len(self.x_train), 4096):
            chunk = self.x_train[start : start + 4096]
            total += chunk.sum(axis=(0, 1, 2), dtype=np.int64)
            squares += np.square(chunk, dtype=np.uint16).sum(
                axis=(0, 1, 2), dtype=np.int64
            )
        count = self.x_train[..., 0].size
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        deviation = np.maximum(deviation, _LEAST_DEVIATION)
        return mean.astype(np.float32), deviation.astype(np.float32)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel over the full training set, float32, 0..255."""
        return self._moments[0]

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each channel, float32, 0..255, at least 1."""
        return self._moments[1]

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Centres and scales images as the streams do.

        Args:
            images: uint8 `(..., height, width, channels)` in 0..255.

        Returns:
            float32 array of the same shape.

        Raises:
            ValueError: If `images` is not uint8 or has another number of
                channels.
        """
        images = np.asarray(images)
        channels = self.input_shape[2]
        if images.dtype != np.uint8 or images.shape[-1:] != (channels,):
            raise ValueError(
                "`images` must be uint8, 0..255, with "
                f"{channels} channel(s) last. Received: {_describe(images)}. "
                "Pass the images before any scaling."
            )
        return (images.astype(np.float32) - self.mean) * (1 / self.std)

    def take(self, count: int) -> "Dataset":
        """Keeps a class-balanced part of the training images.

        The part has the first `count / num_classes` images of each class, in
        stored order. A remainder comes from the first classes that still have
        images. The choice does not depend on a seed. Images are normalised as
        in the full set, so networks trained on different parts take the same
        input.

        Args:
            count: Number of training images to keep.

        Returns:
            `Dataset` with the same test images.

        Raises:
            TypeError: If `count` is no integer.
            ValueError: If `count` is not between 1 and the number of training
                images.
        """
        size = len(self.y_train)
        if not 1 <= check_integer("subset", count) <= size:
            raise ValueError(
                f"{self.name}: `subset` must lie in 1..{size}, the number of "
                f"training images. Received: subset={count}. Pass fewer, or "
                "None for all."
            )
        rank = self._rank_in_class(np.arange(size))
        chosen = np.sort(np.lexsort((self.y_train, rank))[:count])
        return self._with_train(chosen)

    def hold_out(self, fraction: float, seed: int = 0) -> "Dataset":
        """Holds out a part of the training images to choose settings on.

        The same fraction of each class is held out, up to rounding. The seed
        decides which images. The other training images remain for training
        and are normalised as in the full set. The original test images are
        left out.

        Args:
            fraction: Fraction of the training images to hold out, in (0, 1).
            seed: Integer, 0 or more.

        Returns:
            `Dataset` whose test images are the held-out images.

        Raises:
            TypeError: If `seed` is no integer.
            ValueError: If `fraction` or `seed` is out of range, or leaves no
                image to train on or to test on.

        Example:
            >>> glyphs = keras_mhgd.data.load("glyphs", subset=2000)
            >>> held_out = glyphs.hold_out(0.2)
            >>> len(held_out.x_train), len(held_out.x_test)
            (1600, 400)
        """
        size = len(self.y_train)
        count = round(fraction * size) if 0 < fraction < 1 else 0
        if not 0 < count < size:
            raise ValueError(
                f"{self.name}: `fraction` must lie between 0 and 1 and leave "
                f"images on both sides. Received: fraction={fraction}, {size} "
                "training images. Pass 0.2, say."
            )
        require_not_negative(seed=check_integer("seed", seed))
        order = np.random.default_rng(seed).permutation(size)
        sizes = np.bincount(self.y_train)[self.y_train]
        # Position of each image within its class, scaled to 0..1. The first
        # images by this position hold the same fraction of every class.
        place = (self._rank_in_class(order) + 0.5) / sizes
        first = np.argsort(place, kind="stable")
        held_out = np.sort(first[:count])
        return dataclasses.replace(
            self._with_train(np.sort(first[count:])),
            x_test=self.x_train[held_out],
            y_test=self.y_train[held_out],
        )

    def _rank_in_class(self, order: np.ndarray) -> np.ndarray:
        """Ranks each image within its class, from 0, in the given order."""
        by_class = order[np.argsort(self.y_train[order], kind="stable")]
        labels = self.y_train[by_class]
        rank = np.empty(len(order), np.int64)
        rank[by_class] = np.arange(len(order)) - np.searchsorted(labels, labels)
        return rank

    def _with_train(self, chosen: np.ndarray) -> "Dataset":
        return dataclasses.replace(
            self,
            x_train=self.x_train[chosen],
            y_train=self.y_train[chosen],
            index_train=self.index_train[chosen],
            moments=self._moments,
        )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Gives the number of batches in an epoch; the last may be smaller.

        Args:
            batch_size: Images in a batch, over all replicas.

        Returns:
            Number of batches, at least 1.
        """
        return math.ceil(len(self.x_train) / _check_batch_size(batch_size))

    def train(
        self,
        batch_size: int,
        seed: int = 0,
        initial_epoch: int = 0,
        augment: bool = True,
        views: int | None = None,
    ) -> tf.data.Dataset:
        """Streams shuffled, augmented training batches without end.

        The order within an epoch depends only on (seed, epoch). The crop and
        the mirroring of an image depend only on (seed, epoch, index in the
        full training set). Every epoch has `steps_per_epoch` batches.

        Args:
            batch_size: Images in a batch, over all replicas.
            seed: Integer that fits 64 bits.
            initial_epoch: Epoch that the stream starts with, from 0.
            augment: Whether to crop and mirror.
            views: Number of epochs after which the crops and the mirroring
                repeat. The order does not repeat. Defaults to `None`: nothing
                repeats.

        Returns:
            `tf.data.Dataset` of float32 images `(batch, height, width,
            channels)` and int32 labels `(batch,)`.

        Raises:
            TypeError: If a number is no integer.
            ValueError: If a number is out of its range.
        """
        return self.train_with_places(
            batch_size, seed, initial_epoch, augment, views
        ).map(
            lambda images, labels, *place: (images, labels),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def train_with_places(
        self,
        batch_size: int,
        seed: int = 0,
        initial_epoch: int = 0,
        augment: bool = True,
        views: int | None = None,
    ) -> tf.data.Dataset:
        """Streams the batches of `train` with view number and positions.

        All arguments have the meaning that they have in `train`.

        Args:
            batch_size: Images in a batch, over all replicas.
            seed: Integer that fits 64 bits.
            initial_epoch: Epoch that the stream starts with, from 0.
            augment: Whether to crop and mirror.
            views: Number of epochs after which the views repeat, or `None`.

        Returns:
            `tf.data.Dataset` of images, labels, the view number `()` and the
            images' positions in `x_train` `(batch,)`. The view number is the
            epoch, modulo `views`. View number and positions are int64.
        """
        _check_batch_size(batch_size)
        if not -(2**63) <= check_integer("seed", seed) < 2**63:
            raise ValueError(
                "`seed` must fit 64 bits. "
                f"Received: seed={seed}. Pass a smaller number."
            )
        if check_integer("initial_epoch", initial_epoch) < 0:
            raise ValueError(
                "`initial_epoch` must be at least 0. "
                f"Received: initial_epoch={initial_epoch}. Pass the number of "
                "epochs already trained."
            )
        if views is not None and check_integer("views", views) < 1:
            raise ValueError(
                "`views` must be at least 1. "
                f"Received: views={views}. Pass None for new views each epoch."
            )
        images, labels = _on_host(self.x_train), _on_host(self.y_train)
        index = _on_host(self.index_train)

        def split_seed(number):
            seeds = tf.stack([tf.constant(seed, tf.int64), number])
            return tf.unstack(tf.random.split(seeds, 2, alg="philox"), num=2)

        def order_and_views(epoch):
            view = epoch if views is None else epoch % views
            order_seed, view_seed = split_seed(epoch)[0], split_seed(view)[1]
            order = tf.random.experimental.stateless_shuffle(
                tf.range(len(self.x_train), dtype=tf.int64),
                order_seed,
                alg="philox",
            )
            drawn = augmentation.draw_views(
                view_seed, self.full_size, self.padding, self.flip
            )
            drawn = tf.gather(drawn, tf.gather(index, order))
            batches = tf.data.Dataset.from_tensor_slices((order, drawn))
            batches = batches.batch(batch_size)
            return batches.map(lambda order, drawn: (order, drawn, view))

        def batch(order, drawn, view):
            chosen = tf.gather(images, order)
            if augment:
                chosen = augmentation.apply_views(chosen, drawn, self.padding)
            return self._to_float(chosen), tf.gather(labels, order), view, order

        return (
            tf.data.Dataset.counter(initial_epoch)
            .flat_map(order_and_views)
            .map(batch, num_parallel_calls=tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(_options())
        )

    def test(self, batch_size: int) -> tf.data.Dataset:
        """Streams the test set once, in order, not augmented.

        Args:
            batch_size: Images in a batch, over all replicas.

        Returns:
            `tf.data.Dataset` of float32 images `(batch, height, width,
            channels)` and int32 labels `(batch,)`.
        """
        _check_batch_size(batch_size)
        images, labels = _on_host(self.x_test), _on_host(self.y_test)

        def batch(order):
            chosen = tf.gather(images, order)
            return self._to_float(chosen), tf.gather(labels, order)

        return (
            tf.data.Dataset.range(len(self.x_test))
            .batch(batch_size)
            .map(batch, num_parallel_calls=tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(_options())
        )

    def _to_float(self, images: tf.Tensor) -> tf.Tensor:
        return (tf.cast(images, tf.float32) - self.mean) * (1 / self.std)


def _check_batch_size(batch_size: int) -> int:
    if check_integer("batch_size", batch_size) < 1:
        raise ValueError(
            "`batch_size` must be at least 1. "
            f"Received: batch_size={batch_size}. Pass a positive integer."
        )
    return batch_size


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    return f"{type(value).__name__}"


def _options() -> tf.data.Options:
    # tf.data's autotuner runs in a thread that sleeps for up to a minute. The
    # end of a stream waits for this thread, and so would the end of every
    # `fit` and `evaluate`.
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _on_host(array: np.ndarray) -> tf.Tensor:
    # tf.data runs on the host. An array on the accelerator would have to be
    # copied back to the host.
    with tf.device("CPU:0"):
        return tf.constant(array)
