"""Torch weights to our parameter trees: the one place that knows both layouts.

Every function takes `read`, which turns a torch parameter into an array: `weight` for its value, `gradient` for its
gradient (zeros where torch computed none).
"""

import jax
import numpy as np

LSTM_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def weight(parameter):
    return parameter.detach().numpy()


def gradient(parameter):
    return np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()


def dense(linear, read=weight):
    """`nn.Linear` -> linen Dense."""
    return {"kernel": read(linear.weight).T, "bias": read(linear.bias)}


def lstm(module, read=weight):
    """`nn.LSTM` -> Lstm. Gates lie in the same order; torch has two biases a gate, we have their sum."""
    params = {}
    for layer in range(module.num_layers):
        for direction, suffix in (("forward", ""), ("backward", "_reverse"))[: 1 + module.bidirectional]:
            parts = {part: read(getattr(module, f"{part}_l{layer}{suffix}")) for part in LSTM_PARTS}
            params[f"layer_{layer}_{direction}_input"] = parts["weight_ih"].T
            params[f"layer_{layer}_{direction}_hidden"] = parts["weight_hh"].T
            params[f"layer_{layer}_{direction}_bias"] = parts["bias_ih"] + parts["bias_hh"]
    return params


def attention(model, read=weight):
    """The attention layers of `TorchVisitLstm` -> VisitPooling."""
    return {
        "attention_hidden": dense(model.attention_hidden, read),
        "attention_score": dense(model.attention_score, read),
    }


def visit_lstm(model, read=weight):
    """`TorchVisitLstm` -> VisitLstm."""
    params = {
        "embedding": {"embedding": read(model.embedding.weight)},
        "lstm": lstm(model.lstm, read),
        "head": dense(model.head, read),
    }
    return params | ({"pooling": attention(model, read)} if model.pooling == "attention" else {})


def layer_norm(module, read=weight):
    """`nn.LayerNorm` -> linen LayerNorm."""
    return {"scale": read(module.weight), "bias": read(module.bias)}


def transformer_block(layer, read=weight):
    """`nn.TransformerEncoderLayer` -> Block: queries, keys and values lie in the same order, heads within them too."""
    attention = layer.self_attn
    return {
        "attention_norm": layer_norm(layer.norm1, read),
        "attention": {
            "qkv": {"kernel": read(attention.in_proj_weight).T, "bias": read(attention.in_proj_bias)},
            "out": dense(attention.out_proj, read),
        },
        "ffn_norm": layer_norm(layer.norm2, read),
        "ffn": {"in": dense(layer.linear1, read), "out": dense(layer.linear2, read)},
    }


def encoder(module, read=weight):
    """`nn.TransformerEncoder` with `norm_first` and a last norm -> Encoder; blocks are stacked on axis 0."""
    blocks = [transformer_block(layer, read) for layer in module.layers]
    return {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks), "norm": layer_norm(module.norm, read)}


def behrt(model, read=weight):
    """`TorchBehrt` without its head -> Behrt."""
    names = ("embedding", "age_embedding", "visit_embedding", "position_embedding")
    params = {name: {"embedding": read(table.weight)} for name, table in zip(names, model.tables, strict=True)}
    return params | {
        "embedding_norm": layer_norm(model.norm, read),
        "project": dense(model.project, read),
        "encoder": encoder(model.encoder, read),
    }


def fusion_lstm(model, read=weight):
    """`TorchFusionLstm` -> FusionLstm."""
    dense_layers = {"vitals": model.vitals, "head": model.head}
    dense_layers |= {f"notes_{i}": layer for i, layer in enumerate(model.notes)}
    dense_layers |= {f"fusion_{i}": layer for i, layer in enumerate(model.fusion)}
    params = {name: dense(layer, read) for name, layer in dense_layers.items()}
    return params | {"lstm": lstm(model.lstm, read)} | {f"{name}_absent": read(v) for name, v in model.absent.items()}
