"""BEHRT in torch, to compare with: `nn.TransformerEncoder` on padded rows, and packed rows with masked-only logits."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ehrjax.types import TokenBatch


class TorchBehrt(nn.Module):
    """Embeddings, pre-LN `nn.TransformerEncoder` and masked-code head, in places and sizes as in ehrjax.

    Dropout on attention probabilities is off, as ours has none (with it torch would leave its fused attention), unless
    `stock`: then the layers are as torch makes them.
    """

    def __init__(
        self,
        vocab_size,
        *,
        embed_dim,
        hidden_dim,
        num_layers,
        num_heads,
        max_tokens,
        dropout_rate=0.1,
        num_ages=120,
        max_visit_ids=128,
        stock=False,
    ):
        super().__init__()
        self.num_heads = num_heads
        rows = (vocab_size, num_ages, max_visit_ids, max_tokens)
        self.tables = nn.ModuleList(nn.Embedding(count, embed_dim) for count in rows)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)
        self.norm, self.dropout = nn.LayerNorm(embed_dim), nn.Dropout(dropout_rate)
        self.project = nn.Linear(embed_dim, hidden_dim)
        layer = nn.TransformerEncoderLayer(
            hidden_dim,
            num_heads,
            4 * hidden_dim,
            dropout_rate,
            activation="gelu" if stock else _gelu,
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(hidden_dim), enable_nested_tensor=False)
        for layer in () if stock else self.encoder.layers:
            layer.self_attn.dropout = 0.0
            layer.dropout = nn.Identity()  # ours has none between the two products of the feed-forward either
        self.head = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), nn.GELU(approximate="tanh"), nn.LayerNorm(hidden_dim)
        )
        self.decoder = nn.Linear(hidden_dim, vocab_size)

    def embed(self, inputs):
        """States [B T H] before the encoder, from the four ids [B T] of each token."""
        total = sum(table(ids) for table, ids in zip(self.tables, inputs, strict=True))
        return self.project(self.dropout(self.norm(total)))

    def loss_padded(self, inputs, is_padding, targets):
        """Mean cross-entropy from logits of every position; targets [B T] are -100 where nothing is asked."""
        states = self.encoder(self.embed(inputs), src_key_padding_mask=is_padding)
        logits = self.decoder(self.head(states))
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100)

    def loss_packed(self, inputs, segment_ids, positions, targets):
        """The same from packed rows, with logits at the flat `positions` of the masked tokens alone."""
        mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
        states = self.embed(inputs)
        for layer in self.encoder.layers:
            states = states + layer.dropout1(self._attend(layer.self_attn, layer.norm1(states), mask))
            inner = _gelu(layer.linear1(layer.norm2(states)))
            states = states + layer.dropout2(layer.linear2(inner))
        states = self.encoder.norm(states).reshape(-1, states.shape[-1])[positions]
        return F.cross_entropy(self.decoder(self.head(states)), targets)

    def _attend(self, attention, states, mask):
        batch, tokens, width = states.shape
        projected = F.linear(states, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = projected.reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        outputs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attention.out_proj(outputs.transpose(1, 2).reshape(batch, tokens, width))


def to_padded(batch: TokenBatch, device="cpu"):
    """Arguments of `loss_padded`: one sequence a row."""
    targets = np.full(batch.tokens.shape, -100)
    targets.reshape(-1)[_flat_positions(batch)] = _targets(batch)
    return _to_torch((_inputs(batch), batch.segment_ids == 0, targets), device)


def to_packed(batch: TokenBatch, device="cpu"):
    """Arguments of `loss_packed`."""
    return _to_torch((_inputs(batch), batch.segment_ids, _flat_positions(batch), _targets(batch)), device)


def _inputs(batch):
    tokens = batch.tokens.copy()
    tokens.reshape(-1)[_flat_positions(batch)] = batch.masked.shown[batch.masked.mask]
    return tokens, batch.ages, batch.visit_ids, batch.positions


def _flat_positions(batch):
    columns = batch.masked.positions + np.arange(len(batch.tokens))[:, None] * batch.tokens.shape[1]
    return columns[batch.masked.mask]


def _targets(batch):
    return batch.tokens.reshape(-1)[_flat_positions(batch)]


def _to_torch(tree, device):
    if isinstance(tree, tuple):
        return tuple(_to_torch(leaf, device) for leaf in tree)
    return torch.from_numpy(np.asarray(tree, bool if tree.dtype == bool else np.int64)).to(device)


def _gelu(inputs):
    return F.gelu(inputs, approximate="tanh")
