"""Makes the inputs of a student and of its teacher from one batch."""

import re
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd.features.layers import input_specs, is_graph, symbolic_inputs

Shape = tuple[int | None, ...]

# Names that Keras gives to unnamed inputs; `input` is from Keras 2.
_AUTOMATIC = re.compile(r"(keras_tensor|input_layer|input)(_\d+)?(CLONE)*")


class Inputs:
    """Makes a teacher's inputs from a batch in the student's form.

    If each network has a single input, these two are paired. Several inputs
    are matched by name: by the keys of a dict or the names that `keras.Input`
    was given. Names that Keras made, such as `keras_tensor_3`, don't count. If
    both networks have equally many unmatched inputs, these are paired in the
    order in which the networks were given them.

    A batch may be a dict with more keys than the student takes. If such a dict
    has a key with the name of a teacher's input, the teacher takes that entry.

    The inputs of a subclassed network may be unknown. Then the network takes
    the batch unchanged.

    Args:
        student: A built network.
        teacher: Another built network.
        matched: Whether the teacher's inputs are made from the student's. If
            not, each network takes its inputs directly from the batch.

    Attributes:
        pairs: Names (student input, teacher input) that differ, of inputs that
            were paired by their order.
        student_shapes: The shapes `(None, ...)` of the student's inputs in
            flattened order. A size that only the teacher knows is filled in.
            Empty if unknown.
        teacher_shapes: The shapes of the teacher's inputs, with sizes that
            only the student knows filled in.

    Raises:
        ValueError: If an input of the teacher has no partner, or a partner of
            another shape.

    Example:
        >>> inputs = keras_mhgd.features.Inputs(student, teacher)
        >>> logits = student(inputs.student(images))
        >>> targets = teacher(inputs.teacher(images))
    """

    def __init__(
        self, student: keras.Model, teacher: keras.Model, matched: bool = True
    ):
        self._student, self._teacher = _Form(student), _Form(teacher)
        ours, theirs = self._student.inputs, self._teacher.inputs
        self.pairs: list[tuple[str, str]] = []
        self.student_shapes = [each.shape for each in ours]
        self.teacher_shapes = [each.shape for each in theirs]
        self._sources = None
        if not (matched and ours and theirs):
            return
        self._sources = self._matched()
        for its, mine in self._sources.items():
            shape = _merged(ours[mine], theirs[its])
            if shape is None:
                raise self._other_shape(ours[mine], theirs[its])
            self.student_shapes[mine] = self.teacher_shapes[its] = shape

    def student(self, x: Any) -> Any:
        """Makes the student's inputs from a batch.

        Args:
            x: The batch: the student's inputs. A dict may have other keys too.

        Returns:
            The student's inputs, in the student's structure.

        Raises:
            ValueError: If the batch lacks an input, or has text where the
                network takes numbers.
        """
        return self._student.taken(x)

    def teacher(self, x: Any) -> Any:
        """Makes the teacher's inputs from a batch.

        Args:
            x: The batch: the student's inputs. A dict may have other keys too.
                If the inputs are not `matched`, the teacher's inputs.

        Returns:
            The teacher's inputs, in the teacher's structure.

        Raises:
            ValueError: If the batch lacks an input, or has text where a network
                takes numbers.
        """
        if self._sources is None:
            return self._teacher.taken(x)
        own = keras.tree.flatten(self._student.taken(x))
        keys = x if isinstance(x, dict) else {}
        found = {}
        for index, each in enumerate(self._teacher.inputs):
            if each.name in keys:
                found[index] = keys[each.name]
            elif self._sources.get(index, len(own)) < len(own):
                found[index] = own[self._sources[index]]
        return self._teacher.packed(found, x)

    def _matched(self) -> dict[int, int]:
        """Maps indices of the teacher's inputs to those of the student's."""
        ours, theirs = self._student, self._teacher
        by_name = {
            each.name: mine
            for mine, each in enumerate(ours.inputs)
            if each.name
        }
        found = {
            its: by_name[each.name]
            for its, each in enumerate(theirs.inputs)
            if each.name in by_name
        }
        mine_left = [each for each in ours.order if each not in found.values()]
        its_left = [each for each in theirs.order if each not in found]
        if len(mine_left) == len(its_left):
            for mine, its in zip(mine_left, its_left, strict=True):
                found[its] = mine
                pair = ours.inputs[mine], theirs.inputs[its]
                if len(ours.inputs) > 1 and any(each.name for each in pair):
                    self.pairs.append(tuple(each.label for each in pair))
        elif its_left and (mine_left or not isinstance(ours.structure, dict)):
            raise ValueError(
                "The teacher's inputs must have the names of the student's, or "
                f"be as many. Received: {ours.labels} of {ours.name!r}, "
                f"{theirs.labels} of {theirs.name!r}. Rename the inputs, or "
                "pass `teacher_preprocessor=` a function that makes the "
                "teacher's inputs of a batch."
            )
        return found

    def _other_shape(self, mine: "_Input", its: "_Input") -> ValueError:
        made = "lambda x: ..."
        if len(mine.shape) == len(its.shape) == 4 and all(its.shape[1:3]):
            made = f"keras.layers.Resizing({its.shape[1]}, {its.shape[2]})"
        return ValueError(
            "Student and teacher must have the same input shape, unless a "
            f"preprocessor makes one of the other. Received: {mine.shape[1:]} "
            f"{mine.dtype or ''} for {mine.label!r} of {self._student.name!r}, "
            f"{its.shape[1:]} {its.dtype or ''} for {its.label!r} of "
            f"{self._teacher.name!r}. Pass what makes the teacher's input of a "
            f"batch, such as teacher_preprocessor={made}, or data of the "
            "teacher's shape and a student for it."
        )


