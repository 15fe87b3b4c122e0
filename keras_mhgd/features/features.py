"""What is read of a network in one forward pass."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

_BY_POINT = ("maps", "vectors", "forks", "maps_before_activation", "masks")


class Features(NamedTuple):
    """What one forward pass of a network yields.

    Attributes:
        outputs: The network's predictions `(batch, num_classes)`; of a network
            with several outputs a list or dict of them.
        maps: The output of each sensing point, front end first: feature maps
            `(batch, height, width, D)`, sequences `(batch, length, D)` or
            vectors `(batch, D)`.
        logits: What the final softmax or sigmoid gets, or the predictions of
            a network without one, in the structure of `outputs`; `None`
            unless asked for.
        embedding: What the classifier, the last layer with weights, gets:
            `(batch, D)`; `None` unless asked for.
        vectors: The maps compressed, `(batch, D)` each: see
            `keras_mhgd.features.compression`; `None` unless compressed.
        forks: The maps once more, through which gradients return clipped;
            `None` if the extractor has no `split`.
        maps_before_activation: What the activation of each sensing point
            gets, or its output if it has none; `None` unless asked for.
        layers: Outputs of layers that a method names itself, by name; `None`
            unless asked for.
        masks: For each map a boolean tensor `(batch, length)` that is false
            at padded positions, or `None` where every position is real;
            `None` if no map has padding.
        output_masks: The same for `outputs`, in their structure.
        weights: 1 for each row of `logits` that counts and 0 for the others,
            `(rows,)`; `None` where all count.
    """

    outputs: Any
    maps: list[tf.Tensor]
    logits: Any = None
    embedding: tf.Tensor | None = None
    vectors: list[tf.Tensor] | None = None
    forks: list[tf.Tensor] | None = None
    maps_before_activation: list[tf.Tensor] | None = None
    layers: dict[str, tf.Tensor] | None = None
    masks: list[tf.Tensor | None] | None = None
    output_masks: Any = None
    weights: tf.Tensor | None = None

    def without_points(self) -> "Features":
        """Leaves out the maps and what is made of them: they are large."""
        return self._replace(
            maps=[],
            vectors=None,
            forks=None,
            maps_before_activation=None,
            masks=None,
        )

    def only(self, fields: Collection[str]) -> "Features":
        """Leaves out what isn't named, of what is large.

        Args:
            fields: Names among `maps`, `maps_before_activation`, `vectors`,
                `logits` and `embedding`.
        """
        left_out = {
            name: None
            for name in ("maps_before_activation", "vectors", "logits")
            if name not in fields
        }
        if "embedding" not in fields:
            left_out["embedding"] = None
        if "maps" not in fields:
            left_out["maps"] = []
        if not {"maps", "maps_before_activation"} & set(fields):
            left_out["masks"] = None
        return self._replace(forks=None, **left_out)

    def forked(self) -> "Features":
        """Gives the forks in the place of the maps, if there are any."""
        return self if self.forks is None else self._replace(maps=self.forks)

    def at(self, head: str | None, points: Sequence[int] | None) -> "Features":
        """Picks one output's scores and some of the sensing points.

        Args:
            head: Name of one of several outputs; `None` for all there is.
            points: Numbers of the sensing points; `None` for all.
        """
        fields = {}
        if head is not None:
            fields = {
                name: value[head]
                for name in ("outputs", "logits", "weights")
                if (value := getattr(self, name)) is not None
            }
        if points is not None:
            fields |= {
                name: [value[index] for index in points]
                for name in _BY_POINT
                if (value := getattr(self, name))
            }
        return self._replace(**fields)

    def without_padding(self) -> "Features":
        """Sets the maps to zero at padded positions."""
        if self.masks is None:
            return self

        def masked(maps):
            if maps is None:
                return None
            return [
                without_padding(each, mask)
                for each, mask in zip(maps, self.masks, strict=True)
            ]

        return self._replace(
            maps=masked(self.maps),
            forks=masked(self.forks),
            maps_before_activation=masked(self.maps_before_activation),
        )


class Taught(NamedTuple):
    """A batch with what is known of the teacher's features.

    Attributes:
        images: What a network takes.
        kept: The fields of `Features` that are not `None`, in tuples instead
            of lists: those are tensors to `tf.data`. Several teachers have a
            tuple of such.
    """

    images: Any
    kept: dict[str, Any] | tuple[dict[str, Any], ...]

    @property
    def features(self) -> "Features | list[Features]":
        """The kept features, or a list of several teachers'."""
        if isinstance(self.kept, tuple):
            return [_features(each) for each in self.kept]
        return _features(self.kept)


def _features(kept: dict[str, Any]) -> Features:
    lists = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in kept.items()
    }
    return Features(**lists)


def without_padding(x: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Sets a map to zero at padded positions.

    Args:
        x: `(batch, length, ...)`.
        mask: `(batch, length)`, or `None` where nothing is padded.

    Returns:
        The same shape.
    """
    if mask is None:
        return x
    for _ in range(x.shape.rank - mask.shape.rank):
        mask = mask[..., tf.newaxis]
    # Not a product: what is padded may be infinite or NaN.
    return tf.where(mask, x, tf.zeros((), x.dtype))
