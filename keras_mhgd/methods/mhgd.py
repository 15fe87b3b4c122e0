"""Graph-based knowledge distillation by multi-head attention network.

S. Lee, B. C. Song, BMVC 2019, arXiv:1907.02226.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd import gradients, linalg
from keras_mhgd.choices import require_known
from keras_mhgd.compression import student_vectors, teacher_vectors
from keras_mhgd.features import Features
from keras_mhgd.graph import MHAN, Edge, MHANTrainer
from keras_mhgd.graph.blocks import over_rows
from keras_mhgd.methods.method import Method, Needs
from keras_mhgd.methods.preparation import Preparation
from keras_mhgd.methods.projection import projected, projections
from keras_mhgd.methods.reductions import REDUCTIONS

# Function and, by its value, its derivative.
_ACTIVATIONS = {
    "tanh": (tf.tanh, lambda value: 1 - value**2),
    "linear": (tf.identity, tf.ones_like),
}

_ATTENTIONS = ("self", "cross")
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

    Memory grows linearly with the batch: the graphs are gone through in
    blocks of rows, each of which gives its part of the loss and of the
    gradient.

    Args:
        student: The factors of the logits, for each edge.
        teacher: The same; no gradient flows into them.
        activation: `"tanh"` (the published code) or `"linear"` (the
            published formula), before the softmax of both.
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
        # Logarithms come from log_softmax: no log of a vanishing graph.
        log_graph = tf.nn.log_softmax(bound)
        expected = activation(Edge(of_teacher, teacher.keys).logits)
        log_expected = tf.nn.log_softmax(expected)
        difference = log_graph - log_expected
        graph = tf.exp(log_graph)
        rows = tf.reduce_sum(graph * difference, -1, keepdims=True)
        upstream = graph * (difference - rows) * derivative(bound)
        # The sum over j of G^T - G^S is 0 but for rounding, whose effect on the
        # other sum it cancels. Only what is left can put a row below 0.
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


@keras.saving.register_keras_serializable(package="keras_mhgd")
class MHGD(Method):
    """Transfers the teacher's graphs of a batch, learnt by attention.

    Before the student trains, a multi-head attention network (`MHAN`) learns
    from the teacher alone how samples at one sensing point attend to those
    at the point before. Then, at each step, features of both networks are
    compressed to one vector a sample by SVD, pass through the same frozen
    heads, and the student is trained to give the teacher's graphs:
    `graph_divergence`, whose gradient is clipped by `clipping`.

    Args:
        num_heads: Attention heads of each edge, >= 1.
        preparation_epochs: Epochs that MHAN trains for, >= 1.
        preparation_learning_rate: Rate of MHAN's SGD (Nesterov momentum
            0.9), > 0.
        attention: Whom the student's back-end samples attend to: `"self"`,
            the student's own at the front end (published), or `"cross"`, the
            teacher's, which is ours: G^S = softmax(queries^S keys^T). Then a
            sample is placed among fixed ones, where by itself all move at
            once, and graphs may agree while both ends are wrong. The first
            sensing point takes part by the teacher's features alone.
        logit_activation: `"tanh"` before the softmax (the published code) or
            `"linear"` (the published formula).
        senses_logits: Whether the networks' logits, what a last softmax or
            sigmoid gets, are a last sensing point beside the others: also of
            methods beside this one that read sensing points.
        scale_logits: Whether logits are divided by the square root of a
            head's width, in MHAN's training and in the transfer. The paper's
            are not; those of `recommended` are.
        reduction: `"sum"` over heads and rows (published) or `"mean"`. The
            default is the published one; clipped as published, the two were
            not told apart (docs/evidence.md).
        clipping: How the gradient joins the task's: `"per_variable"`
            (published code), `"per_feature"` (one backward pass),
            `"formula"` (published formula) or `None`. See
            `keras_mhgd.gradients`.
        clip_bound: Multiplier of the norm that the first two allow, > 0.
        fix_signs: Whether the teacher's singular vectors have the sign that
            makes their components' sum not negative; else what the solver
            happens to give (published; docs/evidence.md compares them).
        statistics: What the heads normalise by in the transfer: `"moving"`,
            the averages of MHAN's training (published), or `"batch"`, those
            of the batch, each network's own.
        svd_gradient: `"exact"`, or `"published"`, which is that of the
            authors' code: see `keras_mhgd.linalg.right_singular_vectors`.
        graph_scope: Of several replicas of a `tf.distribute` strategy:
            `"global"`, whose graphs are those of the whole batch, as on one
            device, or `"replica"`, each those of its own part.
        mhan: A trained `MHAN` of the same teacher and sensing points: it is
            used as it is and not trained again. `num_heads` and
            `scale_logits` are its own then; `fix_signs` must be as it was
            trained.
        weight: Multiplier of the loss, >= 0. Clipping can undo it.

    Call arguments:
        student: `Features` of the student. Where its maps' channels differ
            from the teacher's, a linear `Projection` that trains with the
            student brings them to the teacher's: its vectors go through heads
            learnt on those. Heights and widths may differ.
        teacher: `Features` of the teacher.
        labels: Not used.

    Returns:
        `{"mhgd": loss}`, a scalar, float32.

    Raises:
        TypeError: If `mhan` is no `MHAN`.
        ValueError: If an argument is out of range.

    Example:
        >>> method = keras_mhgd.methods.MHGD(num_heads=8)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        S. Lee, B. C. Song, "Graph-based Knowledge Distillation by Multi-head
        Attention Network", BMVC 2019, arXiv:1907.02226.
    """

    terms = ("mhgd",)
    needs = Needs(maps=True, least_points=2)  # an edge of the graph joins two

    def __init__(
        self,
        num_heads: int = 8,
        preparation_epochs: int = 40,
        preparation_learning_rate: float = 0.1,
        attention: str = "self",
        logit_activation: str = "tanh",
        senses_logits: bool = False,
        scale_logits: bool = False,
        reduction: str = "sum",
        clipping: str | None = "per_variable",
        clip_bound: float = 1.0,
        fix_signs: bool = True,
        statistics: str = "moving",
        svd_gradient: str = "exact",
        graph_scope: str = "global",
        mhan: MHAN | None = None,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        for name, value in (
            ("num_heads", num_heads),
            ("preparation_epochs", preparation_epochs),
        ):
            if value < 1:
                raise ValueError(
                    f"`{name}` must be 1 or more. Received: {name}={value}."
                )
        require_known("attention", attention, _ATTENTIONS)
        require_known("logit_activation", logit_activation, _ACTIVATIONS)
        require_known("reduction", reduction, REDUCTIONS)
        require_known("statistics", statistics, _STATISTICS)
        require_known("svd_gradient", svd_gradient, linalg.GRADIENTS)
        require_known("graph_scope", graph_scope, _SCOPES)
        if mhan is not None and not isinstance(mhan, MHAN):
            raise TypeError(
                "`mhan` must be a keras_mhgd.graph.MHAN. "
                f"Received: {mhan!r} of type {type(mhan).__name__}."
            )
        self.preparation = Preparation(
            preparation_epochs,
            preparation_learning_rate,
            depends_on=("num_heads", "scale_logits", "fix_signs"),
        )
        self.needs = self.needs._replace(logits_as_point=senses_logits)
        self.num_heads = num_heads if mhan is None else mhan.num_heads
        self.scale_logits = scale_logits if mhan is None else mhan.scale_logits
        self.attention = attention
        self.logit_activation = logit_activation
        self.reduction = reduction
        self.clipping = clipping
        self.clip_bound = clip_bound
        self.fix_signs = fix_signs
        self.statistics = statistics
        self.svd_gradient = svd_gradient
        self.graph_scope = graph_scope
        self.mhan = mhan
        self._mhan_given = mhan is not None
        self.gradient_rule = gradients.get(clipping, clip_bound)
        if graph_scope == "replica":
            self.spans = "replica" if reduction == "sum" else "sample"

    def build(self, student, teacher):
        super().build(student, teacher)
        sizes = [shape[-1] for shape in teacher.maps]
        if self.mhan is None:
            self.mhan = MHAN(
                sizes,
                num_heads=self.num_heads,
                scale_logits=self.scale_logits,
            )
        elif self.mhan.sizes != sizes:
            raise ValueError(
                "`mhan` must have been trained at the same sensing points. "
                f"Received: vectors of length {self.mhan.sizes} in `mhan`, "
                f"{sizes} in the teacher."
            )
        self.preparation.build(
            self,
            lambda teacher, student: MHANTrainer(
                self.mhan, teacher, self.fix_signs
            ),
            learns=self.mhan,
            networks={} if self._mhan_given else {"mhan": self.mhan},
            done=self._mhan_given,
        )
        points = slice(self._first_point, None)
        self.projections = projections(
            student.maps[points], teacher.maps[points]
        )

    def targets(self, teacher):
        # Vectors that are kept for other methods have signs that are fixed.
        if not self.fix_signs:
            return teacher
        return teacher._replace(
            maps=[], vectors=teacher_vectors(teacher), masks=None
        )

    def reduce(self, student, teacher):
        # Vectors, which are much smaller than maps.
        expected = teacher_vectors(teacher, self.fix_signs)
        first = self._first_point
        found = student_vectors(
            projected(self.projections, student.maps[first:]),
            expected[first:],
            self.svd_gradient,
        )
        found = [*expected[:first], *found]
        return (
            Features(student.outputs, [], vectors=found),
            Features(teacher.outputs, [], vectors=expected),
        )

    @property
    def _first_point(self) -> int:
        """The first sensing point where the student takes part."""
        return 1 if self.attention == "cross" else 0

    def call(self, student, teacher, labels):
        loss = graph_divergence(
            *self._edges(student, teacher),
            activation=self.logit_activation,
            reduction=self.reduction,
        )
        return {"mhgd": self.weight * loss}

    def graphs(
        self, student: Features, teacher: Features
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Computes both networks' graphs of a batch, to be looked at.

        Args:
            student: `Features` of the student.
            teacher: The teacher's `targets`.

        Returns:
            The student's and the teacher's: for each edge `(num_heads, batch,
            batch)`, float32, rows of which each sums to 1.
        """
        activation, _ = _ACTIVATIONS[self.logit_activation]
        return tuple(
            [tf.nn.softmax(activation(edge.logits)) for edge in edges]
            for edges in self._edges(*self.reduce(student, teacher))
        )

    def _edges(self, student, teacher):
        ours, theirs = (
            self.mhan.edges(
                each.vectors, batch_statistics=self.statistics == "batch"
            )
            for each in (student, teacher)
        )
        if self.attention == "cross":
            ours = [
                our._replace(keys=their.keys)
                for our, their in zip(ours, theirs, strict=True)
            ]
        return ours, theirs

    def get_config(self):
        # No MHAN: `build` makes one like it, and its weights are saved and
        # loaded as all weights are.
        return {
            **super().get_config(),
            **self.preparation.get_config(),
            "num_heads": self.num_heads,
            "attention": self.attention,
            "senses_logits": self.needs.logits_as_point,
            "logit_activation": self.logit_activation,
            "scale_logits": self.scale_logits,
            "reduction": self.reduction,
            "clipping": self.clipping,
            "clip_bound": self.clip_bound,
            "fix_signs": self.fix_signs,
            "statistics": self.statistics,
            "svd_gradient": self.svd_gradient,
            "graph_scope": self.graph_scope,
        }
