"""Models by the name that a recipe gives them."""

from typing import Any

import flax.linen as nn

from ehrjax.models.behrt import Behrt
from ehrjax.models.fusion import FusionLstm
from ehrjax.models.hierarchical import Hierarchical
from ehrjax.models.med2vec import Med2Vec
from ehrjax.models.stay_network import StayNetwork
from ehrjax.models.visit_lstm import VisitLstm

MODELS: dict[str, type[nn.Module]] = {
    "visit_lstm": VisitLstm,
    "behrt": Behrt,
    "hierarchical": Hierarchical,
    "med2vec": Med2Vec,
    "fusion_lstm": FusionLstm,
    "stay_network": StayNetwork,
}


def head_names(params: dict[str, Any]) -> tuple[str, ...]:
    """Which of a model's parameters are last layers that a bias makes say the base rate.

    A stay network is the mean of two networks; the first adds up several layers, for which the wide one stands.
    """
    return tuple(name for name in ("head", "wide", "triplet_head") if name in params)
