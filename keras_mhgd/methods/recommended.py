"""What to use where nothing is known yet: ours, measured in the benchmarks."""

from keras_mhgd.methods.dist import DIST
from keras_mhgd.methods.method import Method
from keras_mhgd.methods.mhgd import MHGD
from keras_mhgd.methods.soft_logits import SoftLogits


def recommended() -> list[Method]:
    """Makes MHGD by cross attention, soft logits and DIST.

    Of the published MHGD it keeps the attention network and its training, the
    heads, the compression and the divergence. Other than published, the
    student attends to the teacher's samples, the logits are a last sensing
    point, attention logits are divided by the square root of a head's width,
    and the transfer is clipped where it enters the student, to 0.3 sigmoid(t)
    times the gradient that the others have there, t epochs after it began.
    These, soft logits and DIST, are as they are by default.

    Returns:
        New methods.

    Example:
        >>> found = keras_mhgd.methods.recommended()
        >>> [term for method in found for term in method.terms]
        ['mhgd', 'soft_logits', 'dist_inter', 'dist_intra']
    """
    mhgd = MHGD(
        attention="cross",
        senses_logits=True,
        scale_logits=True,
        clipping="per_feature",
        clip_bound=0.3,
    )
    return [mhgd, SoftLogits(), DIST()]
