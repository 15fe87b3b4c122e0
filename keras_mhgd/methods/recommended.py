"""What to use where nothing is known yet: ours, measured in the benchmarks."""

from keras_mhgd.methods.base.method import Method
from keras_mhgd.methods.dist import DIST
from keras_mhgd.methods.mhgd_cross import CrossMHGD
from keras_mhgd.methods.soft_logits import SoftLogits


def recommended() -> list[Method]:
    """Makes MHGD by cross attention, soft logits and DIST.

    Each is as it is by default. The transfer of graphs is clipped where it
    enters the student, to 0.3 sigmoid(t) times the gradient that the others
    have there, t epochs after it began.

    Returns:
        New methods.

    Example:
        >>> found = keras_mhgd.methods.recommended()
        >>> [term for method in found for term in method.terms]
        ['mhgd_cross', 'soft_logits', 'dist_inter', 'dist_intra']
    """
    return [CrossMHGD(), SoftLogits(), DIST()]
