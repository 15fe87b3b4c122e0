"""Makes distillation methods from names or configurations."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_mhgd.checks import require_known
from keras_mhgd.methods.activation_boundaries import ActivationBoundaries
from keras_mhgd.methods.attention_transfer import AttentionTransfer
from keras_mhgd.methods.base.keras_loss import KerasLoss
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.base.preparation import Preparation
from keras_mhgd.methods.correlation_congruence import CorrelationCongruence
from keras_mhgd.methods.crd import CRD
from keras_mhgd.methods.dist import DIST
from keras_mhgd.methods.dkd import DKD
from keras_mhgd.methods.ea_kd import EAKD
from keras_mhgd.methods.factor_transfer import FactorTransfer
from keras_mhgd.methods.fitnet import FitNet
from keras_mhgd.methods.fsp import FSP
from keras_mhgd.methods.kd_svd import KDSVD, KDSVDF
from keras_mhgd.methods.mhgd import MHGD, Variant, graph_divergence
from keras_mhgd.methods.mhgd_cross import CrossMHGD
from keras_mhgd.methods.mlkd import MLKD
from keras_mhgd.methods.mutual_learning import MutualLearning
from keras_mhgd.methods.nkd import NKD
from keras_mhgd.methods.nst import NST
from keras_mhgd.methods.overhaul import Overhaul
from keras_mhgd.methods.pieces.paraphraser import Paraphraser
from keras_mhgd.methods.pkt import PKT
from keras_mhgd.methods.recommended import recommended
from keras_mhgd.methods.review_kd import ReviewKD
from keras_mhgd.methods.rkd import RKD
from keras_mhgd.methods.rld import RLD
from keras_mhgd.methods.sdd import SDD
from keras_mhgd.methods.similarity_preserving import SimilarityPreserving
from keras_mhgd.methods.simkd import SimKD, with_teacher_classifier
from keras_mhgd.methods.skd import SKD
from keras_mhgd.methods.soft_logits import SoftLogits
from keras_mhgd.methods.srd import SRD
from keras_mhgd.methods.ttm import TTM, WTTM
from keras_mhgd.methods.vid import VID

__all__ = [
    "ActivationBoundaries",
    "CRD",
    "CrossMHGD",
    "FactorTransfer",
    "Overhaul",
    "Paraphraser",
    "ReviewKD",
    "VID",
    "AttentionTransfer",
    "CorrelationCongruence",
    "DIST",
    "DKD",
    "EAKD",
    "FSP",
    "FitNet",
    "Identifier",
    "KDSVD",
    "KDSVDF",
    "KerasLoss",
    "MHGD",
    "MLKD",
    "Method",
    "MutualLearning",
    "NKD",
    "NST",
    "Needs",
    "Preparation",
    "PKT",
    "RKD",
    "RLD",
    "SDD",
    "SKD",
    "SRD",
    "SimKD",
    "SimilarityPreserving",
    "SoftLogits",
    "TTM",
    "Variant",
    "WTTM",
    "get",
    "graph_divergence",
    "name_of",
    "names",
    "parts",
    "recommended",
    "with_teacher_classifier",
]

Identifier = str | Method | keras.distillation.DistillationLoss | dict[str, Any]
"""What `get` makes a method from."""

_METHODS = {
    "mhgd": MHGD,
    "mhgd_cross": CrossMHGD,
    "soft_logits": SoftLogits,
    "mutual_learning": MutualLearning,
    "dkd": DKD,
    "dist": DIST,
    "nkd": NKD,
    "ttm": TTM,
    "wttm": WTTM,
    "rld": RLD,
    "mlkd": MLKD,
    "ea_kd": EAKD,
    "fitnet": FitNet,
    "attention_transfer": AttentionTransfer,
    "activation_boundaries": ActivationBoundaries,
    "factor_transfer": FactorTransfer,
    "vid": VID,
    "overhaul": Overhaul,
    "review_kd": ReviewKD,
    "nst": NST,
    "similarity_preserving": SimilarityPreserving,
    "fsp": FSP,
    "kd_svd": KDSVD,
    "kd_svdf": KDSVDF,
    "rkd": RKD,
    "pkt": PKT,
    "correlation_congruence": CorrelationCongruence,
    "crd": CRD,
    "srd": SRD,
    "sdd": SDD,
    "skd": SKD,
}


def names() -> list[str]:
    """Lists the names that `get` accepts."""
    return list(_METHODS)


def name_of(method: Method) -> str:
    """Gives the name by which `get` makes a method of the same class.

    Args:
        method: A method.

    Returns:
        The name, one of `names()`.

    Raises:
        ValueError: If the method's class has no name.
    """
    for name, kind in _METHODS.items():
        if type(method) is kind:
            return name
    raise ValueError(
        "`method` must be one of the methods that have a name: "
        f"{', '.join(_METHODS)}. Received: {method!r}. "
        "Make it by `get`, from one of these."
    )


def get(identifier: Identifier) -> Method:
    """Makes a method from its name or configuration.

    Args:
        identifier: One of `names()`, a `Method`, a loss of
            `keras.distillation`, or the serialized form of such an object.

    Returns:
        The method. A name gives a method with the defaults of its class.

    Raises:
        ValueError: If the name is unknown, or stands for several methods.
        TypeError: If `identifier` is no name, method or configuration.
    """
    if isinstance(identifier, Method):
        return identifier
    if isinstance(identifier, keras.distillation.DistillationLoss):
        return KerasLoss(identifier)
    if isinstance(identifier, dict):
        return get(keras.saving.deserialize_keras_object(identifier))
    if not isinstance(identifier, str):
        raise TypeError(
            "`method` must be a name, a keras_mhgd.methods.Method, a loss of "
            "keras.distillation, a configuration, or a list of these. "
            f"Received: {identifier!r} of type {type(identifier).__name__}. "
            f"Names: {', '.join(names())}."
        )
    if identifier == "recommended" or "+" in identifier:
        raise ValueError(
            "`identifier` must stand for one method. Received: "
            f"{identifier!r}, which stands for several. Use methods.parts, or "
            "pass it to a Distiller."
        )
    require_known("method", identifier, _METHODS)
    return _METHODS[identifier]()


def parts(identifier: Identifier | Sequence[Identifier]) -> list[Method]:
    """Makes every method that a name or list stands for.

    It is not checked whether the methods fit each other. For example, two
    methods that clip their gradients are returned here, but a `Distiller`
    refuses them.

    Args:
        identifier: An identifier for `get`, `"recommended"`, names joined by
            `+` such as `"mhgd+soft_logits"`, or a list of any of these.

    Returns:
        The methods. A method made from a name has the defaults of its class.

    Raises:
        ValueError: If a name is unknown, or if a list is empty.
        TypeError: If an entry is no name, method or configuration.
    """
    if isinstance(identifier, (list, tuple)):
        if not identifier:
            raise ValueError(
                "`method` must be one method or more. Received: an empty list."
            )
        return [part for each in identifier for part in parts(each)]
    if identifier == "recommended":
        return recommended()
    if isinstance(identifier, str) and "+" in identifier:
        return parts(identifier.split("+"))
    if isinstance(identifier, str):
        require_known("method", identifier, [*_METHODS, "recommended"])
    return [get(identifier)]
