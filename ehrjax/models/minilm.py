"""MiniLM (Wang et al., 2020, arXiv:2002.10957) as all-MiniLM-L6-v2 uses it: a text to a unit vector of 384 numbers.

A BERT encoder (Devlin et al., 2019, arXiv:1810.04805): post-LN blocks, learned positions, GELU by erf. The vector is
the mean over the text's word pieces, [CLS] and [SEP] included, at length 1 (Reimers & Gurevych, 2019,
arXiv:1908.10084). The module takes packed rows; `ehrjax.models.minilm_texts` goes from texts to vectors with the
published weights.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ehrjax.nn.transformer import Block
from ehrjax.types import Outputs

EPSILON = 1e-12  # of LayerNorm, as in BERT
exact_gelu = partial(jax.nn.gelu, approximate=False)


class MiniLm(nn.Module):
    """Vectors of the texts in packed rows as `pooled` [B S D], and of their word pieces as `tokens` [B T D].

    Differs from BERT: no token types, since one text is all of type 0 (the reader of weights adds that type's vector to
    those of the positions), no pooler, no dropout. Attributes are the published sizes.
    """

    vocab_size: int = 30522
    width: int = 384
    num_layers: int = 6
    num_heads: int = 12
    ffn_dim: int = 1536
    max_tokens: int = 512

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"], num_texts: int
    ) -> Outputs:
        """`segment_ids` count a row's texts from 1 to at most `num_texts` = S, 0 is padding.

        `pooled` of a text that the row does not have is zeros.
        """
        table = partial(nn.Embed, features=self.width, embedding_init=nn.initializers.normal(0.02))
        states = table(self.vocab_size, name="embedding")(tokens)
        states = states + table(self.max_tokens, name="position_embedding")(positions)
        states = nn.LayerNorm(EPSILON, name="embedding_norm")(states)
        block = partial(Block, self.num_heads, self.ffn_dim, post_norm=True, epsilon=EPSILON, activation=exact_gelu)
        # Not stacked for a scan as in `Encoder`: on CPU its slices are copied, a seventh of the time of a small batch.
        for number in range(self.num_layers):
            states = block(name=f"layer_{number}")(states, segment_ids, causal=False, train=False)
        return Outputs(tokens=states, pooled=_unit_means(states, segment_ids, num_texts))


def _unit_means(states: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], num_texts: int) -> Float[Array, "B S D"]:
    """Mean of each text's states, at length 1. Its sum would do: the length goes anyway."""
    members = segment_ids[:, None, :] == jnp.arange(1, num_texts + 1)[None, :, None]
    sums = members.astype(states.dtype) @ states
    return sums / jnp.maximum(jnp.linalg.norm(sums, axis=-1, keepdims=True), 1e-12)
