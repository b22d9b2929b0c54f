"""A tiny model of token batches, and single patients of a data set, for the tests of pre-training."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ehrjax.data.timeline import expand
from ehrjax.models.behrt import Behrt
from ehrjax.models.hierarchical import Hierarchical
from ehrjax.models.visit_lstm import VisitLstm
from ehrjax.nn.sequence_pooling import gather_visits, pool_sequences
from ehrjax.types import Outputs
from tests.sequences import VOCAB_SIZE


class Bag(nn.Module):
    """A token's state is its own embedding beside the mean over its sequence (or what came so far, if causal)."""

    vocab_size: int = VOCAB_SIZE
    width: int = 5
    causal: bool = True
    pooling: str = "last"

    @nn.compact
    def __call__(self, batch, *, train=False, causal=None):
        embedded = nn.Embed(self.vocab_size, self.width, name="embedding")(batch.tokens)
        segments, columns = batch.segment_ids, np.arange(batch.tokens.shape[1])
        sees = segments[:, :, None] == segments[:, None, :]
        if self.causal if causal is None else causal:
            sees &= (columns[:, None] >= columns)[None]
        context = jnp.einsum("bts,bsd->btd", sees / sees.sum(-1, keepdims=True), embedded)
        tokens = nn.tanh(nn.Dense(self.width + 1, name="mix")(jnp.concatenate([embedded, context], -1)))
        hidden = gather_visits(tokens, batch)
        return Outputs(tokens=tokens, hidden=hidden, pooled=pool_sequences(self.pooling, tokens, hidden, batch))


def make_encoder(name, **options):
    """One of "bag", "behrt", "hierarchical" and "lstm", as small as can be."""
    if name == "bag":
        return Bag(**options)
    if name == "lstm":
        return VisitLstm(VOCAB_SIZE, **{"embed_dim": 4, "hidden_dim": 6, "num_outputs": 0, **options})
    sizes = {"embed_dim": 4, "hidden_dim": 8, "num_heads": 2}
    if name == "behrt":
        sizes |= {"num_layers": 1, "visit_parity": True, "gap": True}
    return {"behrt": Behrt, "hierarchical": Hierarchical}[name](VOCAB_SIZE, **{**sizes, **options})


def first_visits(sequences, visits_each):
    """The sequences with only the first so many visits of each example; an example of 0 is left out."""
    examples = np.flatnonzero(visits_each)
    counts = np.asarray(visits_each)[examples]
    visits, _ = expand(sequences.example_offsets[examples], counts)
    codes_each = np.diff(sequences.visit_offsets)[visits]
    codes, _ = expand(sequences.visit_offsets[visits], codes_each)
    return sequences._replace(
        codes=sequences.codes[codes],
        visit_offsets=np.append(0, np.cumsum(codes_each)),
        example_offsets=np.append(0, np.cumsum(counts)),
        ages=sequences.ages[visits],
        gap_days=sequences.gap_days[visits],
        **{name: getattr(sequences, name)[examples] for name in ("subject_ids", "times", "labels", "label_mask")},
    )


@partial(jax.jit, static_argnums=0)
def loss_and_grads(objective, params, batch):
    """The output of an objective without dropout, and the gradient of its loss sum."""

    def loss(params):
        output = objective(params, batch, None, False)
        return output.loss_sum, output

    grads, output = jax.grad(loss, has_aux=True)(params)
    return output, grads


def fit(objective, params, batch, *, steps, rate=0.03):
    """Parameters after Adam on the mean loss of one batch, and the output of the objective there."""
    tx = optax.adam(rate)

    @jax.jit
    def run(params):
        def step(state, number):
            params, opt_state = state

            def mean_loss(params):
                output = objective(params, batch, jax.random.key(number), True)
                return output.loss_sum / output.weight

            updates, opt_state = tx.update(jax.grad(mean_loss)(params), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[0][0]

    params = run(params)
    return params, loss_and_grads(objective, params, batch)[0]


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)
