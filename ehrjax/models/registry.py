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


def head_name(params: dict[str, Any]) -> str:
    """Which of a model's parameters are the last layer; of a stay network, which adds up several, the wide one's."""
    return next(name for name in ("head", "wide") if name in params)
