"""Reads the outputs of student and teachers: one, or several by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from keras_mhgd import finiteness, tasks
from keras_mhgd.checks import require_known
from keras_mhgd.features import End, Features
from keras_mhgd.methods import Method
from keras_mhgd.tasks import Task


class Heads:
    """Splits labels, losses and other structures by a network's outputs.

    Args:
        outputs: The network's outputs or their shapes: one, or a list or dict.
        names: Names of the outputs in a list. If they are missing or not
            unique, the outputs are numbered instead.

    Raises:
        ValueError: If a list or dict holds further lists or dicts.
    """

    def __init__(self, outputs: Any, names: Sequence[str] | None = None):
        self.names: tuple[str | None, ...] = (None,)
        if isinstance(outputs, Mapping):
            self.names = tuple(outputs)
            inside = list(outputs.values())
        elif _is_list(outputs):
            numbers = [str(number) for number in range(len(outputs))]
            known = names is not None and len(set(names)) == len(outputs)
            self.names = tuple(names if known else numbers)
            inside = list(outputs)
        else:
            return
        if any(isinstance(each, Mapping) or _is_list(each) for each in inside):
            raise ValueError(
                "A network must have one output, or a list or dict of "
                f"outputs. Received: {outputs}, which has others inside. "
                "Flatten them."
            )

    @property
    def several(self) -> bool:
        """Whether the outputs are a list or dict, and so have names."""
        return self.names != (None,)

    def split(self, value: Any) -> dict[str | None, Any]:
        """Splits a value into a dict of parts by the outputs' names.

        Args:
            value: Anything, if there is only one output. For several outputs, a
                list or dict with a part for each; a dict may leave some out.
                Any other value, such as `None`, belongs to all outputs.

        Raises:
            ValueError: If a list has another length than the outputs, or a
                dict has other names.
        """
        if not self.several:
            return {None: value}
        if isinstance(value, Mapping):
            others = [name for name in value if name not in self.names]
            if not others:
                return {name: value.get(name) for name in self.names}
        elif not isinstance(value, (list, tuple)):
            return dict.fromkeys(self.names, value)
        elif len(value) == len(self.names):
            return dict(zip(self.names, value, strict=True))
        received = list(value) if isinstance(value, Mapping) else len(value)
        raise ValueError(
            "What is given for several outputs must be a list or dict like "
            f"them, {list(self.names)}. Received: {received}. Name the "
            "outputs, or give one for each."
        )

    def like(self, parts: Mapping[str | None, Any], value: Any) -> Any:
        """Puts parts together again, in the structure of `value`."""
        if not self.several:
            return parts[None]
        if isinstance(value, Mapping):
            return {name: parts[name] for name in value}
        if isinstance(value, (list, tuple)):
            return type(value)(parts[name] for name in self.names)
        return value


def _is_list(outputs: Any) -> bool:
    if not isinstance(outputs, (list, tuple)):
        return False
    # A shape is a tuple too, but belongs to one output.
    return not all(size is None or isinstance(size, int) for size in outputs)


class Outputs:
    """Reads the outputs of all networks in the form that methods compare.

    Args:
        heads: The names of the outputs.
        shapes: The shapes of the student's outputs, in the outputs' structure.
        ends: For each network, the student first, an `End` for each output, in
            the outputs' structure.
        teacher_weights: Weights of the teachers.
        methods: The methods, each with the name of the output that it reads;
            `None` if there is only one output.
    """

    def __init__(
        self,
        heads: Heads,
        shapes: Any,
        ends: Sequence[Any],
        teacher_weights: Sequence[float],
        methods: Sequence[tuple[Method, str | None]],
    ):
        self.heads = heads
        self._shapes = heads.split(shapes)
        self._ends: list[dict[str | None, End]] = [
            heads.split(each) for each in ends
        ]
        self._teacher_weights = teacher_weights
        self._reading = [
            (method, head)
            for method, head in methods
            # A method on embeddings reads none of several outputs.
            if method.needs.tasks is not None and head in self._shapes
        ]
        self._scores = any(method.needs.logits for method, _ in methods)

    def compile(self, loss: Any, task: Any) -> None:
        """Takes the compiled losses, and sets the methods' tasks if possible.

        The tasks can be set here if they don't depend on the labels.

        Args:
            loss: The losses, as Keras takes them.
            task: Kinds of tasks, or one for all; `None` where they are not
                given.

        Raises:
            ValueError: If losses or tasks don't fit the outputs, or if a method
                can't compare an output of this kind.
        """
        self.losses, self._kinds = map(self.heads.split, (loss, task))
        for kind in self._kinds.values():
            if kind is not None:
                require_known("task", kind, tasks.KINDS)
        for head, end in self._ends[0].items():
            tasks.require_loss_fits(self.losses[head], end, _named(head))
        if all(
            tasks.tells(self.losses[head], end, self._kinds[head])
            for head, end in self._ends[0].items()
        ):
            self.settle(None)

    def by_head(self, found: Features) -> Features:
        """Turns several outputs, and their logits, into dicts by name."""
        if not self.heads.several:
            return found
        logits = found.logits
        return found._replace(
            outputs=self.heads.split(found.outputs),
            logits=logits if logits is None else self.heads.split(logits),
        )

    def settle(self, y: Any) -> dict[str | None, Task]:
        """Finds out what the outputs mean, and sets the methods' tasks.

        Args:
            y: Labels, or their specification; `None` if there are none.

        Returns:
            The task of each output that a method reads, by its name.

        Raises:
            ValueError: If the meaning of an output is unknown, or if a method
                can't compare an output of this kind.
        """
        labels = self.heads.split(y)
        student, *teachers = self._ends
        found = {
            head: tasks.settle(
                self.losses[head],
                student[head],
                [each[head] for each in teachers],
                self._shapes[head],
                labels[head],
                kind=self._kinds[head],
                name=_named(head),
                teacher_weights=self._teacher_weights,
                scores=self._scores,
            )
            for head in dict.fromkeys(head for _, head in self._reading)
        }
        for method, head in self._reading:
            _require_meaning(method, found[head])
            method.task = found[head]
        return found

    def read(
        self,
        student: Features,
        teachers: Sequence[Features],
        y: Any = None,
        sample_weight: Any = None,
    ) -> tuple[Features, list[Features], Any]:
        """Gives features and labels in the form that methods read.

        Maps are zero at padded positions. Scores and labels are rows: see
        `keras_mhgd.tasks.Task.rows`. With several outputs, they are dicts of
        rows by the outputs' names.

        Args:
            student: The student's features.
            teachers: Each teacher's features, or the methods' `targets`.
            y: As in `fit`.
            sample_weight: As in `fit`.

        Returns:
            The student's features, each teacher's features, and the labels.
            Labels that no method reads are `None`.
        """
        settled = self.settle(y)
        student, *teachers = (
            self.by_head(_without_keras_masks(each))
            for each in (student.without_padding(), *teachers)
        )
        if not settled:
            return student, teachers, None
        labels, weights = map(self.heads.split, (y, sample_weight))
        rows = {
            head: task.rows(
                self._output(student, head),
                [self._output(each, head) for each in teachers],
                labels[head],
                weights[head],
            )
            for head, task in settled.items()
        }

        def of(field):
            parts = {head: getattr(each, field) for head, each in rows.items()}
            if not self.heads.several:
                return parts[None]
            return {head: parts.get(head) for head in self.heads.names}

        if self._scores:
            student = student._replace(
                logits=of("student"), weights=of("weights")
            )
            scores = of("teacher")
            teachers = [each._replace(logits=scores) for each in teachers]
        return student, teachers, of("labels")

    def checked_labels(self, y: Any, outputs: Any, sample_weight: Any) -> Any:
        """Checks in the graph that class numbers are in range.

        On a GPU, the loss of a class number out of range would be NaN.

        Args:
            y: The batch's labels.
            outputs: The student's predictions.
            sample_weight: The batch's weights.

        Returns:
            The labels, which wait until the checks have passed.
        """
        if y is None:
            return None
        labels, weights, predicted = map(
            self.heads.split, (y, sample_weight, outputs)
        )
        checks = []
        for head in self.heads.names:
            found, labels[head] = tasks.require_class_numbers(
                self.losses[head], labels[head], predicted[head], weights[head]
            )
            checks += found
        return finiteness.after(checks, self.heads.like(labels, y))

    def _output(self, found: Features, head: str | None) -> tasks.Output:
        def of(value):
            return value if head is None or value is None else value[head]

        mask = self.heads.split(found.output_masks)[head]
        return tasks.Output(of(found.outputs), of(found.logits), mask)


def _require_meaning(method: Method, task: Task) -> None:
    if task.kind not in method.needs.tasks:
        raise ValueError(
            f"{type(method).__name__} must get outputs that are "
            f"{' or '.join(method.needs.tasks)}. Received: a {task.kind} "
            "output. Choose another method, such as 'soft_logits' or one on "
            "feature maps, other arguments of it, such as standardize=False, "
            "or pass another `task` to `compile`."
        )


def _named(head: str | None) -> str:
    return "the output" if head is None else f"output {head!r}"


def _without_keras_masks(found: Features) -> Features:
    """Takes Keras's masks off the outputs, for layers that don't take masks.

    `Features.output_masks` holds the masks.
    """
    if found.output_masks is None:
        return found
    return found._replace(
        outputs=tf.nest.map_structure(tf.identity, found.outputs)
    )
