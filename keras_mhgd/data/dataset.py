"""Holds a labelled image set, in memory or in files, and streams batches."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.checks import (
    check_integer,
    require_known,
    require_not_negative,
    require_one_or_more,
)
from keras_mhgd.data import augmentation, random_layers
from keras_mhgd.data.files import Joined, OnDemand

# Lower bound of a channel's standard deviation, in units of 0..255. Without
# this bound, scaling would blow up a nearly constant channel.
_LEAST_DEVIATION = 1.0
# Images in files are normalised by so many of them, spread evenly.
_SAMPLE = 1000
# Bytes of the images whose sums are computed at once.
_CHUNK = 2**27
# Batches that are read at once, and batches that wait for the training.
_PARALLEL, _WAITING = min(4, os.cpu_count() or 1), 2


Images = np.ndarray | OnDemand | Joined
Share = Callable[[tf.data.Dataset], tf.data.Dataset]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Holds a labelled image set and streams its batches.

    Images are uint8 `(count, height, width, channels)` in 0..255: an array, or
    `Files`, which are read when they are needed. Labels are int32 `(count,)`;
    a training image without a label has -1. The streams give normalised float32
    images.

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
            training set. Defaults to `None`: computed from `x_train`, or from
            1000 of its images, spread evenly, if they are in files.
        layers: Layers that make the training views of images in 0..255: see
            `augmented`. Defaults to `None`: crops and mirroring.
        mixing: How the training views are mixed. Defaults to `None`: not.

    Raises:
        ValueError: If an array has the wrong dtype or shape, or the arguments
            do not fit together.
    """

    kind: ClassVar[str] = "images"  # what messages call the samples

    name: str
    x_train: Images = dataclasses.field(repr=False)
    y_train: np.ndarray = dataclasses.field(repr=False)
    x_test: Images = dataclasses.field(repr=False)
    y_test: np.ndarray = dataclasses.field(repr=False)
    classes: tuple[str, ...] = dataclasses.field(repr=False)
    flip: bool = False
    padding: int = 0
    index_train: np.ndarray | None = dataclasses.field(default=None, repr=False)
    full_size: int | None = None
    moments: tuple[np.ndarray, np.ndarray] | None = dataclasses.field(
        default=None, repr=False
    )
    layers: keras.Layer | None = dataclasses.field(default=None, repr=False)
    mixing: random_layers.Mixing | None = None

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
        self._check_padding()
        # A frozen dataclass forbids plain assignment of its fields.
        if self.full_size is None:
            object.__setattr__(self, "full_size", len(self.x_train))
        if self.index_train is None:
            object.__setattr__(self, "index_train", np.arange(self.full_size))
        self._check_index()

    def _check_padding(self) -> None:
        largest = min(self.input_shape[:2]) - 1
        if not 0 <= check_integer("padding", self.padding) <= largest:
            raise ValueError(
                f"{self.name}: `padding` must lie in 0..{largest}, less than "
                "the shorter side of an image, because the padding reflects. "
                f"Received: padding={self.padding}, images of shape "
                f"{self.input_shape}. Pass a smaller padding."
            )

    def _check_images(self, part: str) -> None:
        images = getattr(self, f"x_{part}")
        known = isinstance(images, Images)
        fits = known and images.dtype == np.uint8
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
        least = -1 if part == "train" else 0
        wrong = np.flatnonzero((labels < least) | (labels >= self.num_classes))
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
    def view_shape(self) -> tuple[int, int, int]:
        """Height, width (pixels) and channels of a training view."""
        return self._views_of[0] if self.layers else self.input_shape

    @property
    def unlabeled(self) -> int:
        """Number of training images without a label."""
        return int((self.y_train < 0).sum())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        if self.moments is not None:
            return self.moments
        images = self.x_train
        if not isinstance(images, np.ndarray):
            size = min(_SAMPLE, len(images))
            images = images.part(
                np.linspace(0, len(images) - 1, size).round().astype(int)
            )
        # Integer sums are exact in any order. Chunks bound the memory.
        total = np.zeros(self.input_shape[2], np.int64)
        squares = np.zeros_like(total)
        size = max(1, _CHUNK // math.prod(self.input_shape))
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            total += chunk.sum(axis=(0, 1, 2), dtype=np.int64)
            squares += np.square(chunk, dtype=np.uint16).sum(
                axis=(0, 1, 2), dtype=np.int64
            )
        count = len(images) * math.prod(self.input_shape[:2])
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

    def augmented(
        self,
        augmentation: str | keras.Layer,
        size: tuple[int, int] | None = None,
        mixing: random_layers.Mixing | None = None,
    ) -> "Dataset":
        """Changes the views that training shows.

        A view depends on (seed, epoch, index in the full training set) alone.
        With `mixing`, so do the other image and the share; labels are then
        vectors of class shares, in the test stream as well. Methods on class
        numbers take the class of the larger share.

        Args:
            augmentation: `"none"`; `"crop"`: shifted crops and mirroring;
                `"standard"` or `"strong"`: the layers of
                `keras_mhgd.data.random_layers.named`, the latter mixed by
                MixUp and CutMix; or a layer such as a `keras.Sequential` of
                Keras's preprocessing layers, for images in 0..255. The layers
                may get images in files in their own sizes.
            size: Height and width of the views of `"standard"` and `"strong"`,
                pixels. Defaults to `None`: the images' size.
            mixing: How to mix views. Defaults to `None`: `Mixing()` for
                `"strong"`, else none.

        Returns:
            `Dataset` with the same images.

        Raises:
            ValueError: If the name is unknown or takes no `size`, a layer
                draws random numbers from elsewhere than its generators, or the
                views have no fixed size.

        Example:
            >>> glyphs = keras_mhgd.data.load("glyphs", subset=2000)
            >>> rotated = glyphs.augmented(keras.layers.RandomRotation(0.05))
            >>> x, y = next(iter(rotated.train(batch_size=64)))
            >>> x.shape
            TensorShape([64, 28, 28, 1])
        """
        changes = {"layers": None, "mixing": mixing}
        if isinstance(augmentation, keras.Layer):
            random_layers.require_stateless(augmentation, self.input_shape[2])
            changes["layers"] = augmentation
        else:
            require_known("augmentation", augmentation, random_layers.NAMES)
        if size is not None and augmentation not in ("standard", "strong"):
            raise ValueError(
                "`size` must be left out but for augmentation='standard' or "
                f"'strong'. Received: size={size}, augmentation="
                f"{augmentation!r}. Add a layer that crops or resizes."
            )
        if augmentation == "none":
            changes |= {"padding": 0, "flip": False}
        elif augmentation in ("standard", "strong"):
            changes["layers"] = random_layers.named(
                augmentation,
                size or self.input_shape[:2],
                self.input_shape[2],
                self.flip,
            )
        if augmentation == "strong" and mixing is None:
            changes["mixing"] = random_layers.Mixing()
        changed = dataclasses.replace(self, **changes)
        if changed.layers:
            _ = changed.view_shape  # raises if there is none
        return changed

    def with_unlabeled(self, images: Images) -> "Dataset":
        """Adds training images without labels.

        They are in each epoch as the others are. Their sample weight is 0, so
        they count for methods that need no labels, and not for the task's loss.

        Args:
            images: uint8 `(count, height, width, channels)` of the size of the
                others: an array, or `Files`.

        Returns:
            `Dataset` with these images after the others.

        Raises:
            ValueError: If the images are of another size or have another
                number of channels.
        """
        if images.shape[1:] != self.input_shape:
            raise ValueError(
                f"{self.name}: images without labels must have the size of the "
                f"others, {self.input_shape}: height, width and channels. "
                f"Received: images of shape {images.shape}. Resize or convert "
                "them; those of a folder have 3 channels."
            )
        arrays = [isinstance(x, np.ndarray) for x in (self.x_train, images)]
        join = np.concatenate if all(arrays) else Joined
        labels = np.full(len(images), -1, np.int32)
        added = np.arange(self.full_size, self.full_size + len(images))
        return dataclasses.replace(
            self,
            x_train=join([self.x_train, images]),
            y_train=np.concatenate([self.y_train, labels]),
            index_train=np.concatenate([self.index_train, added]),
            full_size=self.full_size + len(images),
            moments=self._moments,
        )

    def take(self, count: int, others: str = "dropped") -> "Dataset":
        """Keeps a class-balanced part of the training images.

        The part has the first `count / num_classes` images of each class, in
        stored order. A remainder comes from the first classes that still have
        images. The choice does not depend on a seed. Images are normalised as
        in the full set, so networks trained on different parts take the same
        input.

        Args:
            count: Number of training images to keep.
            others: What becomes of the others: `"dropped"`, or `"unlabeled"`:
                they stay, without their labels.

        Returns:
            `Dataset` with the same test images.

        Raises:
            TypeError: If `count` is no integer.
            ValueError: If `count` is not between 1 and the number of training
                images, or if some have no label already.
        """
        require_known("others", others, ("dropped", "unlabeled"))
        self._require_labels("take")
        size = len(self.y_train)
        if not 1 <= check_integer("subset", count) <= size:
            raise ValueError(
                f"{self.name}: `subset` must lie in 1..{size}, the number of "
                f"training images. Received: subset={count}. Pass fewer, or "
                "None for all."
            )
        rank = self._rank_in_class(np.arange(size))
        chosen = np.sort(np.lexsort((self.y_train, rank))[:count])
        if others == "dropped":
            return self._with_train(chosen)
        labels = np.full_like(self.y_train, -1)
        labels[chosen] = self.y_train[chosen]
        return dataclasses.replace(self, y_train=labels, moments=self._moments)

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
        self._require_labels("hold_out")
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
            x_test=_part(self.x_train, held_out),
            y_test=self.y_train[held_out],
        )

    def _require_labels(self, name: str) -> None:
        if self.unlabeled:
            raise ValueError(
                f"{self.name}: `{name}` needs a label for each training image. "
                f"Received: {self.unlabeled} without. Add images without "
                "labels afterwards."
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
            x_train=_part(self.x_train, chosen),
            y_train=self.y_train[chosen],
            index_train=self.index_train[chosen],
            moments=self._moments,
        )

    def task(self) -> dict[str, Any]:
        """Gives arguments of `compile` for a network that ends in logits.

        Returns:
            `loss`: cross-entropy of class numbers, or of class shares with
            `mixing`; and accuracy, in which images without a label don't count.
        """
        losses = keras.losses
        loss = losses.SparseCategoricalCrossentropy(from_logits=True)
        if self.mixing:
            loss = losses.CategoricalCrossentropy(from_logits=True)
        metrics = "weighted_metrics" if self.unlabeled else "metrics"
        return {"loss": loss, metrics: ["accuracy"]}

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
        initial_step: int = 0,
        share: Share | None = None,
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
            initial_step: Batches of the first epoch that are left out. Their
                images are not read.
            share: A function of the batches of places, before images are
                read, such as `keras_mhgd.distribution.Shared` passes.
                Defaults to `None`: all places are read.

        Returns:
            `tf.data.Dataset` of float32 images `(batch, height, width,
            channels)` and int32 labels `(batch,)`. With `mixing`, labels are
            float32 class shares `(batch, classes)`. If some images have no
            label, sample weights `(batch,)` follow, 0 for those and else 1.

        Raises:
            TypeError: If a number is no integer.
            ValueError: If a number is out of its range.
        """
        return self.train_with_places(
            batch_size,
            seed,
            initial_epoch,
            augment,
            views,
            initial_step,
            share,
        ).map(_first)

    def train_with_places(
        self,
        batch_size: int,
        seed: int = 0,
        initial_epoch: int = 0,
        augment: bool = True,
        views: int | None = None,
        initial_step: int = 0,
        share: Share | None = None,
    ) -> tf.data.Dataset:
        """Streams the batches of `train` with view numbers and positions.

        All arguments have the meaning that they have in `train`.

        Args:
            batch_size: Images in a batch, over all replicas.
            seed: Integer that fits 64 bits.
            initial_epoch: Epoch that the stream starts with, from 0.
            augment: Whether to crop and mirror.
            views: Number of epochs after which the views repeat, or `None`.
            initial_step: Batches of the first epoch that are left out.
            share: A function of the batches of places, or `None`.

        Returns:
            `tf.data.Dataset` of `train`'s batches, their images' view numbers
            and positions in `x_train`, int64 `(batch,)`. The view number is
            the epoch, modulo `views`.
        """
        _check_batch_size(batch_size)
        if not -(2**63) <= check_integer("seed", seed) < 2**63:
            raise ValueError(
                "`seed` must fit 64 bits. "
                f"Received: seed={seed}. Pass a smaller number."
            )
        for name, value in (
            ("initial_epoch", initial_epoch),
            ("initial_step", initial_step),
        ):
            require_not_negative(**{name: check_integer(name, value)})
        if views is not None:
            require_one_or_more(views=check_integer("views", views))

        # AutoGraph would take longer than reading the first batch.
        @tf.autograph.experimental.do_not_convert
        def places(epoch):
            skipped = tf.where(epoch == initial_epoch, initial_step, 0)
            return tf.data.Dataset.from_tensor_slices(
                tuple(
                    each[skipped * batch_size :]
                    for each in self._places(seed, epoch, views)
                )
            ).batch(batch_size)

        labels = _on_host(self.y_train)

        def batch(order, drawn, view):
            mixed_with = ()
            if augment and self._by_image:
                images, *mixed_with = self._views(order, drawn)
            elif augment:
                images = self._crops(order, drawn)
            else:
                images = self._prepared(self._read_train(order))
            found, known = self._labels_of(labels, order, *mixed_with)
            made = images, found
            if self.unlabeled:
                made = *made, tf.cast(known, tf.float32)
            return made, view, order

        if not self.layers:  # layers of a user may need AutoGraph
            batch = tf.autograph.experimental.do_not_convert(batch)
        batches = tf.data.Dataset.counter(initial_epoch).flat_map(places)
        return _streamed(batches, share, batch)

    def test(
        self, batch_size: int, share: Share | None = None
    ) -> tf.data.Dataset:
        """Streams the test set once, in order, not augmented.

        Args:
            batch_size: Images in a batch, over all replicas.
            share: As in `train`.

        Returns:
            `tf.data.Dataset` of float32 images `(batch, height, width,
            channels)` and int32 labels `(batch,)`.
        """
        _check_batch_size(batch_size)
        labels = _on_host(self.y_test)

        @tf.autograph.experimental.do_not_convert
        def batch(order):
            found = tf.gather(labels, order)
            if self.mixing:
                found = self._one_hot(found)
            return self._prepared(self._read_test(order)), found

        batches = tf.data.Dataset.range(len(self.x_test)).batch(batch_size)
        return _streamed(batches, share, batch)

    @property
    def _by_image(self) -> bool:
        """Whether views are made of single images."""
        return bool(self.layers or self.mixing)

    def _places(
        self, seed: int, epoch: tf.Tensor, views: int | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draws an epoch.

        Returns:
            In the epoch's order: the positions of the images `(count,)`, the
            random numbers of their views, and their view numbers `(count,)`.
        """
        order_seed, _ = _seeds(seed, epoch)
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(self.x_train), dtype=tf.int64),
            order_seed,
            alg="philox",
        )
        view = epoch if views is None else epoch % views
        _, view_seed = _seeds(seed, view)
        if self._by_image:
            number = 4 if self.mixing else 1
            drawn = random_layers.seeds(view_seed, self.full_size, number)
        else:
            drawn = augmentation.draw_views(
                view_seed, self.full_size, self.padding, self.flip
            )
        drawn = tf.gather(drawn, tf.gather(_on_host(self.index_train), order))
        return order, drawn, tf.fill(tf.shape(order), view)

    def require_whole(self) -> None:
        """Reads all images, the test's first, to find one that can't be read.

        Images in memory can always be read.

        Raises:
            ValueError: If an image is damaged, too large, or of another size.
            OSError: If a file can't be read.
        """
        for images in (self.x_test, self.x_train):
            if not isinstance(images, np.ndarray):
                images.require_whole()

    def require_readable(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        step: int,
        views: int | None = None,
    ) -> None:
        """Reads the images of a training's step to find one that can't be read.

        Batches are read ahead, so the next ones are read as well; at the end of
        an epoch, those of the test too. So are the images that others are mixed
        with. Images in memory can always be read.

        Args:
            batch_size: Images in a batch.
            seed: The training's seed.
            epoch: Number of the epoch, from 0.
            step: Number of finished steps of the epoch.
            views: As in `train`.

        Raises:
            ValueError: If an image is damaged, too large, or of another size.
            OSError: If a file can't be read.
        """
        if not isinstance(self.x_train, np.ndarray):
            epochs = [
                self._places(seed, tf.constant(each, tf.int64), views)
                for each in (epoch, epoch + 1)
            ]
            first = step * batch_size
            count = (_PARALLEL + _WAITING) * batch_size
            order, drawn, _ = (
                tf.concat(parts, 0)[first : first + count]
                for parts in zip(*epochs, strict=True)
            )
            if self.mixing:
                partners = tf.map_fn(
                    self._partner, drawn[:, -1], fn_output_signature=tf.int64
                )
                order = tf.concat([order, partners], 0)
            self.x_train.require_whole(order.numpy())
        at_end = step == self.steps_per_epoch(batch_size)
        if at_end and not isinstance(self.x_test, np.ndarray):
            self.x_test.require_whole()

    def _views(
        self, order: tf.Tensor, seeds: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Makes views of single images.

        Args:
            order: Positions of the images `(batch,)`.
            seeds: Seeds for each, int32 `(batch, number, 2)`.

        Returns:
            Views `(batch, height, width, channels)`, normalised, positions of
            the images that they are mixed with, and their own shares.
        """

        def one(place):
            order, seeds = place
            own, *others = tf.unstack(seeds)
            image = self._view_of(order, own)
            if not self.mixing:
                return self._prepared(image), order, tf.constant(1.0)
            other, how, which = others
            partner = self._partner(which)
            image, share = random_layers.mixed(
                self.mixing, image, self._view_of(partner, other), how
            )
            return self._prepared(image), partner, share

        return tf.map_fn(
            one,
            (order, seeds),
            fn_output_signature=(
                tf.TensorSpec(self.view_shape, tf.float32),
                tf.int64,
                tf.float32,
            ),
        )

    def _partner(self, seed: tf.Tensor) -> tf.Tensor:
        """Draws the position of the image that another is mixed with."""
        return tf.random.stateless_uniform(
            (), seed, 0, len(self.x_train), tf.int64, "philox"
        )

    def _labels_of(
        self,
        labels: tf.Tensor,
        order: tf.Tensor,
        others: tf.Tensor | None = None,
        shares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Gives the labels of views, and which of them are known.

        Args:
            labels: The class numbers of all training images.
            order: Positions of the images `(batch,)`.
            others: Positions of the images that they are mixed with.
            shares: Their own shares in the views.
        """
        found = tf.gather(labels, order)
        known = found >= 0
        if not self.mixing:
            return tf.maximum(found, 0), known
        found = self._one_hot(found)
        if others is not None:
            of_others = tf.gather(labels, others)
            known &= (of_others >= 0) | (shares == 1)
            shares = shares[:, tf.newaxis]
            found = shares * found + (1 - shares) * self._one_hot(of_others)
        return found, known

    def _crops(self, order: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
        """Reads images, crops and mirrors them, and normalises them."""
        if isinstance(self.x_train, np.ndarray):
            images = self._read_train(order)
            return self._prepared(
                augmentation.apply_views(images, drawn, self.padding)
            )

        def one(place):
            image = self.x_train.read(place[0])
            return self._prepared(
                augmentation.apply_view(image, place[1], self.padding)
            )

        return tf.map_fn(
            one,
            (order, drawn),
            fn_output_signature=tf.TensorSpec(self.input_shape, tf.float32),
        )

    def _view_of(self, position: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Reads a training image and makes a view of it."""
        if self.layers:
            image = self._views_of[1](position)
            view = random_layers.view(self.layers, image, seed)
            return tf.ensure_shape(view, self.view_shape)
        (drawn,) = tf.unstack(
            augmentation.draw_views(seed, 1, self.padding, self.flip)
        )
        image = self._read_train(position[tf.newaxis])[0]
        image = augmentation.apply_view(image, drawn, self.padding)
        return tf.cast(image, tf.float32)

    @functools.cached_property
    def _views_of(self) -> tuple[tuple[int, ...], Callable]:
        """Finds the shape of a view by `layers`, and how its image is read.

        Layers that resize get images in files in their own sizes.
        """

        def sized(position):
            return self._read_train(position[tf.newaxis])[0]

        readers = [(self.input_shape, sized)]
        if not isinstance(self.x_train, np.ndarray):
            any_size = (None, None, self.input_shape[2])
            readers.insert(0, (any_size, self.x_train.read_unsized))
        for shape, read in readers:
            try:
                view = tf.function(random_layers.view).get_concrete_function(
                    self.layers,
                    tf.TensorSpec(shape, tf.float32),
                    tf.TensorSpec((2,), tf.int32),
                )
            except Exception:
                if shape == self.input_shape:
                    raise
                continue  # some layers need to know the size
            found = view.structured_outputs.shape
            if found.rank == 3 and found.is_fully_defined():
                return tuple(found), read
        raise ValueError(
            f"{self.name}: `augmentation` must make views of one size. "
            f"Received: layers whose views have the shape {found}. Add a "
            "`Resizing` layer."
        )

    @functools.cached_property
    def _read_train(self) -> Callable[[tf.Tensor], tf.Tensor]:
        return _reader(self.x_train)

    @functools.cached_property
    def _read_test(self) -> Callable[[tf.Tensor], tf.Tensor]:
        return _reader(self.x_test)

    def _one_hot(self, labels: tf.Tensor) -> tf.Tensor:
        return tf.one_hot(labels, self.num_classes)

    def _prepared(self, images: tf.Tensor) -> tf.Tensor:
        # For whole rows of pixels: TensorFlow is slow for an axis of length 3.
        images = tf.cast(images, tf.float32)
        *batch, height, width, channels = images.shape
        rows = tf.reshape(images, [-1, width * channels])
        mean, scale = (np.tile(x, width) for x in (self.mean, 1 / self.std))
        shape = [*[-1 for _ in batch], height, width, channels]
        return tf.reshape((rows - mean) * scale, shape)


@tf.autograph.experimental.do_not_convert
def _first(batch: tuple, *place: tf.Tensor) -> tuple:
    return batch


def _seeds(seed: int, number: tf.Tensor) -> list[tf.Tensor]:
    """Gives the seeds of an epoch's order and of a view."""
    seeds = tf.stack([tf.constant(seed, tf.int64), number])
    return tf.unstack(tf.random.split(seeds, 2, alg="philox"), num=2)


def _part(images: Images, index: np.ndarray) -> Images:
    in_memory = isinstance(images, np.ndarray)
    return images[index] if in_memory else images.part(index)


def _reader(images: Images) -> Callable[[tf.Tensor], tf.Tensor]:
    """Makes a function of positions that gives the images in a graph."""
    if isinstance(images, np.ndarray):
        return functools.partial(tf.gather, _on_host(images))
    return functools.partial(
        tf.map_fn,
        images.read,
        fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8),
    )


def _streamed(
    places: tf.data.Dataset, share: Share | None, batch: Callable
) -> tf.data.Dataset:
    """Reads batches of places, of which `share` leaves a part."""
    if share:
        places = share(places)
    return (
        places.map(batch, num_parallel_calls=_PARALLEL)
        .prefetch(_WAITING)
        .with_options(_options())
    )


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
    with tf.init_scope(), tf.device("CPU:0"):
        return tf.constant(array)
