"""Every path of attention against the dense one, and the dense one against a loop over segments."""

import jax
import numpy as np
import pytest

from ehrjax.nn import attention
from ehrjax.nn.attention import attend, choose_path

# Row 0: segments of 5, 1, 9 and 4 tokens and 2 of padding; row 1: nothing but padding; row 2: one segment.
SEGMENTS = np.array([[1] * 5 + [2] + [3] * 9 + [4] * 4 + [0] * 2, [0] * 21, [1] * 21])
RNG = np.random.default_rng(0)
Q, K, V = RNG.normal(size=(3, 3, 21, 2, 16)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 8)


def run(path, causal, q=Q, k=K, v=V):
    """Outputs and gradients of their squares."""

    def loss(q, k, v):
        if path == "pallas":
            outputs = attention._pallas(q, k, v, SEGMENTS, causal, interpret=True)
        else:
            outputs = attend(q, k, v, SEGMENTS, causal=causal, path=path)
        return (outputs**2).sum(), outputs

    gradients, outputs = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return outputs, gradients


@pytest.mark.parametrize("causal", [False, True])
def test_dense_equals_a_loop_over_segments(causal):
    outputs, _ = run("dense", causal)
    for row, start, stop in ((0, 0, 5), (0, 5, 6), (0, 6, 15), (0, 15, 19), (0, 19, 21), (1, 0, 21), (2, 0, 21)):
        for head in range(2):
            q, k, v = (x[row, start:stop, head] for x in (Q, K, V))
            scores = np.exp(q @ k.T / 4.0)
            scores = np.tril(scores) if causal else scores
            expected = scores @ v / scores.sum(-1, keepdims=True)
            np.testing.assert_allclose(outputs[row, start:stop, head], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("path", ["chunked", "pallas"])
def test_paths_equal_dense_with_gradients(path, causal):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), run(path, causal), run("dense", causal)
    )


@pytest.mark.parametrize("path", ["dense", "chunked"])
def test_large_scores_stay_finite_and_bf16_is_near(path):
    outputs, gradients = run(path, True, 100 * Q, 100 * K)
    assert np.isfinite(outputs).all() and all(np.isfinite(g).all() for g in gradients)
    expected, _ = run(path, True)
    half, _ = run(path, True, *(x.astype(jax.numpy.bfloat16) for x in (Q, K, V)))
    assert half.dtype == jax.numpy.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), expected, atol=0.05)


def test_kernels_of_a_gpu_are_chosen_on_a_gpu_only():
    assert choose_path("cpu", 64, 32, jax.numpy.bfloat16) == "dense"
    assert choose_path("cpu", 4096, 32, jax.numpy.bfloat16) == "chunked"
    assert choose_path("gpu", 512, 64, jax.numpy.bfloat16) in ("pallas", "cudnn")
    assert choose_path("gpu", 512, 64, jax.numpy.float32) in ("dense", "chunked")
    with pytest.raises(ValueError, match="path='flash' is not known"):
        attend(Q, K, V, SEGMENTS, causal=True, path="flash")
