"""Vocabulary: ids, counts, back-off, value bins, and that only train patients count."""

import numpy as np
import pytest

from ehrjax.data.vocab import SPECIAL_TOKENS, UNK, Vocabulary, fit_vocabulary
from tests.data.helpers import make_store

DAY = "2020-01-{:02d}T08:00"


def events_of(subject, *codes, values=None):
    values = values or [None] * len(codes)
    pairs = zip(codes, values, strict=True)
    return [(subject, DAY.format(1 + i % 28), code, value, None) for i, (code, value) in enumerate(pairs)]


def fit(tmp_path, events, subjects=(1,), **settings):
    store = make_store(tmp_path, events)
    return store, fit_vocabulary(store, np.array(subjects), **settings)


def test_no_train_patient_with_events_is_refused(tmp_path):
    store = make_store(tmp_path, events_of(1, "A"))
    with pytest.raises(ValueError, match="none of the 1 train patients has an event"):
        fit_vocabulary(store, np.array([99]))


@pytest.mark.parametrize("settings", [{"min_count": 0}, {"max_size": 5}, {"value_bins": -1}])
def test_settings_out_of_range_are_refused(tmp_path, settings):
    store = make_store(tmp_path, events_of(1, "A"))
    with pytest.raises(ValueError, match="needs min_count >= 1"):
        fit_vocabulary(store, np.array([1]), **settings)


def test_patient_with_only_static_codes_gives_tokens(tmp_path):
    _, vocab = fit(tmp_path, [(1, None, "GENDER//F", None, None)], min_count=1)
    assert vocab.tokens == (*SPECIAL_TOKENS, "GENDER//F")


def test_tokens_come_by_frequency_then_name(tmp_path):
    _, vocab = fit(tmp_path, events_of(1, "B", "C", "A", "C", "B", "A", "C"), min_count=1)
    assert vocab.tokens == (*SPECIAL_TOKENS, "C", "A", "B")


def test_max_size_keeps_the_most_frequent(tmp_path):
    _, vocab = fit(tmp_path, events_of(1, "B", "C", "C"), min_count=1, max_size=6)
    assert vocab.tokens == (*SPECIAL_TOKENS, "C")


def test_other_patients_change_nothing(tmp_path):
    train = events_of(1, *"AABBB", values=[1.0, 2.0, 3.0, 4.0, None])
    one = fit(tmp_path / "a", train + events_of(2, "A", "Z", values=[50.0, 1.0]), min_count=1, value_bins=2)[1]
    other = fit(tmp_path / "b", train + events_of(2, *"ZZZZB", values=[9.0] * 5), min_count=1, value_bins=2)[1]
    assert one == other
    assert one.content_hash == other.content_hash


def test_train_patient_does_change_it(tmp_path):
    one = fit(tmp_path / "a", events_of(1, "A", "A"), min_count=1)[1]
    other = fit(tmp_path / "b", events_of(1, "A", "Z"), min_count=1)[1]
    assert one.content_hash != other.content_hash


def test_rare_codes_hand_their_counts_up(tmp_path):
    codes = ["LAB//LOINC//1"] * 3 + ["LAB//LOINC//2", "LAB//LOINC//3", "DX//ICD//7", "X"]
    store, vocab = fit(tmp_path, events_of(1, *codes), min_count=2)
    assert vocab.tokens == (*SPECIAL_TOKENS, "LAB//LOINC//1", "LAB//LOINC")
    tokens = dict(zip(store.codes, vocab.encode_table(store.codes).tokens[:, 0], strict=True))
    assert tokens["LAB//LOINC//2"] == vocab.index["LAB//LOINC"]
    assert tokens["DX//ICD//7"] == tokens["X"] == UNK


def test_unseen_code_backs_off_to_the_nearest_parent():
    vocab = Vocabulary((*SPECIAL_TOKENS, "LAB", "LAB//LOINC"))
    assert vocab.token_id("LAB//LOINC//9//text") == vocab.index["LAB//LOINC"]
    assert vocab.token_id("LAB//OTHER//9") == vocab.index["LAB"]
    assert vocab.token_id("DRUG//9") == UNK


