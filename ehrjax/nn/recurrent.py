"""A masked LSTM as one scan: input projection outside, carry frozen where a step is masked, own gradient.

Equations of Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000); gates lie in the order input,
forget, cell, output, with one bias a gate.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def lstm_scan(
    projected: Float[Array, "V B 4*H"],
    kernel: Float[Array, "H 4*H"],
    mask: Bool[Array, "V B"],
    starts: Bool[Array, "V B"] | None = None,
    reverse: bool = False,
) -> Float[Array, "V B H"]:
    """Hidden state after each step, time first; a masked step hands on the state before it (zeros at the start).

    `projected` is the input times its kernel plus the bias. `reverse` runs from the last step to the first. Where
    `starts`, the step begins from zeros, as the first of another patient in the same row does.
    The gradient is written out (reverse mode only): the transpose of a scan would add a [H 4H] matrix at every step,
    where one matrix product after the backward scan does.
    """
    return _lstm_forward(projected, kernel, mask, starts, reverse)[0]


def _lstm_forward(projected, kernel, mask, starts, reverse):
    def step(carry, inputs):
        projected_t, mask_t, starts_t = inputs
        hidden, cell = _reset(carry, starts_t)
        gates = _activate(projected_t + hidden @ kernel)
        gate_in, gate_forget, candidate, gate_out = gates
        new_cell = gate_forget * cell + gate_in * candidate
        keep = mask_t[:, None]
        cell = jnp.where(keep, new_cell, cell)
        hidden = jnp.where(keep, gate_out * jnp.tanh(new_cell), hidden)
        # The gates stay four arrays: XLA's CPU code for joining them costs more than the gates themselves.
        return (hidden, cell), (hidden, cell, gates)

    start = jnp.zeros((projected.shape[1], kernel.shape[0]), projected.dtype)
    _, (hiddens, cells, gates) = jax.lax.scan(step, (start, start), (projected, mask, starts), reverse=reverse)
    return hiddens, (hiddens, cells, gates, kernel, mask, starts)


def _lstm_backward(reverse, saved, d_hiddens):
    hiddens, cells, gates, kernel, mask, starts = saved
    transposed = kernel.T

    def step(carry, inputs):
        d_hidden, d_cell = carry
        d_output, cell, previous_cell, (gate_in, gate_forget, candidate, gate_out), mask_t, starts_t = inputs
        keep = mask_t[:, None]
        d_hidden = d_hidden + d_output
        d_new = jnp.where(keep, d_hidden, 0.0)
        tanh_cell = jnp.tanh(cell)
        d_new_cell = jnp.where(keep, d_cell, 0.0) + d_new * gate_out * (1.0 - tanh_cell * tanh_cell)
        d_gates = [
            d_new_cell * candidate * gate_in * (1.0 - gate_in),
            d_new_cell * previous_cell * gate_forget * (1.0 - gate_forget),
            d_new_cell * gate_in * (1.0 - candidate * candidate),
            d_new * tanh_cell * gate_out * (1.0 - gate_out),
        ]
        d_projected = jnp.concatenate(d_gates, axis=-1)
        d_hidden = jnp.where(keep, d_projected @ transposed, d_hidden)
        d_cell = jnp.where(keep, d_new_cell * gate_forget, d_cell)
        return _reset((d_hidden, d_cell), starts_t), d_projected

    start = jnp.zeros_like(hiddens[0])
    inputs = (d_hiddens, cells, _previous(cells, starts, reverse), gates, mask, starts)
    _, d_projected = jax.lax.scan(step, (start, start), inputs, reverse=not reverse)
    width = kernel.shape[0]
    before = _previous(hiddens, starts, reverse)
    d_kernel = before.reshape(-1, width).T @ d_projected.reshape(-1, 4 * width)
    return d_projected, d_kernel, None, None


lstm_scan.defvjp(_lstm_forward, _lstm_backward)


class Lstm(nn.Module):
    """Stacked LSTM with dropout between layers (none after the last), uni- or bidirectional.

    Returns the outputs [B V H] (zeros where `mask` is False) and the last state [B H] of the top layer: the carry after
    the last real step, zeros for a row without one. Bidirectional outputs are 2H wide, forward half first. In rows of
    several patients `segment_ids` numbers the patient of each visit, and no state passes from one to the next.
    """

    hidden_dim: int
    num_layers: int = 1
    dropout_rate: float = 0.0
    bidirectional: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "B V D"],
        mask: Bool[Array, "B V"],
        segment_ids: Int[Array, "B V"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "B V H"], Float[Array, "B H"]]:
        mask = mask.T
        outputs = jnp.swapaxes(inputs, 0, 1)
        directions = ("forward", "backward") if self.bidirectional else ("forward",)
        for layer in range(self.num_layers):
            if layer > 0:
                outputs = nn.Dropout(self.dropout_rate, deterministic=not train)(outputs)
            runs = [self._run(outputs, mask, segment_ids, f"layer_{layer}_{direction}") for direction in directions]
            outputs, last = (jnp.concatenate(parts, axis=-1) for parts in zip(*runs, strict=True))
        return jnp.swapaxes(outputs, 0, 1), last

    def _run(self, inputs, mask, segment_ids, name):
        """One direction of one layer, time first."""
        reverse = name.endswith("backward")
        input_kernel = self.param(f"{name}_input", _glorot_gates, (inputs.shape[-1], 4 * self.hidden_dim))
        hidden_kernel = self.param(f"{name}_hidden", _orthogonal_gates, (self.hidden_dim, 4 * self.hidden_dim))
        bias = self.param(f"{name}_bias", _forget_bias, (4 * self.hidden_dim,))
        starts = None if segment_ids is None else _starts(segment_ids.T, reverse)
        states = lstm_scan(inputs @ input_kernel + bias[None, None], hidden_kernel, mask, starts, reverse)
        # Masked steps carry the state on, so the state of the whole row is the one at the end of the scan.
        return jnp.where(mask[..., None], states, 0.0), states[0 if reverse else -1]


def _activate(preactivations: Float[Array, "B 4*H"]) -> tuple[Float[Array, "B H"], ...]:
    gate_in, gate_forget, candidate, gate_out = jnp.split(preactivations, 4, axis=-1)
    return jax.nn.sigmoid(gate_in), jax.nn.sigmoid(gate_forget), jnp.tanh(candidate), jax.nn.sigmoid(gate_out)


def _previous(states: Float[Array, "V B H"], starts, reverse: bool) -> Float[Array, "V B H"]:
    """State that each step begins from."""
    (before,) = _reset((_shifted(states, reverse),), starts)
    return before


def _starts(segment_ids: Int[Array, "V B"], reverse: bool) -> Bool[Array, "V B"]:
    """Whether a step, in the direction of the scan, is the first of its segment."""
    return segment_ids != _shifted(segment_ids, reverse, fill=-1)


def _shifted(values: Array, reverse: bool, fill: float = 0) -> Array:
    """The values one step earlier in the direction of the scan."""
    edge = jnp.full_like(values[:1], fill)
    return jnp.concatenate([values[1:], edge] if reverse else [edge, values[:-1]])


def _reset(states: tuple[Array, ...], starts: Bool[Array, "*rows"] | None) -> tuple[Array, ...]:
    """Zeros where a patient starts."""
    return states if starts is None else tuple(jnp.where(starts[..., None], 0.0, state) for state in states)


def _glorot_gates(key: Array, shape: tuple[int, int], dtype=jnp.float32) -> Float[Array, "D 4*H"]:
    """Uniform with the bound of one gate's matrix (Glorot & Bengio, 2010), not of the four side by side."""
    bound = jnp.sqrt(6.0 / (shape[0] + shape[1] // 4))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _orthogonal_gates(key: Array, shape: tuple[int, int], dtype=jnp.float32) -> Float[Array, "H 4*H"]:
    """An orthogonal matrix for each gate (Saxe et al., 2014)."""
    width = shape[0]
    gates = [nn.initializers.orthogonal()(k, (width, width), dtype) for k in jax.random.split(key, 4)]
    return jnp.concatenate(gates, axis=-1)


def _forget_bias(key: Array, shape: tuple[int], dtype=jnp.float32) -> Float[Array, "4*H"]:
    """Zeros, and ones for the forget gate so that early gradients reach back (Jozefowicz et al., 2015)."""
    del key
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1.0)
