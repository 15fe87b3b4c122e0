"""Holds labelled sequences of tokens, such as words, and streams batches."""

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.data.dataset import Dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens(Dataset):
    """Holds labelled sequences of tokens and streams their batches.

    A sequence is a row of token numbers, with zeros after its end. All rows
    are equally long. The streams give int32 rows as they are stored. Parts,
    seeds, resumption and sequences without labels work as for images. Nothing
    is augmented, because a change of tokens may change the label.

    Args:
        x_train: Training sequences: unsigned or signed integers `(count,
            length)` in `[0, len(tokens))`, an array.
        x_test: Test sequences of the same length.
        tokens: The token of each number, such as a character. Number 0 is
            padding, so the first one is not used.

    The other arguments are those of `Dataset`. `layers`, `mixing`, `padding`
    and `flip` make views of images, and must be left out.

    Raises:
        ValueError: If an array has the wrong dtype or shape, a number is out
            of range, or the arguments do not fit together.

    Example:
        >>> languages = keras_mhgd.data.load("languages", subset=2000)
        >>> languages.decode(languages.x_train[:2])
        ['grysgroen', 'гуртаўшчыцкі']
    """

    kind = "sequences"

    tokens: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    def __post_init__(self):
        if self.layers or self.mixing or self.padding or self.flip:
            raise ValueError(
                f"{self.name}: sequences of tokens must have no augmentation, "
                "which is for images. Received: layers, mixing, padding or "
                "flip. Leave them out."
            )
        super().__post_init__()

    def _check_images(self, part: str) -> None:
        name, rows = f"x_{part}", getattr(self, f"x_{part}")
        fits = isinstance(rows, np.ndarray) and rows.dtype.kind in "iu"
        if not (fits and rows.ndim == 2 and rows.size):
            found = type(rows).__name__
            if isinstance(rows, np.ndarray):
                found = f"{rows.dtype} array of shape {rows.shape}"
            raise ValueError(
                f"{self.name}: `{name}` must be a non-empty integer array of "
                f"shape (count, length). Received: {found}. Convert or "
                "reshape it."
            )
        if rows.min() < 0 or rows.max() >= len(self.tokens):
            raise ValueError(
                f"{self.name}: `{name}` must hold numbers in [0, "
                f"{len(self.tokens)}), the number of tokens. Received: numbers "
                f"from {rows.min()} to {rows.max()}. Name all tokens in "
                "`tokens`, padding first."
            )
        real = rows > 0
        wrong = np.flatnonzero(
            ~real[:, 0] | (real[:, 1:] > real[:, :-1]).any(axis=1)
        )
        if wrong.size:
            raise ValueError(
                f"{self.name}: each row of `{name}` must begin with a token, "
                f"and zeros must come last. Received: {name}[{wrong[0]}] = "
                f"{rows[wrong[0]].tolist()} and {wrong.size - 1} more such "
                "rows. Move the zeros to the end, and leave out empty rows."
            )

    def _check_padding(self) -> None:
        pass  # `__post_init__` refuses any

    @property
    def input_shape(self) -> tuple[int]:
        """Length of a sequence with its padding, tokens."""
        return self.x_train.shape[1:]

    @functools.cached_property
    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        # Numbers of tokens are not scaled. There is one mean for each channel
        # of an image, and none here.
        return np.zeros(0, np.float32), np.zeros(0, np.float32)

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Converts sequences to the form that the streams give.

        Args:
            images: Integers `(..., length)`.

        Returns:
            int32 array of the same shape.

        Raises:
            ValueError: If `images` holds no integers.
        """
        rows = np.asarray(images)
        if rows.dtype.kind not in "iu":
            raise ValueError(
                "`images` must be numbers of tokens. "
                f"Received: {rows.dtype} array of shape {rows.shape}. Pass "
                "integers."
            )
        return rows.astype(np.int32)

    def augmented(
        self,
        augmentation: str | keras.Layer,
        size: tuple[int, int] | None = None,
        mixing: object = None,
    ) -> "Tokens":
        """Refuses every augmentation but `"none"`, which changes nothing."""
        if augmentation != "none" or size or mixing:
            raise ValueError(
                f"{self.name}: `augmentation` must be none for sequences of "
                f"tokens: views are for images. Received: augmentation="
                f"{augmentation!r}, size={size}, mixing={mixing}. Leave them "
                "out."
            )
        return self

    def decode(self, rows: np.ndarray) -> list[str]:
        """Writes sequences as text, without padding.

        Args:
            rows: Token numbers `(count, length)`.
        """
        return ["".join(self.tokens[i] for i in row if i) for row in rows]

    def _crops(self, order: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
        return self._prepared(self._read_train(order))

    def _prepared(self, images: tf.Tensor) -> tf.Tensor:
        return tf.cast(images, tf.int32)
