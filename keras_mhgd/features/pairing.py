"""Which layers of a student learn from which of its teacher."""

import math
from collections.abc import Sequence

import keras

from keras_mhgd.features import tap
from keras_mhgd.features.layers import (
    children,
    find_layer,
    input_shapes,
    is_activation,
    is_graph,
    names,
    require_network,
    symbolic_output,
    walk,
)

SensingPoints = Sequence[str | tuple[str, str]] | None

_GLOBAL_POOLINGS = (
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
)
_NO_ENDS = (  # what only shifts, or is random
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)
_SCALES_AND_TABLES = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.Embedding,
)
_MOST_BLOCKS = 4  # sensing points that are chosen without being asked


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
        teacher: The network that it learns from.
        sensing_points: `None` pairs what the networks are made of, see below;
            or a list, front end first, of layer names that both networks have
            or of (student layer, teacher layer) pairs.
        at_least: Number of pairs that are needed, without the next.
        logits: Whether the networks' `logits_end` is a last pair.

    The points of a network of images are its `stage_ends`; of any other, or
    of one with a single stage, its `block_ends`. Two networks of images are
    paired by the stages that reduce the input by the same factor, if that
    serves every stage of the network with fewer. All else is paired in order,
    the last with the last, the others spread evenly; at most four if there
    are blocks among them.

    Returns:
        (student layer, teacher layer) pairs.

    Raises:
        ValueError: If there are too few, or a layer is not found.
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
    stages = [stage_ends(network) for network in (student, teacher)]
    if all(len(each) > 1 for each in stages):
        ours, theirs = stages
        shared = [factor for factor in ours if factor in theirs]
        count = min(map(len, stages))
        if len(shared) == count:
            return [(ours[factor], theirs[factor]) for factor in shared]
        ends = [list(each.values()) for each in stages]
    else:
        ends = [
            list(each.values()) if len(each) > 1 else block_ends(network)
            for each, network in zip(stages, (student, teacher), strict=True)
        ]
        count = min(_MOST_BLOCKS, *map(len, ends))
    return list(zip(*(_spread(each, count) for each in ends), strict=True))


def _spread(points: list[str], count: int) -> list[str]:
    """Takes `count` evenly spaced entries, the last among them."""
    return [
        points[math.ceil((index + 1) * len(points) / count) - 1]
        for index in range(count)
    ]


def stage_ends(model: keras.Model) -> dict[int, str]:
    """Finds the last layer before each change of resolution.

    A resolution counts as a stage if one of its layers has weights, and if no
    finer one comes after it: what is pooled to scale channels is no stage, nor
    is what comes after the last global pooling. Nested models are looked into.

    Args:
        model: A built network of images.

    Returns:
        Layer paths by the factor by which they reduce the input's height (to
        the nearest power of two), front end first; none if no input is an
        image of known height, or if the network ends in sequences.

    Example:
        >>> teacher = keras_mhgd.models.get("vgg_small", (28, 28, 1), 10)
        >>> keras_mhgd.features.stage_ends(teacher)
        {1: 'stage1', 2: 'stage2', 4: 'stage3'}
    """
    require_network(model)
    heights = [
        shape[1]
        for shape in input_shapes(model)
        if len(shape) == 4 and shape[1]
    ]
    if not heights:
        return {}
    ends, weighted = {}, set()  # by height, back end first
    for path, layer, shape in reversed(_outline(model)):
        if len(shape) == 3 and layer.weights and not ends:
            return {}
        if len(shape) != 4 or not shape[1]:
            continue
        height = shape[1]
        if isinstance(layer, _GLOBAL_POOLINGS):
            ends.pop(height, None)
        elif all(height > smaller for smaller in ends) and not isinstance(
            layer, _NO_ENDS
        ):
            ends[height] = path
        if _transforms(layer):
            weighted.add(height)
    # The nearest power of two: odd heights are rounded on the way down.
    return {
        2 ** round(math.log2(heights[0] / height)): path
        for height, path in reversed(ends.items())
        if height in weighted
    }


def logits_end(model: keras.Model) -> str:
    """Finds the last layer that is no activation: it gives the logits.

    A classifier with a softmax or sigmoid inside itself gives probabilities.

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
        path for path, layer, _ in _outline(model) if not is_activation(layer)
    ][-1]


def block_ends(model: keras.Model) -> list[str]:
    """Finds the ends of the blocks of a network that has no resolutions.

    Those are, whatever there are two or more of, before the classifier:
    layers made of layers, such as a transformer's block; sums, which end the
    blocks of a residual network; or layers with weights, each with the
    weightless layers of the same shape that follow, such as its activation.

    Args:
        model: A built network of vectors or sequences.

    Returns:
        Layer paths, front end first.
    """
    require_network(model)
    layers = [each for each in _outline(model) if len(each[2]) > 1]
    while layers and not layers.pop()[1].weights:
        pass  # down to the classifier, which goes too
    made_of_layers = [
        path
        for path, layer, _ in layers
        if layer.weights
        and children(layer)
        and not type(layer).__module__.startswith("keras.")
    ]
    sums = [
        path for path, layer, _ in layers if isinstance(layer, keras.layers.Add)
    ]
    runs, last = [], None
    for path, layer, shape in layers:
        if _transforms(layer):
            runs.append(path)
            last = shape
        elif runs and shape == last and not isinstance(layer, _NO_ENDS):
            runs[-1] = path
    for ends in (made_of_layers, sums):
        if len(ends) > 1:
            return ends
    return runs


def _transforms(layer: keras.Layer) -> bool:
    """Whether it has weights, and does more than scale or look up."""
    return bool(layer.weights) and not isinstance(layer, _SCALES_AND_TABLES)


def _outline(model):
    """Path, layer and output's shape of the layers that give one tensor."""
    walked = list(walk(model))
    if not all(is_graph(parent) for _, _, parent in walked):
        return tap.outline(model)
    outputs = [
        (path, layer, symbolic_output(parent, layer))
        for path, layer, parent in walked
    ]
    return [
        (path, layer, tuple(output.shape))
        for path, layer, output in outputs
        if output is not None
    ]
