"""Survival losses against hand-computed and naive likelihoods, and the risks that follow from the same logits."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import log_softmax

from ehrjax.objectives.survival import (
    cox_loss,
    cumulative_incidence,
    discrete_time_loss,
    incidence_at,
    make_survival_objective,
    num_survival_outputs,
    piecewise_exponential_loss,
    risk_scores,
    survival_function,
    survival_loss,
)
from ehrjax.objectives.survival_grid import TimeGrid, fit_breslow
from ehrjax.types import Outputs, VisitBatch
from tests.encoders import fit, loss_and_grads

GRID = TimeGrid((0.0, 10.0, 30.0, 100.0))
KINDS = ("discrete", "piecewise", "cox")
COX = {"kind": "cox", "grid": TimeGrid((0, 999)), "num_causes": 1}
jit_loss = jax.jit(survival_loss, static_argnames=("kind", "grid", "num_causes"))
jit_cox_loss = jax.jit(cox_loss)
jit_discrete_loss = jax.jit(discrete_time_loss, static_argnums=(3, 4))
jit_piecewise_loss = jax.jit(piecewise_exponential_loss, static_argnums=(3, 4))
jit_survival = jax.jit(survival_function, static_argnames=("grid", "kind"))
jit_incidence = jax.jit(cumulative_incidence, static_argnames=("grid", "kind"))
jit_incidence_at = jax.jit(incidence_at, static_argnums=(1, 2), static_argnames="kind")


def loss_grads(logits, labels, mask, **options):
    """(loss, weight), gradient."""
    loss = jax.value_and_grad(lambda x, y, m: survival_loss(x, y, m, **options)[:2], has_aux=True)
    return jax.jit(loss)(logits, labels, mask)


def make_labels(num_rows, num_causes=1, *, seed=0, scale=60.0):
    """Whole days, so that many are tied, some at 0, on an edge and beyond the horizon; a third censored."""
    rng = np.random.default_rng(seed)
    times = rng.exponential(scale, num_rows).round()
    times[:: max(1, num_rows // 4)] = [10.0, 0.0, 100.0, 130.0, 30.0][: len(times[:: max(1, num_rows // 4)])]
    events = rng.integers(0, num_causes + 1, num_rows) * (rng.random(num_rows) < 0.8)
    return np.stack([times, events], axis=-1).astype(np.float32)


def make_logits(num_rows, kind, num_causes=1, *, seed=1):
    num_outputs = num_survival_outputs(kind, GRID, num_causes)
    return np.random.default_rng(seed).normal(size=(num_rows, num_outputs)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_causes", [1, 2])
def test_masked_rows_and_all_censored_rows_have_finite_losses_and_gradients(kind, num_causes):
    logits = make_logits(3, kind, num_causes)
    options = {"kind": kind, "grid": GRID, "num_causes": num_causes}
    (loss, weight), grads = loss_grads(logits, np.full((3, 2), np.nan, np.float32), np.zeros(3, bool), **options)
    assert loss == weight == 0 and (grads == 0).all()
    censored = np.array([[5.0, 0], [20.0, 0], [500.0, 0]], np.float32)
    (loss, weight), grads = loss_grads(logits, censored, np.ones(3, bool), **options)
    assert weight == (0 if kind == "cox" else 3)
    assert jnp.isfinite(loss) and jnp.isfinite(grads).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_row_changes_nothing(kind):
    logits, labels = make_logits(30, kind, 2), make_labels(30, 2)
    keep = np.random.default_rng(2).random(30) < 0.6
    options = {"kind": kind, "grid": GRID, "num_causes": 2}
    some = jit_loss(logits, np.where(keep[:, None], labels, np.nan), keep, **options)
    alone = jit_loss(logits[keep], labels[keep], np.ones(keep.sum(), bool), **options)
    np.testing.assert_allclose(some[:2], alone[:2], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_horizon_ends_follow_up_and_rows_may_have_any_shape(kind):
    logits, labels = make_logits(12, kind, 2), make_labels(12, 2)
    cut = np.where(labels[:, :1] > 100, np.array([[100.0, 0]], np.float32), labels)
    options = {"kind": kind, "grid": GRID, "num_causes": 2}
    whole = jit_loss(logits, labels, np.ones(12, bool), **options)
    shaped = jit_loss(
        logits.reshape(4, 3, -1), np.reshape(cut, (4, 3, 2)).astype(np.float32), np.ones((4, 3), bool), **options
    )
    np.testing.assert_allclose(whole[:2], shaped[:2], rtol=1e-5)
    assert (labels[:, 0] > 100).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_keep_loss_gradients_and_risks_finite(kind, size):
    logits = make_logits(8, kind, 2) * 3 + size * np.resize([1, -1, 1], (8, 1)).astype(np.float32)
    labels, mask = make_labels(8, 2), np.ones(8, bool)

    (value, _), grads = loss_grads(logits, labels, mask, kind=kind, grid=GRID, num_causes=2)
    assert jnp.isfinite(value) and jnp.isfinite(grads).all() and (grads != 0).any()
    risks, risk_grads = jax.jit(jax.value_and_grad(lambda x: risk_scores(x, GRID, kind=kind).sum()))(logits)
    assert jnp.isfinite(risks) and jnp.isfinite(risk_grads).all()


def test_discrete_loss_by_hand():
    logit = np.log([1 / 3, 1.0, 3.0]).astype(np.float32)[None]  # hazards 1/4, 1/2, 3/4
    cases = {
        (5, 1): 1 / 4,
        (0, 1): 1 / 4,
        (10, 1): 1 / 4,  # an edge belongs to the interval that ends there
        (10.5, 1): 3 / 4 * 1 / 2,
        (100, 1): 3 / 4 * 1 / 2 * 3 / 4,
        (101, 1): 3 / 4 * 1 / 2 * 1 / 4,
        (9, 0): 1.0,
        (10, 0): 3 / 4,
        (29, 0): 3 / 4,
        (100, 0): 3 / 4 * 1 / 2 * 1 / 4,
    }
    for (time, event), likelihood in cases.items():
        result = jit_discrete_loss(logit, np.array([[time, event]], np.float32), np.ones(1, bool), GRID, 1)
        np.testing.assert_allclose(np.exp(-result.loss_sum), likelihood, rtol=1e-5, err_msg=f"{time} {event}")


def test_discrete_loss_equals_a_loop_over_rows_and_intervals():
    logits, labels = make_logits(40, "discrete", 3), make_labels(40, 3)
    expected = 0.0
    for row, (time, event) in zip(logits.reshape(40, 3, 3), labels, strict=True):
        for j, end in enumerate(GRID.edges[1:]):
            log_probabilities = log_softmax(np.append(row[:, j].astype(float), 0.0))
            if event > 0 and time <= end:
                expected -= log_probabilities[int(event) - 1]
                break
            if time < end:
                break
            expected -= log_probabilities[-1]
    result = jit_discrete_loss(logits, labels, np.ones(40, bool), GRID, 3)
    np.testing.assert_allclose(result.loss_sum, expected, rtol=1e-5)
    assert result.weight == 40


def test_piecewise_loss_equals_the_integral_of_the_hazard():
    log_rates, labels = make_logits(15, "piecewise", 2) - 4, make_labels(15, 2)
    expected = 0.0
    for row, (time, event) in zip(log_rates.reshape(15, 2, 3).astype(float), labels, strict=True):

        def hazard(t, cause, row=row):
            return np.exp(row[cause, np.searchsorted([10.0, 30.0], t)])

        end = min(time, 100.0)
        if end > 0:
            expected += sum(quad(hazard, 0, end, args=(cause,), points=[10.0, 30.0])[0] for cause in (0, 1))
        if event > 0 and time <= 100:
            expected -= np.log(hazard(time, int(event) - 1))
    result = jit_piecewise_loss(log_rates, labels, np.ones(15, bool), GRID, 2)
    np.testing.assert_allclose(result.loss_sum, expected, rtol=1e-5)


def naive_efron(risk, times, is_event):
    loss = 0.0
    for time in np.unique(times[is_event]):
        tied = is_event & (times == time)
        for removed in range(tied.sum()):
            at_risk = np.exp(risk[times >= time]).sum() - removed / tied.sum() * np.exp(risk[tied]).sum()
            loss += np.log(at_risk)
        loss -= risk[tied].sum()
    return loss


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_cox_loss_is_efron_s_by_definition_also_for_several_causes(scale):
    labels, risks = make_labels(50, 2, scale=scale), make_logits(50, "cox", 2).astype(float)
    result = jit_cox_loss(risks[:, 0].astype(np.float32), labels, np.ones(50, bool))
    np.testing.assert_allclose(result.loss_sum, naive_efron(risks[:, 0], labels[:, 0], labels[:, 1] > 0), rtol=1e-5)
    assert result.weight == (labels[:, 1] > 0).sum()
    times = np.minimum(labels[:, 0], 100)
    events = np.where(labels[:, 0] <= 100, labels[:, 1], 0)
    by_cause = jit_loss(risks, labels, np.ones(50, bool), kind="cox", grid=GRID, num_causes=2)
    expected = sum(naive_efron(risks[:, r], times, events == r + 1) for r in (0, 1))
    np.testing.assert_allclose(by_cause.loss_sum, expected, rtol=1e-5)


def test_cox_batch_of_one_row_says_nothing():
    (loss, weight), grads = loss_grads(np.ones((1, 1)), np.array([[3.0, 1]]), np.ones(1, bool), **COX)
    assert loss == 0 and weight == 1 and grads == 0


def test_cox_gradient_is_that_of_the_definition():
    labels, risk = make_labels(20), make_logits(20, "cox")[:, 0]
    _, grads = loss_grads(risk[:, None], labels, np.ones(20, bool), **COX)
    numeric = np.zeros(20)
    for i, step in enumerate(np.eye(20) * 1e-5):
        numeric[i] = naive_efron(risk + step, labels[:, 0], labels[:, 1] > 0)
        numeric[i] -= naive_efron(risk - step, labels[:, 0], labels[:, 1] > 0)
    np.testing.assert_allclose(grads[:, 0], numeric / 2e-5, atol=1e-4)


def test_cox_loss_and_baseline_agree_with_lifelines():
    lifelines = pytest.importorskip("lifelines", reason="lifelines is not installed")
    pd = pytest.importorskip("pandas")
    labels = make_labels(80)
    covariates = np.random.default_rng(5).normal(size=(80, 2))
    frame = pd.DataFrame({"a": covariates[:, 0], "b": covariates[:, 1], "time": labels[:, 0], "event": labels[:, 1]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = lifelines.CoxPHFitter().fit(frame, "time", "event")
    risk = (covariates - covariates.mean(axis=0)) @ fitted.params_.to_numpy()
    result = jit_cox_loss(risk.astype(np.float32), labels, np.ones(80, bool))
    np.testing.assert_allclose(-result.loss_sum, fitted.log_likelihood_, rtol=1e-5)
    baseline = fit_breslow(labels[:, 0], labels[:, 1], risk)
    theirs = fitted.baseline_cumulative_hazard_.iloc[:, 0]
    np.testing.assert_allclose(baseline.cumulative_hazard_at(theirs.index)[:, 0], theirs, rtol=1e-6)


@pytest.mark.parametrize("kind", ["discrete", "piecewise"])
@pytest.mark.parametrize("num_causes", [1, 3])
def test_incidences_and_survival_sum_to_one(kind, num_causes):
    logits = make_logits(6, kind, num_causes).reshape(2, 3, -1)
    incidence = jit_incidence(logits, GRID, kind=kind)
    survival = jit_survival(logits, GRID, kind=kind)
    assert incidence.shape == (2, 3, num_causes, 3) and survival.shape == (2, 3, 3)
    np.testing.assert_allclose(incidence.sum(axis=-2) + survival, 1.0, atol=1e-6)
    assert (np.diff(incidence, axis=-1) > 0).all()
    np.testing.assert_allclose(risk_scores(logits, GRID, kind=kind), incidence[..., -1], rtol=1e-5)


@pytest.mark.parametrize("kind", ["discrete", "piecewise"])
def test_survival_is_the_likelihood_of_being_censored_then(kind):
    logits, survival = make_logits(1, kind, 2), []
    for end in GRID.edges[1:]:
        label = np.array([[end, 0]], np.float32)
        survival.append(np.exp(-jit_loss(logits, label, np.ones(1, bool), kind=kind, grid=GRID, num_causes=2).loss_sum))
    np.testing.assert_allclose(jit_survival(logits, GRID, kind=kind)[0], survival, rtol=1e-5)


@pytest.mark.parametrize("kind", ["discrete", "piecewise"])
@pytest.mark.parametrize("cause", [1, 2])
def test_incidence_adds_up_the_likelihoods_of_events(kind, cause):
    logits = make_logits(1, kind, 2)
    # One event an interval is as likely as the interval's incidence; on real time the likelihood is a density a day.
    days = np.array([5.0, 20.0, 60.0]) if kind == "discrete" else np.arange(0.125, 100, 0.25)
    labels = np.stack([days, np.full(len(days), cause)], axis=-1).astype(np.float32)

    def likelihood(label):
        result = survival_loss(logits, label[None], jnp.ones(1, bool), kind=kind, grid=GRID, num_causes=2)
        return jnp.exp(-result.loss_sum)

    found = np.cumsum(jax.jit(jax.vmap(likelihood))(labels))
    if kind == "piecewise":
        found = 0.25 * found[np.searchsorted(days, GRID.edges[1:]) - 1]
    expected = jit_incidence(logits, GRID, kind=kind)[0, cause - 1]
    np.testing.assert_allclose(found, expected, rtol=1e-5 if kind == "discrete" else 1e-3)


def test_between_edges_incidence_is_linear_and_log_survival_is_linear():
    logits = make_logits(4, "discrete")
    times = (0.0, 10.0, 15.0, 30.0)
    found = jit_incidence_at(logits, GRID, times, kind="discrete")[:, 0]
    assert (found[:, 0] == 0).all()
    np.testing.assert_allclose(found[:, 2], 0.75 * found[:, 1] + 0.25 * found[:, 3], rtol=1e-5)
    survival = np.log(1 - jit_incidence_at(logits, GRID, times, kind="piecewise")[:, 0])
    np.testing.assert_allclose(survival[:, 2], 0.75 * survival[:, 1] + 0.25 * survival[:, 3], rtol=1e-4)


def test_a_constant_rate_gives_the_exponential_distribution():
    logits = np.full((1, 3), np.log(0.02 * 100), np.float32)  # a logit of 0 is one event in the 100 days
    found = jit_incidence_at(logits, GRID, (1.0, 25.0, 100.0), kind="piecewise")
    np.testing.assert_allclose(found[0, 0], 1 - np.exp(-0.02 * np.array([1, 25, 100])), rtol=1e-5)


def test_what_cannot_be_answered_is_refused():
    with pytest.raises(ValueError, match=r"time 101\.0 is outside 0 to 100 days"):
        incidence_at(np.zeros((1, 3), np.float32), GRID, (50.0, 101.0), kind="discrete")
    with pytest.raises(ValueError, match="kind='cox' has no probabilities"):
        survival_function(np.zeros((1, 1), np.float32), GRID, kind="cox")
    with pytest.raises(ValueError, match="4 logits are no multiple of the grid's 3 intervals"):
        survival_function(np.zeros((1, 4), np.float32), GRID, kind="discrete")
    with pytest.raises(ValueError, match="kind='weibull' is not known: use one of discrete"):
        make_survival_objective(None, "weibull", GRID, 1)
    with pytest.raises(ValueError, match=r"logits of shape \(2, 4\) must end in 6"):
        discrete_time_loss(np.zeros((2, 4)), np.zeros((2, 2)), np.ones(2, bool), GRID, 2)
    with pytest.raises(ValueError, match=r"labels of shape \(2, 1\) do not fit"):
        discrete_time_loss(np.zeros((2, 3)), np.zeros((2, 1)), np.ones(2, bool), GRID, 1)


class Constant(nn.Module):
    """The same logits for every row."""

    num_outputs: int

    @nn.compact
    def __call__(self, batch, *, train=False):
        logits = self.param("logits", nn.initializers.zeros, (self.num_outputs,))
        return Outputs(logits=jnp.broadcast_to(logits, (*batch.label_mask.shape[:-1], self.num_outputs)))


def label_batch(labels, mask):
    fields = dict.fromkeys(VisitBatch._fields)
    return VisitBatch(**fields | {"labels": labels, "label_mask": np.repeat(mask[:, None], 2, axis=1)})


@pytest.mark.parametrize("kind", ["discrete", "piecewise"])
def test_a_constant_hazard_is_recovered_from_censored_rows(kind):
    rng = np.random.default_rng(0)
    events, censoring = rng.exponential(50, 1500), rng.choice([10.0, 30.0, 100.0], 1500)
    labels = np.stack([np.minimum(events, censoring), events <= censoring], axis=-1).astype(np.float32)
    mask = rng.random(1500) < 0.9
    labels[~mask] = np.nan
    objective = make_survival_objective(Constant(3), kind, GRID, 1)
    params, result = fit(objective, {"logits": jnp.zeros(3)}, label_batch(labels, mask), steps=300, rate=0.1)
    assert result.weight == mask.sum()
    incidence = jit_incidence(params["logits"][None], GRID, kind=kind)[0, 0]
    np.testing.assert_allclose(incidence, 1 - np.exp(-np.array([10, 30, 100]) / 50), atol=0.04)
    if kind == "piecewise":
        days = np.clip(labels[mask, :1] - np.array([[0, 10, 30]]), 0, [[10, 20, 70]]).sum(axis=0)
        strikes = np.histogram(labels[mask, 0][labels[mask, 1] == 1], GRID.edges)[0]
        np.testing.assert_allclose(params["logits"], np.log(strikes / days * 100), atol=1e-3)


def test_a_row_counts_only_where_time_and_event_are_known():
    labels = np.array([[5.0, 1], [5.0, 1]], np.float32)
    batch = label_batch(labels, np.ones(2, bool))
    batch.label_mask[1, 1] = False
    output, grads = loss_and_grads(make_survival_objective(Constant(1), "cox", GRID, 1), {"logits": jnp.ones(1)}, batch)
    assert output.weight == 1 and jnp.isfinite(grads["logits"]).all()


def concordance(times, scores):
    sooner = times[:, None] < times[None]
    higher = (scores[:, None] > scores[None]) + 0.5 * (scores[:, None] == scores[None])
    return higher[sooner].mean()


@pytest.mark.parametrize("kind", ["discrete", "piecewise"])
def test_risk_does_not_grow_with_the_number_of_visits(kind):
    rng = np.random.default_rng(3)
    num_visits = rng.integers(1, 21, 600)
    logits = rng.normal(-3, 1, (600, 20, 3)).astype(np.float32)
    times = rng.exponential(size=600)
    risks = np.asarray(risk_scores(logits, GRID, kind=kind))[..., 0]
    last = risks[np.arange(600), num_visits - 1]
    # Standard error of either is about 0.012.
    assert abs(concordance(num_visits, last) - 0.5) < 0.04
    assert abs(concordance(times, last) - 0.5) < 0.04
    added_up = np.where(np.arange(20)[None] < num_visits[:, None], risks, 0).sum(axis=1)
    assert concordance(num_visits, added_up) < 0.2  # which is what the scores must not do
