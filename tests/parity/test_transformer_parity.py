"""Same weights, same numbers as torch's `nn.TransformerEncoder` on padded rows, with gradients."""

import jax
import numpy as np
import pytest

from ehrjax.nn.transformer import Encoder
from tests.parity import mapping

torch = pytest.importorskip("torch", reason="torch is not installed: it is only the yardstick of the parity tests")

LENGTHS = np.array([9, 4, 1, 7])
MASK = np.arange(9) < LENGTHS[:, None]


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


@pytest.mark.parametrize("causal", [False, True])
def test_encoder_and_its_gradients(causal):
    module = make_torch()
    inputs = torch.randn(4, 9, 16, requires_grad=True)
    future = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1) if causal else None
    outputs = module(inputs, mask=future, src_key_padding_mask=torch.from_numpy(~MASK))
    (outputs[torch.from_numpy(MASK)] ** 3).sum().backward()
    ours = Encoder(num_layers=3, num_heads=4, ffn_dim=24)

    @jax.jit
    def run(params, inputs):
        def loss(params, inputs):
            outputs = ours.apply({"params": params}, inputs, MASK.astype(np.int32), causal=causal)
            return (outputs**3 * MASK[..., None]).sum(), outputs

        gradients, outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)
        return outputs, gradients

    result, gradients = run(mapping.encoder(module), mapping.weight(inputs))
    np.testing.assert_allclose(result[MASK], mapping.weight(outputs)[MASK], rtol=1e-4, atol=1e-4)
    expected = mapping.encoder(module, mapping.gradient), mapping.gradient(inputs)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), gradients, expected)
