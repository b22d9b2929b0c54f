"""Attributions add up and stay with their patient; attention maps rebuild the encoder; figures of odd patients."""

import json
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.data.batching import VisitBatches
from ehrjax.evaluate import explain, explain_attention
from ehrjax.evaluate.explain import explain_patients, integrated_gradients, occlude_visits, running_logits
from ehrjax.evaluate.explain_plots import patient_timeline, top_codes
from ehrjax.models.visit_lstm import VisitLstm
from ehrjax.nn.transformer import LayerNorm, gelu
from ehrjax.objectives.supervised import make_supervised_objective
from ehrjax.types import Outputs
from tests.encoders import assert_close, fit, make_encoder
from tests.sequences import VOCAB_SIZE, make_sequences, random_params
from tests.tokens import make_token_batch

LENGTHS = [3, 1, 5, 2, 4]
PACKED = make_token_batch(LENGTHS, row_tokens=40)
SEQUENCES = make_sequences(LENGTHS)
VISITS = VisitBatches(SEQUENCES, batch_size=5, num_buckets=1).collate(np.arange(5))
TOKENS = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", *(f"A//{i}" for i in range(5, VOCAB_SIZE))]
MODELS = ("lstm", "behrt", "hierarchical")


@lru_cache
def make(name, **options):
    model = make_encoder(name, **{"num_outputs": 1, **options})
    return model, random_params(model, PACKED)["params"]


def by_example(batch, values):
    """Values of visits [B V], by example, visits in order."""
    segments = np.asarray(explain._visit_segments(batch))
    ids = explain.sequence_ids(batch)
    return {int(ids[r, s]): values[r, segments[r] == s + 1] for r, s in zip(*np.nonzero(ids >= 0), strict=True)}


@pytest.mark.parametrize("name", MODELS)
def test_attributions_are_complete_and_stay_with_their_patient(name):
    model, params = make(name)
    parts = integrated_gradients(model, params, PACKED)
    logits = model.apply({"params": params}, PACKED).logits[..., 0]
    np.testing.assert_allclose(parts.logits, logits, rtol=1e-4, atol=1e-6)
    is_real = PACKED.example_ids >= 0
    moved = np.abs(parts.logits - parts.baseline_logits)[is_real]
    assert moved.max() > 1e-3
    assert (np.abs(parts.gap[is_real]) <= 1e-3 * moved + 1e-6).all()
    for row, slot in zip(*np.nonzero(is_real), strict=True):
        own = parts.codes[row, PACKED.segment_ids[row] == slot + 1].sum()
        assert own == pytest.approx(parts.logits[row, slot] - parts.baseline_logits[row, slot], rel=1e-3, abs=1e-6)
    assert (parts.codes[PACKED.code_visits < 0] == 0).all()

    # The logit of the row's second patient alone has nothing of the others, exactly.
    row = np.flatnonzero(is_real.sum(axis=1) > 1)[0]
    chosen = np.zeros(is_real.shape, np.float32)
    chosen[row, 1] = 1
    nodes, weights = np.polynomial.legendre.leggauss(64)
    path = (((nodes + 1) / 2) ** 2).astype(np.float32), ((nodes + 1) / 2 * weights).astype(np.float32)
    alone = np.asarray(
        explain._compiled_integral(explain.patient_model(model), 0, None)(params, PACKED, chosen, *path)[0]
    )
    own = np.zeros(alone.shape, bool)
    own[row] = PACKED.segment_ids[row] == 2
    assert (alone[~own] == 0).all() and np.abs(alone[own]).max() > 0
    np.testing.assert_allclose(alone[own], parts.codes[own], rtol=1e-4, atol=1e-6)


class Linear(nn.Module):
    """The logit is the sum over codes of a weight times their embedding."""

    lookup: str = "embedding"

    @nn.compact
    def __call__(self, batch, *, train=False):
        embedded = nn.Embed(VOCAB_SIZE, 3, name=self.lookup)(batch.codes)
        embedded = jnp.where(batch.code_visits[..., None] >= 0, embedded, 0)
        return Outputs(logits=nn.Dense(2, name="head")(embedded.sum(axis=1)))


