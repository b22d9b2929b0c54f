"""The visit LSTM in torch, to compare with: masked pooling over padded codes (or EmbeddingBag), packed `nn.LSTM`."""

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ehrjax.types import VisitBatch


class TorchVisitLstm(nn.Module):
    """Embedding, masked pooling over codes, packed LSTM, dropout and linear head, in places and sizes as in ehrjax."""

    def __init__(
        self,
        vocab_size,
        *,
        embed_dim,
        hidden_dim,
        num_layers=1,
        num_outputs=1,
        dropout_rate=0.0,
        pooling="mean",
        bidirectional=False,
    ):
        super().__init__()
        self.pooling = pooling
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        if pooling == "attention":
            self.attention_hidden = nn.Linear(embed_dim, embed_dim // 2)
            self.attention_score = nn.Linear(embed_dim // 2, 1)
        self.dropout = nn.Dropout(dropout_rate)
        between = dropout_rate if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            embed_dim, hidden_dim, num_layers, batch_first=True, dropout=between, bidirectional=bidirectional
        )
        self.head = nn.Linear(hidden_dim * (2 if bidirectional else 1), num_outputs)

    def forward(self, codes, code_mask, lengths):
        """Patient logits [B K] and outputs after each visit [B V H] (zeros past the end)."""
        return self.recur(self.pool(self.embedding(codes), code_mask), lengths)

    def forward_bags(self, codes, offsets, lengths):
        """The same from all codes in one row and the start of each visit's: mean, sum and max only."""
        bags = nn.functional.embedding_bag(codes, self.embedding.weight, offsets, mode=self.pooling)
        return self.recur(bags.reshape(len(lengths), -1, bags.shape[-1]), lengths)

    def recur(self, visits, lengths):
        """Packed LSTM over visit vectors [B V D], then the head on the state after each row's last visit."""
        packed = pack_padded_sequence(self.dropout(visits), lengths, batch_first=True, enforce_sorted=False)
        outputs, (last, _) = self.lstm(packed)
        outputs, _ = pad_packed_sequence(outputs, batch_first=True)
        last = torch.cat([last[-2], last[-1]], -1) if self.lstm.bidirectional else last[-1]
        return self.head(self.dropout(last)), outputs

    def pool(self, embedded, code_mask):
        """Visit vectors [B V D] from embedded codes [B V C D]; zeros for a visit without codes."""
        mask = code_mask[..., None]
        if self.pooling == "sum":
            return (embedded * mask).sum(2)
        if self.pooling == "max":
            highest = embedded.masked_fill(~mask, -torch.inf).max(2).values
            return torch.where(mask.any(2), highest, 0.0)
        if self.pooling == "attention":
            scores = self.attention_score(torch.tanh(self.attention_hidden(embedded)))
            weights = scores.masked_fill(~mask, -1e30).softmax(2) * mask
            return (embedded * weights).sum(2)
        return (embedded * mask).sum(2) / mask.sum(2).clamp(min=1)


def to_padded(batch: VisitBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [B V C], their mask and the number of visits of each row, as torch code usually has them."""
    codes, counts = _codes_a_visit(batch)
    code_mask = np.arange(max(counts.max(), 1)) < counts[..., None]
    padded = np.zeros(code_mask.shape, np.int64)
    padded[code_mask] = codes  # both run by row, then visit, then position
    return torch.from_numpy(padded), torch.from_numpy(code_mask), torch.from_numpy(batch.visit_mask.sum(1))


def to_bags(batch: VisitBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All codes [N], the start of each of the B * V visits in them, and the number of visits of each row."""
    codes, counts = _codes_a_visit(batch)
    offsets = np.concatenate([[0], np.cumsum(counts.reshape(-1))[:-1]])
    return torch.from_numpy(codes), torch.from_numpy(offsets), torch.from_numpy(batch.visit_mask.sum(1))


def _codes_a_visit(batch: VisitBatch) -> tuple[np.ndarray, np.ndarray]:
    """The real codes in one row, and how many each visit [B V] has."""
    rows, slots = np.nonzero(batch.code_visits >= 0)
    counts = np.zeros(batch.visit_mask.shape, np.int64)
    np.add.at(counts, (rows, batch.code_visits[rows, slots]), 1)
    return batch.codes[rows, slots].astype(np.int64), counts
