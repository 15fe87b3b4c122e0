"""Goes through a graph's rows in blocks, so that no whole graph is kept."""

from collections.abc import Callable, Sequence

import tensorflow as tf

# Of a block; the graph of a smaller batch is one block.
_ROWS = 128


def over_rows(
    function: Callable[..., tuple[tf.Tensor, Sequence[tf.Tensor]]],
    rows: Sequence[tf.Tensor],
    width: int,
    totals: Sequence[tf.Tensor],
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Applies a function to blocks of rows, one after the other.

    The next block takes the memory of the one before. For use within a custom
    gradient, on constants: a tape would keep all blocks.

    Args:
        function: Takes a block `(heads, size, width)` of each of `rows`;
            returns new rows `(heads, size, width)` and summands. The last
            block is filled up by rows of zeros: their summands must be zero.
        rows: Tensors `(heads, batch, width)`.
        width: Of the new rows.
        totals: Zeros of the summands' shapes.

    Returns:
        The new rows `(heads, batch, width)` and the sums over all blocks.
    """
    heads = rows[0].shape[0]
    count = tf.shape(rows[0])[1]
    size = tf.minimum(count, _ROWS)
    number = -(-count // size)

    def split(x):
        x = tf.pad(x, [[0, 0], [0, number * size - count], [0, 0]])
        x = tf.reshape(x, (heads, number, size, x.shape[2]))
        return tf.transpose(x, (1, 0, 2, 3))

    blocks = [split(each) for each in rows]

    def step(index, made, *totals):
        new, summands = function(*(each[index] for each in blocks))
        made = tf.tensor_scatter_nd_update(made, [[index]], new[tf.newaxis])
        sums = [a + b for a, b in zip(totals, summands, strict=True)]
        return index + 1, made, *sums

    made = tf.zeros((number, heads, size, width), rows[0].dtype)
    _, made, *totals = tf.while_loop(
        lambda index, *_: index < number,
        step,
        (0, made, *totals),
        parallel_iterations=1,
        maximum_iterations=number,
    )
    made = tf.transpose(made, (1, 0, 2, 3))
    made = tf.reshape(made, (heads, number * size, width))
    return made[:, :count], totals
