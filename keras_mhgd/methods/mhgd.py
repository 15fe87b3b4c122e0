"""Distills graphs of a batch, learnt by multi-head attention (MHGD).

S. Lee, B. C. Song, BMVC 2019, arXiv:1907.02226.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd import gradients
from keras_mhgd.checks import require_known, require_one_or_more
from keras_mhgd.features import Features
from keras_mhgd.features.compression import (
    student_vectors,
    teacher_vectors,
    varied_signs,
)
from keras_mhgd.graph import MHAN, Edge, MHANTrainer
from keras_mhgd.graph.attention import over_rows
from keras_mhgd.linalg.singular_vectors import GRADIENTS
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.base.preparation import Preparation
from keras_mhgd.methods.pieces.projection import projected, projections
from keras_mhgd.methods.pieces.reductions import REDUCTIONS

# Each function, and its derivative computed from the function's value.
_ACTIVATIONS = {
    "tanh": (tf.tanh, lambda value: 1 - value**2),
    "linear": (tf.identity, tf.ones_like),
}

_SCOPES = ("global", "replica")
_STATISTICS = ("moving", "batch")


def graph_divergence(
    student: Sequence[Edge],
    teacher: Sequence[Edge],
    activation: str = "tanh",
    reduction: str = "sum",
) -> tf.Tensor:
    """Computes how far the student's attention graphs are from the teacher's.

    loss = sum over edges, heads a, rows i and columns j of
    G^S (log G^S - log G^T), with G = softmax_j(activation(queries keys^T)).

    Memory grows linearly with the batch: the graphs are computed in blocks of
    rows, and each block adds its part of the loss and of the gradient.

    Args:
        student: The factors of the logits, for each edge.
        teacher: Like `student`; no gradient flows into these factors.
        activation: Function that is applied to the logits of both networks
            before the softmax: `"tanh"` (the published code) or `"linear"`
            (the published formula).
        reduction: `"sum"` over heads and rows (published) or their `"mean"`.

    Returns:
        Scalar >= 0, of the factors' dtype; 0 where the graphs are equal.

    Raises:
        ValueError: If `activation` or `reduction` is unknown.

    Example:
        >>> edge = keras_mhgd.graph.Edge(
        ...     queries=tf.random.normal((8, 32, 24)),
        ...     keys=tf.random.normal((8, 32, 24)),
        ... )
        >>> float(keras_mhgd.methods.graph_divergence([edge], [edge]))
        0.0
    """
    require_known("activation", activation, _ACTIVATIONS)
    require_known("reduction", reduction, REDUCTIONS)
    losses = []
    for each in zip(student, teacher, strict=True):
        loss = _edge_divergence(*each, *_ACTIVATIONS[activation])
        if reduction == "mean":
            loss /= tf.cast(tf.size(each[0].queries[:, :, 0]), loss.dtype)
        losses.append(loss)
    return tf.add_n(losses)


def _edge_divergence(student, teacher, activation, derivative):
    teacher = Edge(*map(tf.stop_gradient, teacher))

    def block(queries, keys, of_teacher):
        bound = activation(Edge(queries, keys).logits)
        # log_softmax avoids the logarithm of entries that underflow to 0.
        log_graph = tf.nn.log_softmax(bound)
        expected = activation(Edge(of_teacher, teacher.keys).logits)
        log_expected = tf.nn.log_softmax(expected)
        difference = log_graph - log_expected
        graph = tf.exp(log_graph)
        rows = tf.reduce_sum(graph * difference, -1, keepdims=True)
        upstream = graph * (difference - rows) * derivative(bound)
        # The sum over j of G^T - G^S is 0 except for rounding. Adding this sum
        # cancels the rounding of the other sum. A row that is still below 0 is
        # mere rounding.
        divergences = tf.reduce_sum(
            graph * (difference - 1) + tf.exp(log_expected), -1
        )
        return tf.matmul(upstream, keys), [
            tf.reduce_sum(tf.where(~(divergences < 0), divergences, 0)),
            tf.matmul(upstream, queries, transpose_a=True),
        ]

    @tf.custom_gradient
    def divergence(queries, keys):
        queries, keys = map(tf.stop_gradient, (queries, keys))
        of_queries, (loss, of_keys) = over_rows(
            lambda queries, of_teacher: block(queries, keys, of_teacher),
            [queries, teacher.queries],
            queries.shape[-1],
            [tf.zeros((), queries.dtype), tf.zeros_like(keys)],
        )

        def gradient(upstream):
            return upstream * of_queries, upstream * of_keys

        return loss, gradient

    return divergence(*student)


class Variant(NamedTuple):
    """Sets where MHGD deviates from its publication, for ablations.

    Attributes:
        senses_logits: Whether the networks' logits, the input of a final
            softmax or sigmoid, are an additional, last sensing point. The
            distiller's other methods then read this sensing point too.
        logit_activation: `"tanh"` before the softmax (the published code) or
            `"linear"` (the published formula).
        reduction: `"sum"` over heads and rows (published) or `"mean"`.
        fix_signs: Whether each of the teacher's singular vectors has the sign
            that makes the sum of its components not negative. Otherwise signs
            vary from sample to sample, as with the published code: see
            `keras_mhgd.features.compression.varied_signs`. Taken from `mhan`
            if one is given.
        statistics: Statistics by which the heads normalise in the transfer:
            `"moving"`, the moving averages of MHAN's training (published), or
            `"batch"`, the batch's statistics, separate for each network.
        svd_gradient: `"exact"`, or `"published"`, the gradient of the
            authors' code: see `keras_mhgd.linalg.right_singular_vectors`.

    Raises:
        ValueError: Raised by `MHGD` if a value is none of those listed here.
    """

    senses_logits: bool = False
    logit_activation: str = "tanh"
    reduction: str = "sum"
    fix_signs: bool = False
    statistics: str = "moving"
    svd_gradient: str = "exact"


@keras.saving.register_keras_serializable(package="keras_mhgd")
class MHGD(Method):
    """Transfers the teacher's graphs of a batch, learnt by attention.

    Before the student trains, a multi-head attention network (`MHAN`) learns
    from the teacher alone how samples at one sensing point attend to samples
    at the point before. Then, at each step, SVD compresses the features of
    both networks to one vector per sample. The vectors of both pass through
    the same frozen heads, which give the graphs. The loss is the
    `graph_divergence` of the student's graphs from the teacher's. Its
    gradient is limited by the rule `clipping`.

    Args:
        num_heads: Attention heads of each edge, >= 1.
        preparation_epochs: Epochs of MHAN's training, >= 1.
        preparation_learning_rate: Learning rate of MHAN's SGD (Nesterov
            momentum 0.9), > 0.
        scale_logits: Whether the logits of attention are divided by the
            square root of a head's width, in MHAN's training and in the
            transfer. The paper doesn't divide them.
        clipping: How the gradient is combined with the task's:
            `"per_variable"` (published code), `"per_feature"` (one backward
            pass), `"formula"` (published formula) or `None`. See
            `keras_mhgd.gradients`.
        clip_bound: Multiplier of the norm that `"per_variable"` and
            `"per_feature"` allow, > 0.
        graph_scope: Which samples a graph joins if a `tf.distribute` strategy
            has several replicas: `"global"`, those of the whole batch, as on
            one device, or `"replica"`, those of one replica's part.
        mhan: A trained `MHAN` for the same teacher and sensing points. It is
            used unchanged and not trained again. `num_heads`, `scale_logits`
            and the variant's `fix_signs` are then taken from it.
        weight: Multiplier of the loss, >= 0. Clipping can cancel its effect.
        variant: A `Variant`, or a dict of the values that differ from this
            class's default variant.
        max_head_size: Largest width of MHAN's heads: see `MHAN`. Taken from
            `mhan` if one is given.

    Call arguments:
        student: `Features` of the student. Heights and widths may differ from
            the teacher's. Where channels differ, a linear `Projection` that
            trains with the student maps the student's channels to the
            teacher's, because the heads were learnt on the teacher's vectors.
        teacher: `Features` of the teacher.
        labels: Not used.

    Returns:
        `{"mhgd": loss}`, a scalar, float32.

    Raises:
        TypeError: If `mhan` or `variant` is of a wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> method = keras_mhgd.methods.MHGD(num_heads=8)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        S. Lee, B. C. Song, "Graph-based Knowledge Distillation by Multi-head
        Attention Network", BMVC 2019, arXiv:1907.02226.
    """

    terms = ("mhgd",)
    needs = Needs(maps=True, least_points=2)  # an edge joins two points

    _variant = Variant()
    _first_point = 0  # the first point where the student's maps are read

    def __init__(
        self,
        num_heads: int = 8,
        preparation_epochs: int = 40,
        preparation_learning_rate: float = 0.1,
        scale_logits: bool = False,
        clipping: str | None = "per_variable",
        clip_bound: float = 1.0,
        graph_scope: str = "global",
        mhan: MHAN | None = None,
        weight: float = 1.0,
        variant: Variant | Mapping[str, Any] | None = None,
        max_head_size: int | None = 512,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        require_one_or_more(
            num_heads=num_heads, preparation_epochs=preparation_epochs
        )
        require_known("graph_scope", graph_scope, _SCOPES)
        if mhan is not None and not isinstance(mhan, MHAN):
            raise TypeError(
                "`mhan` must be a keras_mhgd.graph.MHAN. "
                f"Received: {mhan!r} of type {type(mhan).__name__}."
            )
        self.preparation = Preparation(
            preparation_epochs,
            preparation_learning_rate,
        )
        self.variant = _checked(self._variant, variant)
        if mhan is not None:
            self.variant = self.variant._replace(fix_signs=mhan.fix_signs)
        self.needs = self.needs._replace(
            logits_as_point=self.variant.senses_logits
        )
        self.num_heads = num_heads if mhan is None else mhan.num_heads
        self.scale_logits = scale_logits if mhan is None else mhan.scale_logits
        if mhan is not None:
            max_head_size = mhan.max_head_size
        self.max_head_size = max_head_size
        self.clipping = clipping
        self.clip_bound = clip_bound
        self.graph_scope = graph_scope
        self.mhan = mhan
        self._mhan_given = mhan is not None
        self.gradient_rule = gradients.get(clipping, clip_bound)
        if graph_scope == "replica":
            is_sum = self.variant.reduction == "sum"
            self.spans = "replica" if is_sum else "sample"

    def build(self, student, teacher):
        super().build(student, teacher)
        sizes = [shape[-1] for shape in teacher.maps]
        self._shapes = tuple(teacher.maps)
        if self.mhan is None:
            self.mhan = MHAN(
                sizes,
                num_heads=self.num_heads,
                scale_logits=self.scale_logits,
                fix_signs=self.variant.fix_signs,
                max_head_size=self.max_head_size,
            )
        elif self.mhan.sizes != sizes:
            raise ValueError(
                "`mhan` must have been trained at the same sensing points. "
                f"Received: vectors of length {self.mhan.sizes} in `mhan`, "
                f"{sizes} in the teacher."
            )
        self.preparation.build(
            self,
            lambda teacher, *_: MHANTrainer(self.mhan, teacher),
            learns=self.mhan,
            networks={"mhan": self.mhan},
            depends_on={
                "num_heads": self.num_heads,
                "scale_logits": self.scale_logits,
                "fix_signs": self.variant.fix_signs,
            },
            done=self._mhan_given,
        )
        points = slice(self._first_point, None)
        self.projections = projections(
            student.maps[points], teacher.maps[points]
        )

    def targets(self, teacher):
        return teacher._replace(
            maps=[], vectors=teacher_vectors(teacher), masks=None
        )

    def reduce(self, student, teacher):
        # Replicas exchange vectors, which are much smaller than maps.
        expected = teacher.vectors
        if not self.variant.fix_signs:
            expected = varied_signs(expected, self._shapes)
        first = self._first_point
        found = student_vectors(
            projected(self.projections, student.maps[first:]),
            expected[first:],
            self.variant.svd_gradient,
        )
        found = [*expected[:first], *found]
        return (
            Features(None, [], vectors=found),
            Features(None, [], vectors=expected),
        )

    def call(self, student, teacher, labels):
        loss = graph_divergence(
            *self._edges(student, teacher),
            activation=self.variant.logit_activation,
            reduction=self.variant.reduction,
        )
        return {self.terms[0]: self.weight * loss}

    def graphs(
        self, student: Features, teacher: Features
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Computes both networks' graphs of a batch, for display.

        Args:
            student: `Features` of the student.
            teacher: `Features` of the teacher.

        Returns:
            The student's graphs and the teacher's: for each edge a tensor
            `(num_heads, batch, batch)`, float32, whose rows each sum to 1.
        """
        activation, _ = _ACTIVATIONS[self.variant.logit_activation]
        reduced = self.reduce(student, self.targets(teacher))
        return tuple(
            [tf.nn.softmax(activation(edge.logits)) for edge in edges]
            for edges in self._edges(*reduced)
        )

    def _edges(self, student, teacher):
        return tuple(
            self.mhan.edges(
                each.vectors,
                batch_statistics=self.variant.statistics == "batch",
            )
            for each in (student, teacher)
        )

    def get_config(self):
        # MHAN is left out: `build` makes an equal one, whose weights are saved
        # and loaded with all others.
        return {
            **super().get_config(),
            **self.preparation.get_config(),
            "num_heads": self.num_heads,
            "scale_logits": self.scale_logits,
            "clipping": self.clipping,
            "clip_bound": self.clip_bound,
            "graph_scope": self.graph_scope,
            "variant": self.variant._asdict(),
            "max_head_size": self.max_head_size,
        }


def _checked(
    default: Variant, given: Variant | Mapping[str, Any] | None
) -> Variant:
    """Fills in missing values from the default, and checks all values."""
    found = given if isinstance(given, Variant) else default
    if isinstance(given, Mapping):
        for name in given:
            require_known("variant", name, Variant._fields)
        found = default._replace(**given)
    elif given is not None and not isinstance(given, Variant):
        raise TypeError(
            "`variant` must be a keras_mhgd.methods.Variant or a dict. "
            f"Received: {given!r} of type {type(given).__name__}."
        )
    require_known("logit_activation", found.logit_activation, _ACTIVATIONS)
    require_known("reduction", found.reduction, REDUCTIONS)
    require_known("statistics", found.statistics, _STATISTICS)
    require_known("svd_gradient", found.svd_gradient, GRADIENTS)
    return found
