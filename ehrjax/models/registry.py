"""Models by the name that a recipe gives them."""

import flax.linen as nn

from ehrjax.models.behrt import Behrt
from ehrjax.models.fusion import FusionLstm
from ehrjax.models.hierarchical import Hierarchical
from ehrjax.models.med2vec import Med2Vec
from ehrjax.models.visit_lstm import VisitLstm

MODELS: dict[str, type[nn.Module]] = {
    "visit_lstm": VisitLstm,
    "behrt": Behrt,
    "hierarchical": Hierarchical,
    "med2vec": Med2Vec,
    "fusion_lstm": FusionLstm,
}
