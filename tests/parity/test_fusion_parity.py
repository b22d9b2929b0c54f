"""Same weights, same numbers as torch: the fusion LSTM with stays that lack vitals or notes, and its gradients."""

import jax
import numpy as np
import pytest

from ehrjax.data.stay_batching import StayBatches
from ehrjax.models.fusion import FusionLstm
from ehrjax.objectives.supervised import make_supervised_objective
from tests.parity import mapping
from tests.stays import NOTE_DIM, NUM_VARIABLES, make_stays

torch = pytest.importorskip("torch", reason="torch is not installed: it is only the yardstick of the parity tests")


class TorchFusionLstm(torch.nn.Module):
    """The usual form: a packed LSTM over the stays that have time points, two-layer notes, a two-layer joint head."""

    def __init__(self, hidden_dim):
        super().__init__()
        linear = torch.nn.Linear
        self.lstm = torch.nn.LSTM(NUM_VARIABLES, hidden_dim, 2, batch_first=True)
        self.vitals = linear(hidden_dim, 32)
        self.notes = torch.nn.ModuleList([linear(NOTE_DIM, 64), linear(64, 32)])
        self.absent = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(torch.randn(32)) for name in ("vitals", "notes")}
        )
        self.fusion = torch.nn.ModuleList([linear(64, 32), linear(32, 16)])
        self.head = linear(16, 1)

    def forward(self, batch):
        lengths = torch.from_numpy(batch.time_mask.sum(axis=1))
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            torch.from_numpy(batch.values), lengths.clamp(min=1), batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.lstm(packed)
        vitals, notes = torch.relu(self.vitals(last[-1])), torch.from_numpy(batch.notes)
        for layer in self.notes:
            notes = torch.relu(layer(notes))
        has_vitals, has_notes = (torch.from_numpy(has)[:, None] for has in (batch.has_vitals, batch.has_notes))
        fused = torch.cat(
            [torch.where(has_vitals, vitals, self.absent.vitals), torch.where(has_notes, notes, self.absent.notes)], 1
        )
        for layer in self.fusion:
            fused = torch.relu(layer(fused))
        return self.head(fused)


def test_whole_model_and_its_gradients():
    torch.manual_seed(0)
    stays = make_stays([1, 5, 0, 3, 2, 0], has_notes=[True, False, True, True, True, False], seed=4)
    batch = StayBatches(stays, batch_size=6).batch_at(0)
    theirs = TorchFusionLstm(8)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("bias_hh" not in name)  # its gradient is that of bias_ih again
    logits = theirs(batch)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.labels), reduction="sum")
    loss.backward()
    model = FusionLstm(hidden_dim=8, dropout_rate=0.0)
    objective = make_supervised_objective(model, "binary")

    @jax.jit
    def run(params):
        value = jax.value_and_grad(lambda p: objective(p, batch, None, False).loss_sum)(params)
        return model.apply({"params": params}, batch).logits, *value

    expected = mapping.weight(logits), mapping.weight(loss), mapping.fusion_lstm(theirs, mapping.gradient)
    found = run(mapping.fusion_lstm(theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
