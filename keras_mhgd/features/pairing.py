"""Pairs layers of a student with the teacher's layers they learn from."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras

from keras_mhgd.features.layers import (
    children,
    find_layer,
    inner_activation,
    input_shapes,
    is_activation,
    names,
    require_network,
)
from keras_mhgd.features.outline import Step, inside, of_code, outline

SensingPoints = Sequence[str | tuple[str, str]] | None
"""Layer names, or (student layer, teacher layer) pairs; `None` to find them."""

_GLOBAL_POOLINGS = (
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
)
_NO_ENDS = (  # layers that only shift maps, or are random
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)
_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
_SCALES_AND_TABLES = (
    *_NORMALIZATIONS,
    keras.layers.Normalization,
    keras.layers.Embedding,
)
_MOST = 4  # most sensing points that are chosen by default
_ENOUGH_STAGES = 3  # with at least these, the stem is no sensing point


def pair(
    student: keras.Model,
    teacher: keras.Model,
    sensing_points: SensingPoints = None,
    at_least: int = 2,
    logits: bool = False,
) -> list[tuple[str, str]]:
    """Pairs the sensing points of a student with those of its teacher.

    Args:
        student: The network that learns.
        teacher: The network that the student learns from.
        sensing_points: `None` chooses the points as described below.
            Otherwise a list, front end first, of layer names that both
            networks have or of (student layer, teacher layer) pairs.
        at_least: Number of pairs that are needed, not counting that of
            `logits`.
        logits: Whether the networks' `logits_end` layers form a last pair.

    By default, the points of a network of images are the last four of its
    `stage_ends`. The points of its stem, where no block ends, are left out if
    three other points remain. Any other network, and a network with a single
    stage, has its `block_ends` as points.

    Two networks of images are paired by the stages that reduce the input by
    the same factor, if each stage of the network with fewer stages finds such
    a partner. Otherwise the points are paired in order, four at most: the last
    with the last, the others spread evenly.

    Returns:
        (student layer, teacher layer) pairs.

    Raises:
        ValueError: If there are too few pairs, or a layer is not found.
    """
    if sensing_points is None:
        pairs = _found(student, teacher)
    else:
        if isinstance(sensing_points, str):
            sensing_points = [sensing_points]
        pairs = [
            (point, point) if isinstance(point, str) else tuple(point)
            for point in sensing_points
        ]
    if len(pairs) < at_least or any(len(point) != 2 for point in pairs):
        raise ValueError(
            f"`sensing_points` must give {at_least} or more layers, front end "
            "first. "
            f"Received: sensing_points={sensing_points!r}, which gives "
            f"{pairs}. Pass layer names or (student layer, teacher layer) "
            f"pairs. Layers of the student: {names(student)}. Layers of the "
            f"teacher: {names(teacher)}."
        )
    if logits:
        last = logits_end(student), logits_end(teacher)
        pairs += [last] if last not in pairs else []
    for student_point, teacher_point in pairs:
        find_layer(student, student_point)
        find_layer(teacher, teacher_point)
    return pairs


def _found(student, teacher) -> list[tuple[str, str]]:
    stages = [_chosen_stages(network) for network in (student, teacher)]
    if all(len(each) > 1 for each in stages):
        ours, theirs = stages
        shared = [factor for factor in ours if factor in theirs]
        if len(shared) == min(map(len, stages)):
            return [(ours[factor], theirs[factor]) for factor in shared]
    ends = [
        list(each.values()) if len(each) > 1 else block_ends(network)
        for each, network in zip(stages, (student, teacher), strict=True)
    ]
    count = min(_MOST, *map(len, ends))
    return list(zip(*(_spread(each, count) for each in ends), strict=True))


def _chosen_stages(model: keras.Model) -> dict[int, str]:
    """Selects those of `stage_ends` that become sensing points."""
    stages = _stages(model)
    with_blocks = [stage for stage in stages if stage.has_blocks]
    if len(with_blocks) >= _ENOUGH_STAGES:
        stages = stages[stages.index(with_blocks[0]) :]
    return {stage.factor: stage.end for stage in stages[-_MOST:]}


def _spread(points: list[str], count: int) -> list[str]:
    """Takes `count` evenly spaced entries, including the last."""
    return [
        points[math.ceil((index + 1) * len(points) / count) - 1]
        for index in range(count)
    ]


def stage_ends(model: keras.Model) -> dict[int, str]:
    """Finds the layer that each resolution of a network ends in.

    A resolution ends where its last block ends. A block ends in a sum or
    concatenation of maps, in a layer made of layers, or in a convolution
    without activation whose output another convolution reads. Normalisations
    and activations that alone read this output belong to the block. Later
    layers of the same resolution are part of the next block, and their width
    depends on that block. The last resolution, and a resolution without
    blocks, end in their last layer.

    A resolution counts as a stage if one of its layers has weights, other than
    normalisations and embeddings, and if no finer resolution comes after it.
    So maps that are pooled to scale channels are no stage, and neither are
    maps after the last global pooling. Nested models are entered.

    Args:
        model: A built network of images.

    Returns:
        Layer paths, front end first. A path's key is the factor by which the
        layer reduces the input's height, to the nearest power of two. Empty if
        no input is an image of known height, or if the network ends in
        sequences.

    Example:
        >>> teacher = keras_mhgd.models.get("vgg_small", (28, 28, 1), 10)
        >>> keras_mhgd.features.stage_ends(teacher)
        {1: 'stage1', 2: 'stage2', 4: 'stage3'}
    """
    return {stage.factor: stage.end for stage in _stages(model)}


class _Stage(NamedTuple):
    """Describes a resolution of a network of images."""

    factor: int  # by which it reduces the input's height
    end: str  # the path of its last layer
    has_blocks: bool


def _stages(model: keras.Model) -> list[_Stage]:
    require_network(model)
    heights = [
        shape[1]
        for shape in input_shapes(model)
        if len(shape) == 4 and shape[1]
    ]
    if not heights:
        return []
    steps = outline(model)
    readers = _readers(steps)
    ends, weighted = {}, set()  # by height, back end first
    blocks = collections.defaultdict(list)
    for step in reversed(steps):
        layer, shape = step.layer, step.shape
        if len(shape) == 3 and _has_weights(layer) and not ends:
            return []
        if len(shape) != 4 or not shape[1]:
            continue
        height = shape[1]
        if isinstance(layer, _GLOBAL_POOLINGS):
            ends.pop(height, None)
            blocks.pop(height, None)
            continue
        if step.is_point and not isinstance(layer, _NO_ENDS):
            if all(height > smaller for smaller in ends):
                ends[height] = step
        if _transforms(layer):
            weighted.add(height)
        if _ends_block(step, readers):
            blocks[height].append(step)
    bottlenecks = _bottlenecks(steps)
    last, stages = min(ends, default=None), {}
    for height in sorted(ends.keys() & weighted, reverse=True):
        end = ends[height]
        if blocks[height] and height != last:
            # A merge that other maps bypass may be inside of a block. If all
            # merges are bypassed, the one with the widest maps ends a block.
            block = next(
                (each for each in blocks[height] if each in bottlenecks),
                max(blocks[height], key=lambda each: each.shape[-1]),
            )
            end = (
                _point_after(block, readers, _normalizes_or_activates)
                or _point_before(block, steps)
                or end
            )
        # Layers round odd heights, so the ratio may be no power of two.
        factor = 2 ** round(math.log2(heights[0] / height))
        stages[factor] = _Stage(factor, end.path, bool(blocks[height]))
    return list(stages.values())


def _readers(steps: Sequence[Step]) -> dict[int, list[Step]]:
    """Finds the steps that read each tensor, by the tensor's identity."""
    readers = collections.defaultdict(list)
    for step in steps:
        for tensor in {id(each) for each in step.inputs}:
            readers[tensor].append(step)
    return readers