@pytest.mark.parametrize("baseline", ["zero", "mask"])
def test_of_a_linear_model_each_code_gets_what_it_adds(baseline):
    model = Linear()
    params = random_params(model, VISITS)["params"]
    parts = integrated_gradients(model, params, VISITS, output=1, baseline=baseline, num_steps=3)
    table = params["embedding"]["embedding"]
    reference = table[2] if baseline == "mask" else 0
    added = (table - reference) @ params["head"]["kernel"][:, 1]
    expected = np.where(VISITS.code_visits >= 0, added[VISITS.codes], 0)
    np.testing.assert_allclose(parts.codes, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(parts.visits.sum(1), expected.sum(1), rtol=1e-4, atol=1e-5)
    assert parts.logits.shape == (5, 1) and np.abs(parts.gap).max() < 1e-5


def test_token_rows_and_visit_rows_explain_a_model_of_visits_alike():
    model, params = make("lstm")
    by_visit = []
    for batch in (PACKED, VISITS):
        codes = integrated_gradients(model, params, batch).codes
        laid_out = explain_attention.lay_out_by_visit(codes, batch.code_visits, batch.visit_mask.shape[1])
        by_visit.append(by_example(batch, laid_out))
    assert_close(*by_visit)


def test_what_cannot_be_explained_is_refused():
    model, params = make("lstm")
    with pytest.raises(ValueError, match="baseline='pad' is not known"):
        integrated_gradients(model, params, VISITS, baseline="pad")
    headless, without = make("lstm", num_outputs=0)
    with pytest.raises(ValueError, match="no head"):
        integrated_gradients(headless, without, VISITS)
    other = Linear(lookup="table")
    with pytest.raises(ValueError, match=r"no nn\.Embed of the name 'embedding'"):
        integrated_gradients(other, random_params(other, VISITS)["params"], VISITS)
    with pytest.raises(ValueError, match="pooling='attention'"):
        explain_attention.code_attention(model, params, VISITS)
    with pytest.raises(ValueError, match="0 transformer encoders"):
        explain_attention.attention_maps(model, params, PACKED)


@pytest.mark.parametrize("name", MODELS)
def test_running_logits_are_the_visit_level_logits_of_a_causal_model(name):
    model, params = make(name)
    by_visit = model.clone(level="visit").apply({"params": params}, PACKED).logits[..., 0]
    expected = np.where(PACKED.visit_mask, by_visit, np.nan)
    running = running_logits(model, params, PACKED)
    np.testing.assert_allclose(running, expected, rtol=1e-4, atol=1e-5)


def without_visit(sequences, visit):
    """The sequences without a visit, whose codes are left out with it."""
    codes = np.ones(len(sequences.codes), bool)
    codes[slice(*sequences.visit_offsets[visit : visit + 2])] = False
    codes_each = np.delete(np.diff(sequences.visit_offsets), visit)
    offsets = sequences.example_offsets - (sequences.example_offsets > visit)
    return sequences._replace(
        codes=sequences.codes[codes],
        visit_offsets=np.append(0, np.cumsum(codes_each)),
        example_offsets=offsets,
        ages=np.delete(sequences.ages, visit),
        gap_days=np.delete(sequences.gap_days, visit),
    )


@pytest.mark.parametrize("bidirectional", [False, True])
def test_occlusion_is_the_difference_to_the_record_without_the_visit(bidirectional):
    model, params = make("lstm", bidirectional=bidirectional)
    changes = [by_example(batch, occlude_visits(model, params, batch)) for batch in (PACKED, VISITS)]
    assert_close(*changes)
    assert np.isnan(changes[0][1]).all()  # an only visit
    logits = model.apply({"params": params}, VISITS).logits
    for visit in (4, 6, 8):  # first, middle and last of example 2
        batch = VisitBatches(without_visit(SEQUENCES, visit), batch_size=5, num_buckets=1).collate(np.arange(5))
        expected = logits[2, 0] - model.apply({"params": params}, batch).logits[2, 0]
        assert changes[0][2][visit - 4] == pytest.approx(float(expected), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["behrt", "hierarchical"])
def test_occlusion_of_one_patient_leaves_the_others_and_the_padding(name):
    model, params = make(name)
    changes = occlude_visits(model, params, PACKED)
    assert (changes[~PACKED.visit_mask] == 0).all()
    found = by_example(PACKED, changes)
    assert np.isnan(found.pop(1)).all()
    assert all(np.isfinite(change).all() and np.abs(change).max() > 0 for change in found.values())


DRIVER = 9


def driven_sequences():
    """The label is whether a visit holds the code DRIVER; one visit at most does."""
    sequences = make_sequences([3, 4, 2, 3, 4, 2, 3, 4] * 8, seed=3)
    rng = np.random.default_rng(0)
    codes = np.where(sequences.codes == DRIVER, 10, sequences.codes)
    bounds = sequences.visit_offsets[sequences.example_offsets]
    labels = np.zeros((len(sequences.subject_ids), 1), np.float32)
    for example in range(0, len(labels), 2):
        if bounds[example + 1] > bounds[example]:
            codes[rng.integers(bounds[example], bounds[example + 1])] = DRIVER
            labels[example] = 1
    return sequences._replace(codes=codes, labels=labels)


def test_gradients_and_occlusion_find_the_code_that_drives_the_label():
    sequences = driven_sequences()
    batch = VisitBatches(sequences, batch_size=64, num_buckets=1).collate(np.arange(64))
    model = VisitLstm(VOCAB_SIZE, embed_dim=6, hidden_dim=8, dropout_rate=0.0, pooling="sum")
    params = random_params(model, batch)["params"]
    params, _ = fit(make_supervised_objective(model, "binary"), params, batch, steps=400, rate=0.02)
    parts, occlusion = integrated_gradients(model, params, batch), occlude_visits(model, params, batch)
    is_driver = (batch.codes == DRIVER) & (batch.code_visits >= 0)
    rows, columns = np.nonzero(is_driver)
    assert len(rows) > 10
    visits = batch.code_visits[rows, columns]
    assert np.median(parts.codes[rows, columns]) > 5 * np.abs(parts.codes[~is_driver]).mean()
    assert (parts.codes[rows, columns] > 0).all() and (parts.visits[rows, visits] > 0).all()
    assert (occlusion[rows, visits] > 0).all()


def dense(inputs, params):
    return np.asarray(inputs) @ params["kernel"] + params["bias"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("behrt", {"num_layers": 2}),
        ("behrt", {"visit_heads": False, "position": "learned", "causal": False, "pooling": "mean"}),
        ("hierarchical", {"num_sequence_layers": 2}),
    ],
)
def test_the_encoder_is_rebuilt_from_its_attention_maps(name, options):
    model, params = make(name, **options)
    maps = explain_attention.attention_maps(model, params, PACKED)
    encoder, _, (states, groups, positions, causal) = explain_attention._encoder_call(model, params, PACKED)
    expected = encoder.clone(parent=None, name=None).apply(
        {"params": params["encoder"]}, states, groups, positions, causal=causal
    )
    segments = PACKED.visit_segments if name == "hierarchical" else PACKED.segment_ids
    layers, (num_rows, width, hidden) = params["encoder"]["layers"], states.shape

    def norm(inputs, weights):
        return LayerNorm().apply({"params": weights}, inputs)

    for index, probabilities in enumerate(maps):
        layer = jax.tree.map(lambda x, i=index: x[i], layers)
        values = dense(norm(states, layer["attention_norm"]), layer["attention"]["qkv"])[..., 2 * hidden :]
        values = values.reshape(num_rows, width, model.num_heads, -1)
        mixed = np.einsum("bnts,bsnh->btnh", probabilities, values).reshape(states.shape)
        states = states + dense(mixed, layer["attention"]["out"])
        inner = gelu(dense(norm(states, layer["ffn_norm"]), layer["ffn"]["in"]))
        states = states + dense(inner, layer["ffn"]["out"])
    rebuilt = np.asarray(norm(states, params["encoder"]["norm"]))
    np.testing.assert_allclose(rebuilt[segments > 0], np.asarray(expected)[segments > 0], rtol=1e-4, atol=1e-5)

    sums = maps.sum(axis=-1)
    real = np.broadcast_to(segments[None, :, None] > 0, sums.shape)
    np.testing.assert_allclose(sums[real], 1.0, rtol=1e-5)
    assert (sums[~real] == 0).all()
    foreign = segments[:, :, None] != segments[:, None]
    assert (maps[np.broadcast_to(foreign[None, :, None], maps.shape)] == 0).all()
    assert (np.triu(maps, 1).max() == 0) == model.causal


