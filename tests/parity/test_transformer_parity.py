"""Same weights, same numbers as torch's `nn.TransformerEncoder` on padded and packed rows, with gradients."""

import jax
import numpy as np
import pytest

from ehrjax.models.behrt import Behrt
from ehrjax.nn.transformer import Encoder
from tests.parity import mapping

torch = pytest.importorskip("torch", reason="torch is not installed: it is only the yardstick of the parity tests")
from experiments.benchmarks.behrt_throughput import lognormal_lengths, make_sequences, one_a_row, packed_batches  # noqa: E402
from experiments.benchmarks.torch_behrt import TorchBehrt, to_packed, to_padded  # noqa: E402

LENGTHS = np.array([9, 4, 1, 7])
MASK = np.arange(9) < LENGTHS[:, None]
PADDED = MASK.astype(np.int32)
VISITS = PADDED * (1 + np.arange(9, dtype=np.int32) // 3)


def make_torch(width=16, num_layers=3):
    """Pre-LN, GELU by the tanh formula as ours, every parameter random (torch starts biases at 0)."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        width,
        4,
        24,
        dropout=0.0,
        activation=lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        batch_first=True,
        norm_first=True,
    )
    module = torch.nn.TransformerEncoder(layer, num_layers, torch.nn.LayerNorm(width), enable_nested_tensor=False)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return module


@pytest.mark.parametrize("segments", [(PADDED,), (VISITS, PADDED)], ids=["one", "groups"])
@pytest.mark.parametrize("causal", [False, True])
def test_encoder_and_its_gradients(causal, segments):
    """Groups of heads are torch's mask by head."""
    module = make_torch()
    inputs = torch.randn(4, 9, 16, requires_grad=True)
    sees = np.stack([ids[:, :, None] == ids[:, None] for ids in np.repeat(segments, 4 // len(segments), axis=0)], 1)
    sees = np.tril(sees) if causal else sees
    outputs = module(inputs, mask=torch.from_numpy(~sees.reshape(16, 9, 9)))
    (outputs[torch.from_numpy(MASK)] ** 3).sum().backward()
    ours = Encoder(num_layers=3, num_heads=4, ffn_dim=24)

    @jax.jit
    def run(params, inputs):
        def loss(params, inputs):
            outputs = ours.apply({"params": params}, inputs, segments, causal=causal)
            return (outputs**3 * MASK[..., None]).sum(), outputs

        gradients, outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)
        return outputs, gradients

    result, gradients = run(mapping.encoder(module), mapping.weight(inputs))
    np.testing.assert_allclose(result[MASK], mapping.weight(outputs)[MASK], rtol=1e-4, atol=1e-4)
    expected = mapping.encoder(module, mapping.gradient), mapping.gradient(inputs)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), gradients, expected)


def test_the_models_of_the_benchmark_are_the_same_model():
    torch.manual_seed(1)
    sizes = {"embed_dim": 8, "hidden_dim": 16, "num_layers": 2, "num_heads": 2, "max_tokens": 30}
    theirs = TorchBehrt(1000, **sizes).eval()
    ours = Behrt(1000, **sizes, causal=False, position="learned", visit_heads=False)
    sequences = make_sequences(lognormal_lengths(12, 30))
    padded, packed = one_a_row(sequences, 30, 4, 1)[0], packed_batches(sequences, 30, 2, 1)[0]
    assert packed.segment_ids.max() > 1 and (packed.segment_ids > 0).mean() > (padded.segment_ids > 0).mean()
    inputs, is_padding, _ = to_padded(padded)
    expected = mapping.weight(theirs.encoder(theirs.embed(inputs), src_key_padding_mask=is_padding))
    shown = padded._replace(tokens=inputs[0].numpy())
    assert (shown.tokens != padded.tokens).any()
    params = {"params": mapping.behrt(theirs)}
    real = padded.segment_ids > 0
    np.testing.assert_allclose(ours.apply(params, shown).tokens[real], expected[real], rtol=1e-4, atol=1e-4)
    # Torch's own packed loss of the same patients, unpacked by hand, is its padded loss.
    alone = one_a_row(sequences, 30, 1, 3)
    losses = [theirs.loss_padded(*to_padded(batch)).item() for batch in alone]
    again = [theirs.loss_packed(*to_packed(batch)).item() for batch in alone]
    np.testing.assert_allclose(again, losses, rtol=1e-4)
    inputs, segment_ids, positions, targets = to_packed(packed)
    assert len(positions) == len(targets) == packed.masked.mask.sum()
    assert np.isfinite(theirs.loss_packed(inputs, segment_ids, positions, targets).item())
