"""Makes our recommended methods, as measured in the benchmarks."""

from keras_mhgd.methods.base.method import Method
from keras_mhgd.methods.dist import DIST
from keras_mhgd.methods.mhgd_cross import CrossMHGD
from keras_mhgd.methods.soft_logits import SoftLogits


def recommended() -> list[Method]:
    """Makes MHGD by cross attention, soft logits and DIST.

    Each method has its default arguments. The gradient of the graph transfer
    is clipped where it enters the student: its norm is at most 0.3 sigmoid(t)
    times the norm of the gradient of all other losses, t epochs after the
    transfer began.

    Returns:
        New methods.

    Example:
        >>> found = keras_mhgd.methods.recommended()
        >>> [term for method in found for term in method.terms]
        ['mhgd_cross', 'soft_logits', 'dist_inter', 'dist_intra']
    """
    return [CrossMHGD(), SoftLogits(), DIST()]