class _Input(NamedTuple):
    """Describes one input of a network.

    Attributes:
        label: Name of the input in messages.
        name: Key of the input in a dict, or the name that it was given, if
            any.
        shape: Shape of the input, `(None, ...)`.
        dtype: Name of the input's dtype; `None` if unknown.
    """

    label: str
    name: str | None
    shape: Shape
    dtype: str | None


class _Form:
    """Describes the inputs of a network and their structure."""

    def __init__(self, network: keras.Model):
        self.name = network.name
        known = is_graph(network)
        self.structure = (
            symbolic_inputs(network) if known else input_specs(network)
        )
        leaves = [
            (path, tensor)
            for path, tensor in keras.tree.flatten_with_path(self.structure)
            if tensor is not None
        ]
        self.inputs = [_input(path, tensor, known) for path, tensor in leaves]
        self.labels = [each.label for each in self.inputs]
        self._is_flat = all(len(path) < 2 for path, _ in leaves)
        # Flattening sorts a dict by its keys. `order` restores the order in
        # which the network was given its inputs.
        self.order = list(range(len(leaves)))
        if isinstance(self.structure, dict):
            given = list(self.structure)
            self.order.sort(key=lambda index: given.index(leaves[index][0][0]))

    def taken(self, x: Any) -> Any:
        """Takes the network's inputs from a batch, without other keys."""
        if not (self._is_flat and self.inputs and isinstance(x, dict)):
            self._require_kind(keras.tree.flatten(x))
            return x
        found = {
            index: x[each.name]
            for index, each in enumerate(self.inputs)
            if each.name in x
        }
        return self.packed(found, x)

    def packed(self, found: dict[int, Any], x: Any) -> Any:
        """Packs tensors, given by index, into the inputs' structure."""
        missing = [
            each.label
            for index, each in enumerate(self.inputs)
            if index not in found
        ]
        if missing:
            received = list(x) if isinstance(x, dict) else type(x).__name__
            raise ValueError(
                f"A batch must have all inputs of {self.name!r}: "
                f"{self.labels}. Received: {received}, without {missing}. Add "
                "them, or pass `student_preprocessor=` or "
                "`teacher_preprocessor=` a function that makes the network's "
                "inputs of a batch."
            )
        flat = [found[index] for index in range(len(self.inputs))]
        self._require_kind(flat)
        return keras.tree.pack_sequence_as(self.structure, flat)

    def _require_kind(self, tensors: list[Any]) -> None:
        for each, tensor in zip(self.inputs, tensors, strict=False):
            kind = getattr(tensor, "dtype", None)
            if kind == tf.string and each.dtype not in (None, "string"):
                raise ValueError(
                    f"{self.name!r} must get numbers. Received: text for "
                    f"{each.label!r}. Pass `student_preprocessor=` or "
                    "`teacher_preprocessor=` what makes numbers of text, such "
                    "as the preprocessor of a KerasHub task."
                )


def _input(path: tuple[Any, ...], tensor: Any, known: bool) -> _Input:
    name = tensor.name
    if path and isinstance(path[-1], str):
        name = path[-1]
    elif name and _AUTOMATIC.fullmatch(name):
        name = None
    label = name or "input" + "".join(f"[{each}]" for each in path)
    dtype = tf.as_dtype(tensor.dtype).name if known else None
    return _Input(label, name, (None, *tensor.shape[1:]), dtype)


def _merged(mine: _Input, its: _Input) -> Shape | None:
    """Merges two shapes' known sizes; `None` if sizes or kinds differ."""
    text = [each.dtype == "string" for each in (mine, its) if each.dtype]
    if len(mine.shape) != len(its.shape) or len(set(text)) == 2:
        return None
    sizes = list(zip(mine.shape, its.shape, strict=True))
    if any(None not in pair and pair[0] != pair[1] for pair in sizes):
        return None
    return tuple(ours if its is None else its for ours, its in sizes)