def test_code_named_like_a_special_token_is_unknown(tmp_path):
    store, vocab = fit(tmp_path, events_of(1, "[PAD]", "[PAD]", "A"), min_count=1)
    assert vocab.tokens == (*SPECIAL_TOKENS, "A")
    assert vocab.encode_table(store.codes).tokens[list(store.codes).index("[PAD]"), 0] == UNK


def test_values_are_cut_at_train_quantiles(tmp_path):
    values = [float(v) for v in range(1, 9)]
    store, vocab = fit(tmp_path, events_of(1, *"LLLLLLLL", values=values), min_count=1, value_bins=4)
    assert vocab.edges == {"L": (2.75, 4.5, 6.25)}
    table = vocab.encode_table(store.codes)
    tokens = table.encode(np.zeros(6, np.int32), np.array([-9, 2.75, 2.76, 6.25, 99, np.nan], np.float32))
    assert [vocab.tokens[t] for t in tokens] == ["L//Q1", "L//Q1", "L//Q2", "L//Q3", "L//Q4", "L"]
    assert tokens.dtype == np.int32


def test_equal_quantiles_are_merged(tmp_path):
    _, vocab = fit(tmp_path, events_of(1, *"LLLLLLLL", values=[0.0] * 6 + [1.0, 2.0]), min_count=1, value_bins=4)
    assert vocab.edges == {"L": (0.0, 0.25)}
    assert {"L//Q1", "L//Q2", "L//Q3"} <= set(vocab.tokens) and "L//Q4" not in vocab.tokens


@pytest.mark.parametrize("values", [[5.0] * 8, [1.0, 2.0, 3.0] + [None] * 5])
def test_constant_or_few_values_are_not_binned(tmp_path, values):
    _, vocab = fit(tmp_path, events_of(1, *"LLLLLLLL", values=values), min_count=1, value_bins=4)
    assert vocab.edges == {}
    assert vocab.tokens[5:] == ("L",)


def test_bins_and_unbinned_codes_in_one_table(tmp_path):
    events = events_of(1, *"LLLLM", values=[1.0, 2.0, 3.0, 4.0, None]) + events_of(2, "NEW", values=[1.0])
    store, vocab = fit(tmp_path, events, min_count=1, value_bins=2)
    table = vocab.encode_table(store.codes)
    ids = np.array([list(store.codes).index(code) for code in ("L", "M", "NEW")], np.int32)
    tokens = table.encode(ids, np.array([1.5, 1.5, np.inf], np.float32))
    assert tokens.tolist() == [vocab.index["L//Q1"], vocab.index["M"], UNK]


def test_bins_beyond_max_size_fall_back_to_the_plain_code(tmp_path):
    events = events_of(1, *"LLLLLLL", values=[1.0, 2.0, 3.0, 4.0, None, None, None])
    store, vocab = fit(tmp_path, events, min_count=1, value_bins=2, max_size=6)
    assert vocab.tokens == (*SPECIAL_TOKENS, "L")
    assert vocab.encode_table(store.codes).encode(np.zeros(1, np.int32), np.ones(1, np.float32)).tolist() == [5]


def test_saved_vocabulary_comes_back(tmp_path):
    _, vocab = fit(tmp_path, events_of(1, *"LLLLA", values=[1.0, 2.0, 3.0, 4.1, None]), min_count=1, value_bins=2)
    vocab.save(tmp_path / "vocab.json")
    loaded = Vocabulary.load(tmp_path / "vocab.json")
    assert loaded == vocab
    assert loaded.content_hash == vocab.content_hash


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 9, "tokens": [], "edges": {}}'])
def test_file_that_is_no_vocabulary_is_named(tmp_path, text):
    (tmp_path / "vocab.json").write_text(text)
    with pytest.raises(ValueError, match=r"vocab\.json"):
        Vocabulary.load(tmp_path / "vocab.json")


def test_edited_file_is_refused(tmp_path):
    Vocabulary((*SPECIAL_TOKENS, "A")).save(tmp_path / "vocab.json")
    text = (tmp_path / "vocab.json").read_text()
    (tmp_path / "vocab.json").write_text(text.replace('"A"', '"B"'))
    with pytest.raises(ValueError, match="does not match its hash"):
        Vocabulary.load(tmp_path / "vocab.json")


@pytest.mark.parametrize("tokens", [("A",), (*SPECIAL_TOKENS, "A", "A")])
def test_wrong_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match="fit"):
        Vocabulary(tokens)