def _bottlenecks(steps: Sequence[Step]) -> set[Step]:
    """Finds the steps that no map bypasses to be read later."""
    read_until = {
        id(tensor): index
        for index, step in enumerate(steps)
        for tensor in step.inputs
        if len(tensor.shape) == 4
    }
    found, until = set(), 0
    for index, step in enumerate(steps):
        until = max([until, *(read_until.get(id(x), 0) for x in step.inputs)])
        if until <= index:
            found.add(step)
        until = max([until, *(read_until.get(id(x), 0) for x in step.outputs)])
    return found


def _ends_block(step: Step, readers: dict[int, list[Step]]) -> bool:
    """Checks whether a step ends a block.

    That is a layer made of layers, a merge of maps, or a projection. A
    projection is a convolution without activation whose output another
    convolution reads, with nothing but normalisation between them.
    """
    if _made_of_layers(step.layer):
        return True
    merged = {
        id(each) for each in step.inputs if each.shape[:3] == step.shape[:3]
    }
    if len(merged) > 1:
        return True
    # A depthwise convolution ends no block: a pointwise one completes it.
    if (
        not isinstance(step.layer, keras.layers.Conv2D)
        or step.layer.groups > 1
        or inner_activation(step.layer) is not None
    ):
        return False
    *_, end = _run(step, readers, _normalizes)
    after = readers[id(end.outputs[0])]
    return [type(each.layer) for each in after] == [keras.layers.Conv2D]


def _point_after(
    block: Step,
    readers: dict[int, list[Step]],
    belongs: Callable[[keras.Operation], bool],
) -> Step | None:
    """Finds the last point of a block's end and the steps belonging to it."""
    points = [step for step in _run(block, readers, belongs) if step.is_point]
    return points[-1] if points else None


def _point_before(block: Step, steps: Sequence[Step]) -> Step | None:
    """Finds the last point of a block whose end itself is no point."""
    points = [
        step
        for step in steps[: steps.index(block)]
        if step.is_point and step.shape[1] == block.shape[1]
    ]
    return points[-1] if points else None