def test_heads_of_a_visit_see_nothing_but_it():
    model, params = make("behrt", num_layers=2)
    maps = explain_attention.attention_maps(model, params, PACKED)
    visits = np.where(PACKED.code_visits >= 0, PACKED.code_visits, -1)
    is_code = visits >= 0
    other = (visits[:, :, None] != visits[:, None]) & is_code[:, :, None] & is_code[:, None]
    other &= PACKED.segment_ids[:, :, None] == PACKED.segment_ids[:, None]
    seen = np.where(other[None, :, None], maps, 0).max(axis=(0, 1, 3, 4))
    assert seen[0] == 0 and seen[1] > 0


def test_rollout_multiplies_layers_with_half_of_each_state_its_own():
    maps = np.zeros((2, 1, 2, 2, 2), np.float32)
    maps[0, 0] = [[[1, 0], [1, 0]], [[1, 0], [0, 1]]]  # mean of heads for token 1: half and half
    maps[1, 0] = [[1, 0], [1, 0]]
    # Layer 1: token 1 is 3/4 itself; layer 2: half of that, and half token 0.
    np.testing.assert_allclose(explain_attention.attention_rollout(maps)[0], [[1, 0], [0.625, 0.375]])
    nothing = explain_attention.attention_rollout(np.zeros((3, 1, 1, 2, 2), np.float32))
    np.testing.assert_allclose(nothing[0], np.eye(2))  # rows of padding


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("behrt", {"num_layers": 2}),
        ("behrt", {"visit_heads": False, "position": "learned", "causal": False, "pooling": "mean"}),
        ("hierarchical", {"num_sequence_layers": 2}),
        ("hierarchical", {"num_sequence_layers": 2, "pooling": "mean"}),
    ],
)
def test_rollout_from_the_prediction_is_a_share_of_the_own_sequence(name, options):
    model, params = make(name, **options)
    shares = explain_attention.prediction_rollout(model, params, PACKED)
    segments = PACKED.visit_segments if name == "hierarchical" else PACKED.segment_ids
    own = segments[:, None] == np.arange(1, shares.shape[1] + 1)[:, None]
    assert (shares[~own] == 0).all() and (shares >= 0).all()
    has_codes = [
        [(PACKED.code_visits[r][PACKED.segment_ids[r] == s + 1] >= 0).any() for s in range(shares.shape[1])]
        for r in range(len(shares))
    ]
    expected = (PACKED.example_ids >= 0) & (np.array(has_codes) | (model.pooling == "last"))
    np.testing.assert_allclose(shares.sum(axis=-1), expected, rtol=1e-5)


