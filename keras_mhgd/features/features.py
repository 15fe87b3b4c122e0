"""Defines the features that one forward pass of a network yields."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

_BY_POINT = ("maps", "vectors", "forks", "maps_before_activation", "masks")


class Features(NamedTuple):
    """Holds the predictions and features of one forward pass.

    Attributes:
        outputs: The network's predictions `(batch, num_classes)`. A network
            with several outputs gives a list or dict of predictions. `None`
            for a method that does not read them.
        maps: The output of each sensing point, front end first: feature maps
            `(batch, height, width, D)`, sequences `(batch, length, D)` or
            vectors `(batch, D)`.
        logits: The input of the final softmax or sigmoid, or the predictions
            of a network without one, in the structure of `outputs`. `None`
            unless asked for.
        embedding: The input `(batch, D)` of the classifier, which is the last
            layer with weights. `None` unless asked for.
        vectors: The compressed maps, `(batch, D)` each: see
            `keras_mhgd.features.compression`. `None` unless compressed.
        forks: Copies of the maps; gradients through them are clipped. `None`
            if the extractor has no `split`.
        maps_before_activation: The input of each sensing point's activation,
            or the point's output if it has no activation. `None` unless asked
            for.
        layers: Outputs of layers that a method names itself, by name. `None`
            unless asked for.
        masks: For each map, a boolean tensor `(batch, length)` that is false
            at padded positions, or `None` if every position is real. `None`
            if no map has padding.
        output_masks: The masks of `outputs`, in the structure of `outputs`.
        weights: 1 for each row of `logits` that counts and 0 for the other
            rows, `(rows,)`. `None` if all rows count.
        last_map: The map `(batch, height, width, D)` that is pooled, or
            flattened, before the classifier. `None` unless asked for.
        logit_map: The logits of each position of the last map, `(batch,
            height, width, classes)`, whose mean is the logits. `None` unless
            asked for.
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
    last_map: tf.Tensor | None = None
    logit_map: tf.Tensor | None = None

    def without_points(self) -> "Features":
        """Leaves out the maps and the fields made from them: all are large."""
        return self._replace(
            maps=[],
            vectors=None,
            forks=None,
            maps_before_activation=None,
            masks=None,
        )

    def only(self, fields: Collection[str]) -> "Features":
        """Leaves out the large fields that are not named.

        Args:
            fields: The fields to keep, among `outputs`, `maps`,
                `maps_before_activation`, `logits`, `embedding`, `last_map`,
                `logit_map` and `layers`. The masks of kept maps are kept as
                well.
        """
        kept = {name: getattr(self, name) for name in fields}
        if {"maps", "maps_before_activation"} & kept.keys():
            kept["masks"] = self.masks
        return Features(
            **{"outputs": None, "maps": [], **kept},
            output_masks=self.output_masks,
            weights=self.weights,
        )

    def forked(self) -> "Features":
        """Replaces the maps with the forks, if there are any."""
        return self if self.forks is None else self._replace(maps=self.forks)

    def at(self, head: str | None, points: Sequence[int] | None) -> "Features":
        """Picks one output's scores and some of the sensing points.

        Args:
            head: Name of one of several outputs; `None` for all outputs.
            points: Positions of the sensing points; `None` for all.
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
    """Holds a batch and the teacher's features that were kept for it.

    Attributes:
        images: The batch's inputs, as the data set gives them.
        kept: The fields of `Features` that are not `None`. Tuples replace
            lists, because `tf.data` turns a list into a tensor. With several
            teachers, a tuple with the fields of each teacher.
    """

    images: Any
    kept: dict[str, Any] | tuple[dict[str, Any], ...]

    @property
    def features(self) -> "Features | list[Features]":
        """The kept features; with several teachers, a list of them."""
        if isinstance(self.kept, tuple):
            return [_features(each) for each in self.kept]
        return _features(self.kept)


def _features(kept: dict[str, Any]) -> Features:
    lists = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in kept.items()
    }
    return Features(**{"outputs": None, **lists})


def without_padding(x: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """Sets a map to zero at padded positions.

    Args:
        x: `(batch, length, ...)`.
        mask: `(batch, length)`, or `None` where nothing is padded.

    Returns:
        A tensor of the shape of `x`.
    """
    if mask is None:
        return x
    for _ in range(x.shape.rank - mask.shape.rank):
        mask = mask[..., tf.newaxis]
    # No product with the mask: padding may hold NaN or infinity, and zero
    # times either is NaN.
    return tf.where(mask, x, tf.zeros((), x.dtype))
