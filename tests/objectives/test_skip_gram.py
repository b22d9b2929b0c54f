"""The skip-gram objective: against a loop, on nothing, blind between patients, and able to learn planted structure."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ehrjax.data.token_batching import TokenBatches
from ehrjax.models.med2vec import Med2Vec
from ehrjax.objectives.skip_gram import NOISE_POWER, _cumulative_noise, make_skip_gram_objective
from ehrjax.train.state import create_state
from ehrjax.train.step import make_train_step
from ehrjax.types import VisitSequences
from tests.models.test_hierarchical import all_padding
from tests.sequences import VOCAB_SIZE, random_params
from tests.tokens import make_token_batch, pad_token_batch

VISITS = [1, 4, 2, 6, 3]
MODEL = Med2Vec(VOCAB_SIZE, embed_dim=4, with_context=True)
COUNTS = np.where(np.arange(VOCAB_SIZE) < 5, 0, 1 + np.arange(VOCAB_SIZE))


def run(batch, *, model=MODEL, counts=COUNTS, seed=0, **options):
    params = random_params(model, batch)["params"]
    objective = make_skip_gram_objective(model, code_counts=counts, **options)

    @jax.jit
    def loss_and_gradient(params):
        def loss(p):
            output = objective(p, batch, jax.random.key(seed), True)
            return output.loss_sum, output

        return jax.grad(loss, has_aux=True)(params)

    grads, output = loss_and_gradient(params)
    return params, output, grads


def visits_of(batch):
    """(row, column, segment, codes) of each real visit."""
    for row, column in np.argwhere(batch.visit_mask):
        codes = batch.tokens[row][batch.code_visits[row] == column]
        yield row, column, batch.visit_segments[row, column], codes


def test_nothing_but_padding_weighs_nothing_and_has_no_gradient():
    _, output, grads = run(all_padding(make_token_batch(VISITS)))
    assert output.weight == 0 and output.loss_sum == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_a_patient_of_one_visit_of_one_code_has_no_pair():
    batch = make_token_batch([1], seed=4, max_codes=1)
    assert (batch.code_visits >= 0).sum() == 1
    assert run(batch)[1].weight == 0


@pytest.mark.parametrize("window", [1, 2])
def test_pairs_are_those_of_a_loop_over_visits(window):
    batch = make_token_batch(VISITS, row_tokens=40)
    _, output, _ = run(batch, window=window)
    visits = list(visits_of(batch))
    expected = sum(
        len(codes)
        for row, column, segment, codes in visits
        for other_row, other, other_segment, other_codes in visits
        if (row, segment) == (other_row, other_segment) and 0 < abs(column - other) <= window and len(other_codes)
    )
    assert output.metrics["visit_loss"][1] == expected > 0
    beside = sum(len(codes) for *_, codes in visits if len(codes) > 1)
    same = sum((np.unique(codes, return_counts=True)[1] > 1).any() for *_, codes in visits)
    assert beside - 4 * same <= output.metrics["code_loss"][1] <= beside
    assert output.weight == output.metrics["visit_loss"][1] + output.metrics["code_loss"][1]


def test_loss_between_visits_equals_a_loop_where_the_noise_is_known():
    """Two visits of one code each, and noise that can only be code 7: the loss has no chance left in it."""
    sequences = VisitSequences(
        codes=np.array([5, 6], np.int32),
        visit_offsets=np.array([0, 1, 2]),
        example_offsets=np.array([0, 2]),
        ages=np.zeros(2, np.float32),
        gap_days=np.zeros(2, np.float32),
        subject_ids=np.array([1]),
        times=np.zeros(1, np.int64),
        labels=np.zeros((1, 1), np.float32),
        label_mask=np.ones((1, 1), bool),
    )
    batch = next(TokenBatches(sequences, row_tokens=8, batch_size=1).eval_batches())
    params, output, grads = run(batch, counts=np.eye(VOCAB_SIZE, dtype=int)[7], num_negatives=3)
    table, context = params["embedding"]["embedding"], params["context"]["embedding"]
    expected = 0.0
    for own, neighbour in ((5, 6), (6, 5)):
        visit = np.maximum(table[own], 0)
        expected += np.logaddexp(0, -visit @ context[neighbour]) + 3 * np.logaddexp(0, visit @ context[7])
    np.testing.assert_allclose(output.loss_sum, expected, rtol=1e-5)
    assert output.weight == 2
    moved = np.nonzero(np.abs(grads["context"]["embedding"]).sum(1))[0]
    np.testing.assert_array_equal(moved, [5, 6, 7])


def test_a_draw_that_hits_the_target_is_no_negative():
    batch = make_token_batch([3], max_codes=4, seed=1)
    same = batch._replace(tokens=np.where(batch.code_visits >= 0, 7, batch.tokens))
    params, output, _ = run(same, counts=np.eye(VOCAB_SIZE, dtype=int)[7])
    score = np.maximum(params["embedding"]["embedding"][7], 0) @ params["context"]["embedding"][7]
    np.testing.assert_allclose(output.loss_sum / output.weight, np.logaddexp(0, -score), rtol=1e-5)
    assert output.metrics["code_loss"][1] == 0


def test_padding_and_the_other_patients_of_a_row_change_nothing():
    """Noise that is always code 7 leaves the pairs between visits without chance."""
    counts = np.eye(VOCAB_SIZE, dtype=int)[7]
    packed = run(make_token_batch(VISITS, row_tokens=60), counts=counts)[1]
    single = run(make_token_batch(VISITS), counts=counts)[1]
    padded = run(pad_token_batch(make_token_batch(VISITS), rows=1, tokens=4, visits=3), counts=counts)[1]
    for other in (single, padded):
        np.testing.assert_allclose(packed.metrics["visit_loss"], other.metrics["visit_loss"], rtol=1e-5)


def test_partners_are_other_codes_of_the_same_visit():
    """Only visits of codes {5, 6} and {8, 9}: with noise at 7, no other row of either table may move."""
    batch = make_token_batch([1, 1, 1], max_codes=4, seed=3)
    _, output, grads = run(batch, counts=np.eye(VOCAB_SIZE, dtype=int)[7])
    assert output.metrics["visit_loss"][1] == 0 and output.weight > 0
    crowded = [codes for *_, codes in visits_of(batch) if len(codes) > 1]
    moved = set(np.nonzero(np.abs(grads["context"]["embedding"]).sum(1))[0])
    assert moved <= {7, *np.concatenate(crowded)} and len(moved) > 1


def test_noise_is_drawn_in_proportion_to_the_powered_counts():
    cumulative = _cumulative_noise(COUNTS, VOCAB_SIZE)
    uniform = jax.random.uniform(jax.random.key(0), (20_000,))
    drawn = np.bincount(np.searchsorted(cumulative, uniform, side="right"), minlength=VOCAB_SIZE) / 20_000
    expected = COUNTS**NOISE_POWER / (COUNTS**NOISE_POWER).sum()
    np.testing.assert_allclose(drawn, expected, atol=0.01)
    assert (drawn[:5] == 0).all()
    # The largest float below 1 must not draw a code behind the last one that has a count.
    assert np.searchsorted(_cumulative_noise(np.eye(9)[3], 9), np.float32(1) - np.float32(2**-24), side="right") == 3


def test_what_cannot_be_an_objective_is_refused():
    with pytest.raises(ValueError, match="with_context=True"):
        make_skip_gram_objective(Med2Vec(VOCAB_SIZE), code_counts=COUNTS)
    for counts in (COUNTS[1:], np.zeros(VOCAB_SIZE), -COUNTS):
        with pytest.raises(ValueError, match=r"must be one count a token, \(20,\)"):
            make_skip_gram_objective(MODEL, code_counts=counts)
    with pytest.raises(ValueError, match="num_negatives=0"):
        make_skip_gram_objective(MODEL, code_counts=COUNTS, num_negatives=0)


def planted(num_patients=64):
    """Visits of two of a group's three codes, each followed by the next of six groups: 5-7, 8-10, .. 20-22, 5-7 .."""
    rng = np.random.default_rng(0)
    groups = (rng.integers(0, 6, (num_patients, 1)) + np.arange(4)) % 6
    codes = 5 + 3 * groups[..., None] + np.argsort(rng.random((num_patients, 4, 3)), -1)[..., :2]
    num_visits = 4 * num_patients
    return VisitSequences(
        codes=codes.reshape(-1).astype(np.int32),
        visit_offsets=np.arange(0, 2 * num_visits + 1, 2),
        example_offsets=np.arange(0, num_visits + 1, 4),
        ages=np.zeros(num_visits, np.float32),
        gap_days=np.zeros(num_visits, np.float32),
        subject_ids=np.arange(num_patients),
        times=np.zeros(num_patients, np.int64),
        labels=np.zeros((num_patients, 1), np.float32),
        label_mask=np.ones((num_patients, 1), bool),
    )


def test_codes_of_one_visit_come_to_lie_together():
    sequences = planted()
    batches = TokenBatches(sequences, row_tokens=52, batch_size=8)
    model = Med2Vec(23, embed_dim=8, with_context=True)
    counts = np.bincount(sequences.codes, minlength=23)
    objective = make_skip_gram_objective(model, code_counts=counts, num_negatives=4)
    tx = optax.adam(0.05)
    state = create_state(model.init(jax.random.key(0), batches.batch_at(0))["params"], tx)
    step = jax.jit(make_train_step(objective, tx))
    rows = []
    for index in range(60):
        state, metrics = step(state, batches.batch_at(index), jax.random.key(1))
        rows.append(float(metrics["skip_gram_auroc"][0] / metrics["skip_gram_auroc"][1]))
    chex.assert_tree_all_finite(state.params)
    assert rows[-1] > 0.7 > rows[0]
    table = jnp.maximum(state.params["embedding"]["embedding"][5:], 0)
    unit = table / jnp.linalg.norm(table, axis=1, keepdims=True)
    similarity = np.array(unit @ unit.T) - 2 * np.eye(18)
    assert (similarity.argmax(1) // 3 == np.arange(18) // 3).all()