def test_code_weights_sum_to_one_in_each_visit():
    model, params = make("lstm", pooling="attention")
    counts = explain.sum_by_visit(np.ones(PACKED.tokens.shape), PACKED)
    assert (counts[PACKED.visit_mask] == 0).any()
    codes, weights = explain_attention.code_attention(model, params, PACKED)
    np.testing.assert_array_equal((codes > 0).sum(axis=-1), counts)
    np.testing.assert_allclose(weights.sum(axis=-1), counts > 0, rtol=1e-5)
    assert ((weights > 0) == (codes > 0)).all()
    of_visits = explain_attention.code_attention(model, params, VISITS)
    for one, other in zip((codes, weights), of_visits, strict=True):
        assert_close(by_example(PACKED, one), by_example(VISITS, other))


def test_no_codes_at_all_lay_out_as_nothing():
    laid_out = explain_attention.lay_out_by_visit(np.ones((2, 3)), np.full((2, 3), -1), 4)
    assert laid_out.shape == (2, 4, 0)


def test_tables_of_patients_add_up_and_are_json():
    model, params = make("behrt")
    batch = PACKED._replace(visit_ages=np.where(PACKED.visit_mask, np.nan, PACKED.visit_ages))
    tables = explain_patients(model, params, batch, TOKENS, descriptions={"A//5": "Five", "A": "Any"})
    assert json.loads(json.dumps(tables, allow_nan=False)) == tables
    assert sorted(table["example"] for table in tables) == list(range(5))
    for table in tables:
        visits, example = table["visits"], table["example"]
        first, last = SEQUENCES.example_offsets[example : example + 2]
        assert [visit["number"] for visit in visits] == list(range(1, last - first + 1))
        names = [TOKENS[code] for code in SEQUENCES.codes[slice(*SEQUENCES.visit_offsets[[first, last]])]]
        assert [code["code"] for visit in visits for code in visit["codes"]] == names
        total = sum(code["attribution"] for visit in visits for code in visit["codes"])
        assert total == pytest.approx(table["logit"] - table["baseline_logit"], rel=1e-3, abs=1e-6)
        assert visits[-1]["logit_after"] == pytest.approx(table["logit"], rel=1e-4, abs=1e-6)
        assert table["risk"] == pytest.approx(1 / (1 + np.exp(-table["logit"])))
        days = SEQUENCES.gap_days[first:last]
        assert visits[0]["days_before_last"] == pytest.approx(days[1:].sum(), rel=1e-5)
        assert visits[0]["age"] is None and (visits[0]["occlusion"] is None) == (len(visits) == 1)