def _run(
    step: Step,
    readers: dict[int, list[Step]],
    goes_on: Callable[[keras.Operation], bool],
) -> list[Step]:
    """Lists a step and those after it, as long as each has a single reader."""
    run = [step]
    while True:
        after = readers[id(run[-1].outputs[0])]
        if len(after) != 1 or not goes_on(after[0].layer):
            return run
        run += after


def _normalizes_or_activates(layer: keras.Operation) -> bool:
    return _normalizes(layer) or is_activation(layer)


def _normalizes(layer: keras.Operation) -> bool:
    return isinstance(layer, _NORMALIZATIONS)


def logits_end(model: keras.Model) -> str:
    """Finds the last layer that is no activation: it gives the logits.

    If that layer itself ends in a softmax or sigmoid, it gives probabilities.

    Args:
        model: A built network.

    Returns:
        The layer's path.

    Example:
        >>> teacher = keras_mhgd.models.get("vgg_small", (28, 28, 1), 10)
        >>> keras_mhgd.features.logits_end(teacher)
        'logits'
    """
    require_network(model)
    return [
        step.path
        for step in outline(model)
        if step.is_point and not is_activation(step.layer)
    ][-1]


def block_ends(model: keras.Model) -> list[str]:
    """Finds the ends of the blocks of a network that has no resolutions.

    Only layers before the classifier count. The blocks are of the first of
    these kinds that occurs twice or more:

    1. Layers made of layers, such as the blocks of a transformer.
    2. Sums, which end the blocks of a residual network. An activation that
       alone reads a sum belongs to it.
    3. Layers with weights. Following layers of the same shape belong to them,
       such as a normalisation or activation.

    Among layers made of layers, only those of a type that occurs twice or more
    are blocks. If no type does, the layers inside of them are searched. So an
    embedding is no block, and an encoder is a series of blocks. If no type
    occurs twice inside either, all layers made of layers are blocks.

    Args:
        model: A built network of vectors or sequences.

    Returns:
        Layer paths, front end first.
    """
    require_network(model)
    steps = [each for each in outline(model) if len(each.shape) > 1]
    readers = _readers(steps)
    while steps and not _has_weights(steps.pop().layer):
        pass  # down to the classifier, which goes too
    composite = {
        step.path: step.layer
        for step in steps
        if step.path and _made_of_layers(step.layer)
    }
    points = [step for step in steps if step.is_point]
    for ends in (
        _ends_of_blocks(model, _blocks_among(composite), points),
        [step.path for step in points if step.path in composite],
        [
            _point_after(step, readers, is_activation).path
            for step in points
            if isinstance(step.layer, keras.layers.Add)
        ],
    ):
        if len(ends) > 1:
            return ends
    runs, last = [], None
    for step in points:
        if _transforms(step.layer):
            runs.append(step.path)
            last = step.shape
        elif (
            runs and step.shape == last and not isinstance(step.layer, _NO_ENDS)
        ):
            runs[-1] = step.path
    return runs


def _blocks_among(composite: Mapping[str, keras.Layer]) -> dict:
    """Finds layers of a type that occurs repeatedly, here or further inside."""
    while composite:
        times = collections.Counter(map(type, composite.values()))
        blocks = {
            path: layer
            for path, layer in composite.items()
            if times[type(layer)] > 1
        }
        if blocks:
            return blocks
        composite = {
            f"{path}/{child.name}": child
            for path, layer in composite.items()
            for child in children(layer)
            if _made_of_layers(child)
        }
    return {}


def _ends_of_blocks(
    model: keras.Model, blocks: Mapping[str, keras.Layer], points: list[Step]
) -> list[str]:
    """Lists the paths of blocks, in the order of their calls.

    A block may return a second value, such as attention scores or `None`. Then
    the listed path is that of the inner layer that gives the first value.
    """
    direct = [step.path for step in points if step.path in blocks]
    if len(direct) == len(blocks):
        return direct
    layers = dict(blocks)
    for path, layer in blocks.items():
        layers |= inside(layer, path)
    steps = of_code(model, layers)
    last_inside = [
        [
            each.path
            for each in steps
            if each.is_point
            and each.outputs[0] is step.outputs[0]
            and f"{each.path}/".startswith(f"{step.path}/")
        ][-1:]
        for step in steps
        if step.path in blocks
    ]
    return sum(last_inside, [])


def _made_of_layers(layer: keras.Operation) -> bool:
    """Checks whether a layer with weights, not Keras's, is made of layers."""
    return (
        _has_weights(layer)
        and not type(layer).__module__.startswith("keras.")
        and bool(children(layer))
    )


def _has_weights(layer: keras.Operation) -> bool:
    return bool(getattr(layer, "weights", ()))


def _transforms(layer: keras.Operation) -> bool:
    """Checks whether a layer has weights beyond those of scales and tables."""
    return _has_weights(layer) and not isinstance(layer, _SCALES_AND_TABLES)
