"""Same weights, same numbers as torch: LSTM, attention pooling, and the whole model with its gradients."""

import jax
import numpy as np
import pytest

from ehrjax.data.batching import VisitBatches
from ehrjax.models.visit_lstm import VisitLstm
from ehrjax.nn.pooling import POOLINGS, VisitPooling
from ehrjax.nn.recurrent import Lstm
from ehrjax.objectives.supervised import make_supervised_objective
from tests.parity import mapping
from tests.sequences import VOCAB_SIZE, make_sequences

torch = pytest.importorskip("torch", reason="torch is not installed: it is only the yardstick of the parity tests")
from experiments.benchmarks.torch_lstm import TorchVisitLstm, to_padded  # noqa: E402

SIZES = {"embed_dim": 6, "hidden_dim": 8}


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


@pytest.fixture(scope="module")
def batch():
    return VisitBatches(make_sequences([3, 1, 7, 5], seed=4), batch_size=4).batch_at(0)


def test_attention_pooling_with_an_empty_visit(batch):
    torch.manual_seed(0)
    model = TorchVisitLstm(VOCAB_SIZE, pooling="attention", **SIZES)
    codes, code_mask, _ = to_padded(batch)
    assert (~code_mask.any(2).numpy() & batch.visit_mask).any()
    expected = mapping.weight(model.pool(model.embedding(codes), code_mask))
    embedded = mapping.weight(model.embedding.weight)[batch.codes]
    pooling = VisitPooling("attention")
    pooled, _ = pooling.apply({"params": mapping.attention(model)}, embedded, batch.code_visits, expected.shape[1])
    assert_close(pooled, expected)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_lstm_with_variable_lengths(num_layers, bidirectional):
    torch.manual_seed(1)
    module = torch.nn.LSTM(6, 8, num_layers, batch_first=True, bidirectional=bidirectional)
    inputs, lengths = torch.randn(4, 7, 6), torch.tensor([3, 1, 7, 5])
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    outputs, (last, _) = module(packed)
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
    last = torch.cat([last[-2], last[-1]], -1) if bidirectional else last[-1]
    ours = Lstm(8, num_layers, bidirectional=bidirectional)
    mask = np.arange(7) < lengths.numpy()[:, None]
    result = jax.jit(ours.apply)({"params": mapping.lstm(module)}, inputs.numpy(), mask)
    assert_close(result, (mapping.weight(outputs), mapping.weight(last)))


@pytest.mark.parametrize(
    "options",
    [*({"pooling": pooling} for pooling in POOLINGS), {"pooling": "attention", "bidirectional": True, "num_layers": 2}],
)
def test_whole_model_and_its_gradients(batch, options):
    torch.manual_seed(2)
    theirs = TorchVisitLstm(VOCAB_SIZE, **SIZES, **options)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("bias_hh" not in name)  # its gradient is that of bias_ih again
    logits, _ = theirs(*to_padded(batch))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.labels), reduction="sum")
    loss.backward()
    model = VisitLstm(VOCAB_SIZE, dropout_rate=0.0, **SIZES, **options)
    objective = make_supervised_objective(model, "binary")

    @jax.jit
    def run(params):
        value = jax.value_and_grad(lambda p: objective(p, batch, None, False).loss_sum)(params)
        return model.apply({"params": params}, batch).logits, *value

    expected = mapping.weight(logits), mapping.weight(loss), mapping.visit_lstm(theirs, mapping.gradient)
    assert_close(run(mapping.visit_lstm(theirs)), expected)
