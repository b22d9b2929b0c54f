"""Scores of a pre-trained model on windows of packed rows: each hidden code and each visit once, at its own place."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from ehrjax.data.token_batching import TokenBatches
from ehrjax.data.vocab import fit_vocabulary
from ehrjax.data.windows import cut_windows
from ehrjax.evaluate.next_visit_baselines import next_visit_targets
from ehrjax.models.pretraining import Pretraining
from experiments import pretrain
from experiments.embed import patient_embeddings
from experiments.pretrain import Records, _read_records
from experiments.pretrain_eval import (
    _owners,
    code_numbers,
    score_masked,
    score_next_visits,
    visit_numbers,
)
from tests.data.helpers import make_store
from tests.encoders import make_encoder
from tests.sequences import VOCAB_SIZE, make_sequences, random_params

LENGTHS = [14, 1, 6, 2, 9, 3]  # the longest records take several windows of 16 tokens


def make_records(lengths=LENGTHS, max_tokens=16, seed=0):
    sequences = make_sequences(lengths, num_labels=0, seed=seed)
    hidden = np.random.default_rng(seed).random(len(sequences.codes)) < 0.4
    return Records(sequences, hidden, cut_windows(sequences, max_tokens=max_tokens))


def make_batches(records, max_tokens=16):
    windows = records.windows
    return TokenBatches(
        windows.sequences,
        row_tokens=max_tokens,
        batch_size=3,
        is_fresh=windows.is_fresh,
        vocab_size=VOCAB_SIZE,
        eval_mask=windows.fresh_codes(records.hidden),
    )


@pytest.fixture(scope="module")
def trained():
    records = make_records()
    batches = make_batches(records)
    encoder = make_encoder("behrt", pooling="mean", max_tokens=16)
    model = Pretraining(encoder, VOCAB_SIZE, heads=("mlm", "next_visit"))
    params = random_params(model, next(batches.eval_batches()))["params"]
    return SimpleNamespace(
        model=model, fitted=SimpleNamespace(params=params), loaders={"test": batches}, records={"test": records}
    )


def places(batch, sequences):
    """(row, column) -> number of the code that a naive walk along the rows finds there; and the same of visits."""
    codes, visits = {}, {}
    for row, examples in enumerate(batch.example_ids):
        column, slot = 0, 0
        for example in examples[examples >= 0]:
            column += 1  # [CLS]
            for visit in range(sequences.example_offsets[example], sequences.example_offsets[example + 1]):
                visits[row, slot] = visit
                for code in range(sequences.visit_offsets[visit], sequences.visit_offsets[visit + 1]):
                    codes[row, column] = code
                    column += 1
                column, slot = column + 1, slot + 1  # [SEP]
    return codes, visits


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(7, 40))
@settings(max_examples=40, deadline=None)
def test_numbers_of_codes_and_visits_equal_a_walk_along_the_rows(lengths, max_tokens):
    records = make_records(lengths, max_tokens, seed=len(lengths))
    sequences, seen = records.windows.sequences, []
    for batch in make_batches(records, max_tokens).eval_batches():
        codes, visits = places(batch, sequences)
        found = code_numbers(batch, sequences)
        is_code = batch.code_visits >= 0
        assert sorted(codes) == sorted(zip(*np.nonzero(is_code), strict=True))
        assert {place: found[place] for place in codes} == codes
        np.testing.assert_array_equal(sequences.codes[found[is_code]], batch.tokens[is_code])
        numbers = visit_numbers(batch, sequences)
        assert {place: numbers[place] for place in visits} == visits
        assert (numbers[~batch.visit_mask] == -1).all()
        seen += list(codes.values())
    assert sorted(seen) == list(range(len(sequences.codes)))


def test_each_hidden_code_is_scored_once_at_its_own_place(trained):
    records, batches = trained.records["test"], trained.loaders["test"]
    windows = records.windows
    assert len(windows.code_index) > len(records.sequences.codes), "no code is in two windows"
    ranks, log_probabilities = score_masked(trained, "test")
    assert len(ranks) == len(log_probabilities) == len(_owners(records)) == records.hidden.sum()
    expected = {}
    for batch in batches.eval_batches():
        logits = trained.model.apply({"params": trained.fitted.params}, batch, method="masked_logits")
        codes, _ = places(batch, windows.sequences)
        for row, slot in zip(*np.nonzero(batch.masked.mask), strict=True):
            column = batch.masked.positions[row, slot]
            scores = np.asarray(logits[row, slot], np.float64)[5:]
            target = batch.tokens[row, column] - 5
            number = windows.code_index[codes[row, column]]
            assert number not in expected, "scored twice"
            probability = np.exp(scores[target]) / np.exp(scores).sum()
            expected[number] = (scores > scores[target]).sum(), np.log(probability)
    assert sorted(expected) == np.flatnonzero(records.hidden).tolist()
    for number, rank, log_probability in zip(np.flatnonzero(records.hidden), ranks, log_probabilities, strict=True):
        assert rank == expected[number][0]
        assert log_probability == pytest.approx(expected[number][1], abs=1e-4)


def test_owners_are_the_patients_of_the_hidden_codes():
    records = make_records()
    sequences = records.sequences
    naive = [
        example
        for example in range(len(LENGTHS))
        for visit in range(sequences.example_offsets[example], sequences.example_offsets[example + 1])
        for code in range(sequences.visit_offsets[visit], sequences.visit_offsets[visit + 1])
        if records.hidden[code]
    ]
    assert _owners(records).tolist() == naive


def test_each_next_visit_is_scored_once(trained):
    records = trained.records["test"]
    targets = next_visit_targets(records.sequences, VOCAB_SIZE)
    frequency = np.linspace(0.01, 0.2, VOCAB_SIZE).astype(np.float32)
    pairs = list(score_next_visits(trained, "test", targets, frequency))
    visits = np.concatenate([visits for visits, _ in pairs])
    scores = np.concatenate([scores for _, scores in pairs])
    assert len(visits) == len(np.unique(visits)) == len(scores)
    assert np.isin(targets.visits, visits).all()
    assert np.isin(records.sequences.example_offsets[:-1], visits).sum() == 0, "a first visit has no past"
    assert ((scores >= 0) & (scores <= 1)).all() and np.isfinite(scores).all()


def test_a_visit_that_fills_its_window_takes_the_base_rates(trained):
    sequences = make_sequences([2], num_labels=0, max_codes=3)._replace(
        codes=np.full(28, 7, np.int32), visit_offsets=np.array([0, 14, 28])
    )
    records = Records(sequences, np.zeros(28, bool), cut_windows(sequences, max_tokens=16))
    assert len(records.windows.example_index) == 2
    alone = SimpleNamespace(
        model=trained.model, fitted=trained.fitted, loaders={"test": make_batches(records)}, records={"test": records}
    )
    frequency = np.linspace(0.01, 0.2, VOCAB_SIZE).astype(np.float32)
    ((visits, scores),) = (
        pair
        for pair in score_next_visits(alone, "test", next_visit_targets(sequences, VOCAB_SIZE), frequency)
        if len(pair[0])
    )
    assert visits.tolist() == [1]
    np.testing.assert_array_equal(scores[0], frequency)


def test_a_patient_is_the_mean_over_its_windows_of_the_mean_state_of_their_codes(trained):
    records = trained.records["test"]
    vectors = patient_embeddings(trained, "test").vectors
    of_windows = {patient: [] for patient in range(len(vectors))}
    params = {"params": trained.fitted.params["encoder"]}
    for batch in trained.loaders["test"].eval_batches():
        states = jax.device_get(trained.model.encoder.apply(params, batch, causal=False).tokens)
        for row, slot in zip(*np.nonzero(batch.example_ids >= 0), strict=True):
            is_own_code = (batch.segment_ids[row] == slot + 1) & (batch.code_visits[row] >= 0)
            patient = records.windows.example_index[batch.example_ids[row, slot]]
            of_windows[patient].append(states[row, is_own_code].mean(0))
    assert max(map(len, of_windows.values())) > 1
    expected = np.stack([np.mean(states, 0) for states in of_windows.values()])
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)


def test_codes_that_no_row_can_show_are_not_asked_for(tmp_path, monkeypatch):
    """A visit of ten codes in rows of eight tokens: [CLS], six codes, [SEP]."""
    events = [(1, "2020-01-01", f"LAB//{number}", None, 1) for number in range(10)]
    store = make_store(tmp_path, events)
    vocab = fit_vocabulary(store, np.array([1]), min_count=1, max_size=100)
    data = SimpleNamespace(stores=(store,), vocab=vocab, splits={"val": np.array([1])})
    config = ConfigDict({"data": {"max_codes": 64, "max_tokens": 8, "seed": 0}})
    config.pretrain = ConfigDict({"mask_rate": 0.3, "predict_values": True})
    monkeypatch.setattr(pretrain, "EVAL_MASK_RATE", 0.9)
    records = _read_records("val", data, config)
    assert len(records.sequences.codes) == len(records.windows.code_index) == 6
    assert records.hidden.any() and len(records.hidden) == 6