def test_a_token_is_described_by_its_nearest_ancestor():
    names = {"LAB//1": "Glucose", "LAB": "laboratory", "B": ""}
    found = [explain.describe(token, names) for token in ("LAB//1", "LAB//1//Q2", "LAB//2", "B//1", "[UNK]")]
    assert found == ["Glucose", "Glucose (Q2)", "laboratory (2)", "B//1", "[UNK]"]


def make_table(attributions, *, age=60.0, risk=0.2):
    """A table of visits a year apart, one code each; None is a visit without codes."""
    visits = [
        {
            "number": number,
            "age": None if age is None else age + number,
            "days_before_last": 365.25 * (len(attributions) - number),
            "attribution": value or 0.0,
            "risk_after": risk,
            "codes": [] if value is None else [{"code": "A", "description": "A long name " * 9, "attribution": value}],
        }
        for number, value in enumerate(attributions, 1)
    ]
    return {"example": 3, "risk": 0.2, "visits": visits}


@pytest.mark.parametrize(
    "table",
    [
        make_table([0.5, -0.3, None, 0.1]),
        make_table([None]),
        make_table([0.0, 0.0], age=None),
        make_table([1.0] * 40, risk=None),
    ],
)
def test_timelines_of_odd_patients_are_drawn(tmp_path, table):
    patient_timeline(tmp_path / "t.png", table)
    assert (tmp_path / "t.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["t.png"]


def test_top_codes_are_the_largest_by_size():
    visits = make_table([0.5, -0.9, None, 0.0, 0.7])["visits"]
    assert [(number, code["attribution"]) for number, code in top_codes(visits, 2)] == [(2, -0.9), (5, 0.7)]
    assert len(top_codes(visits, 9)) == 3
