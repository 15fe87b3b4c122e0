"""Learns a teacher's graphs by a multi-head attention network."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.checks import require_one_or_more
from keras_mhgd.graph.attention import AttentionHeads, Edge
from keras_mhgd.graph.estimator import Estimator


@keras.saving.register_keras_serializable(package="keras_mhgd")
class MHAN(keras.Model):
    """Relates the samples of a batch at neighbouring sensing points.

    An edge leads from sensing point `i` (front end) to `i + 1` (back end). For
    each edge, attention heads give the logits of a graph: how each sample's
    back-end vector attends to the front-end vectors of all samples. An
    estimator predicts the back-end vectors through these graphs. The network
    is trained on this prediction: see `MHANTrainer`.

    Computes in float32 whatever the dtype policy.

    Args:
        sizes: Length `D` of the vectors at each sensing point, front end
            first, two or more.
        num_heads: Attention heads of each edge, >= 1.
        scale_logits: Whether logits are divided by the square root of a
            head's width. The paper does not divide them.
        fix_signs: Whether the signs of the singular vectors that it is trained
            on are fixed, or vary from sample to sample: see
            `keras_mhgd.features.compression.varied_signs`.
        weight_decay: Coefficient `w` of the penalty `w * sum v^2` over all
            weights while the network trains.
        seed: Seed of the random head dropping.
        max_head_size: Largest width of a head, >= 1. A head is as wide as the
            mean of its edge's two sizes (published), unless that is more. The
            default leaves the published networks' heads as they are. `None`
            sets no bound.
        name: Name of the network.

    Call arguments:
        vectors: A tensor `(batch, D)` of unit vectors for each sensing point.
        training: Whether to normalise by batch statistics and update the
            moving averages. Otherwise the moving averages are used.

    Returns:
        Logits `(num_heads, batch, batch)` for each edge, float32: rows are
        back-end samples, columns front-end samples.

    Example:
        >>> mhan = keras_mhgd.graph.MHAN(sizes=[16, 32, 64], num_heads=8)
        >>> mhan.save("mhan.keras")
        >>> method = keras_mhgd.methods.MHGD(
        ...     mhan=keras.saving.load_model("mhan.keras")
        ... )

    Reference:
        S. Lee, B. C. Song, "Graph-based Knowledge Distillation by Multi-head
        Attention Network", BMVC 2019, arXiv:1907.02226.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        num_heads: int = 8,
        scale_logits: bool = False,
        fix_signs: bool = False,
        weight_decay: float = 5e-4,
        seed: int | None = None,
        max_head_size: int | None = 512,
        name: str = "mhan",
        **kwargs,
    ):
        if len(sizes) < 2 or any(size < 1 for size in sizes):
            raise ValueError(
                "`sizes` must give the vector length of two or more sensing "
                f"points. Received: sizes={list(sizes)}."
            )
        require_one_or_more(num_heads=num_heads)
        if max_head_size is not None:
            require_one_or_more(max_head_size=max_head_size)
        super().__init__(name=name, **{**kwargs, "dtype": "float32"})
        self.sizes = list(sizes)
        self.num_heads = num_heads
        self.scale_logits = scale_logits
        self.fix_signs = fix_signs
        self.weight_decay = weight_decay
        self.seed = seed
        self.max_head_size = max_head_size
        self.heads, self.estimators = [], []
        seeds = keras.random.SeedGenerator(seed)
        self.seed_generator = seeds
        regularizer = keras.regularizers.L2(weight_decay)
        edges = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        for edge, (front, back) in enumerate(edges, start=1):
            head_size = (front + back) // 2
            if max_head_size is not None:
                head_size = min(head_size, max_head_size)
            heads = AttentionHeads(
                num_heads,
                head_size,
                scale_logits=scale_logits,
                regularizer=regularizer,
                dtype="float32",
                name=f"edge{edge}_heads",
            )
            heads.build((None, back), (None, front))
            self.heads.append(heads)
            estimator = Estimator(
                head_size,
                back,
                regularizer=regularizer,
                dtype="float32",
                name=f"edge{edge}_estimator",
            )
            estimator.build((None, front), num_heads)
            self.estimators.append(estimator)
        self.built = True

    def call(self, vectors, training=False):
        """Computes the logits of each edge: see the call arguments."""
        return [edge.logits for edge in self.edges(vectors, training)]

    def edges(
        self,
        vectors: Sequence[tf.Tensor],
        training: bool = False,
        batch_statistics: bool = False,
    ) -> list[Edge]:
        """Computes the logits' factors, whose size is linear in the batch.

        Args:
            vectors: As in the call.
            training: As in the call.
            batch_statistics: Whether to normalise by batch statistics without
                an update of the moving averages, also in a frozen network.

        Returns:
            The queries and keys of each edge.
        """
        return [
            heads(
                back,
                front,
                training=training,
                batch_statistics=batch_statistics,
            )
            for heads, front, back in zip(
                self.heads, vectors[:-1], vectors[1:], strict=True
            )
        ]

    def estimate(
        self,
        vectors: Sequence[tf.Tensor],
        noise: Sequence[tf.Tensor] | None = None,
    ) -> list[tf.Tensor]:
        """Predicts back-end vectors through the graphs, in training mode.

        Args:
            vectors: As in the call.
            noise: For each edge, normal noise `(num_heads, batch)` that
                decides which heads each row drops: a head stays for a row
                where its noise exceeds the mean over heads. Drawn if `None`.

        Returns:
            Unit vectors `(batch, D)` for each edge.
        """
        edges = self.edges(vectors, training=True)
        if noise is None:
            noise = [
                keras.random.normal(
                    tf.shape(edge.queries)[:2], seed=self.seed_generator
                )
                for edge in edges
            ]
        return [
            estimator(front, edge, kept_heads(edge_noise))
            for estimator, front, edge, edge_noise in zip(
                self.estimators, vectors[:-1], edges, noise, strict=True
            )
        ]

    def get_config(self):
        # Without `trainable`: the code that loads an MHAN sets it.
        return {
            "sizes": self.sizes,
            "num_heads": self.num_heads,
            "scale_logits": self.scale_logits,
            "fix_signs": self.fix_signs,
            "weight_decay": self.weight_decay,
            "seed": self.seed,
            "max_head_size": self.max_head_size,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        # All networks that were saved without `fix_signs` learnt fixed signs,
        # and those that were saved without `max_head_size` had no bound.
        return cls(**{"fix_signs": True, "max_head_size": None, **config})


def kept_heads(noise: tf.Tensor) -> tf.Tensor:
    """Drops heads at random, independently for each row of a graph.

    Args:
        noise: Normal noise `(num_heads, batch)`. A head stays for a row where
            its noise exceeds the mean of the row's noise over the heads.

    Returns:
        `(num_heads, batch)`: 1 where a head stays, else 0. Rows that stay are
        not rescaled. A single head always stays.
    """
    if noise.shape[0] == 1:
        return tf.ones_like(noise)
    kept = noise > tf.reduce_mean(noise, axis=0, keepdims=True)
    return tf.cast(kept, noise.dtype)
