"""The oracle against futures simulated by other code, and against the labels of the cohort engine."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from ehrjax.data import oracle, simulate
from ehrjax.data import simulate_chain as chain
from ehrjax.data.build import build_store
from ehrjax.data.cohorts import make_labels
from ehrjax.data.store import StoreSettings
from ehrjax.data.tasks import TASKS


def test_no_rows_give_no_probabilities():
    none = np.zeros(0, np.int64)
    assert oracle.probability_by_subtype("readmission_30d", none, none).shape == (0, 4)


def test_unknown_task_is_refused():
    with pytest.raises(KeyError, match="length_of_stay"):
        oracle.probability_by_subtype("length_of_stay", np.zeros(1, np.int64), np.zeros(1, np.int64))


def test_posterior_is_the_prior_without_evidence_and_survives_extreme_evidence():
    posterior = oracle.subtype_posterior(np.array([[-5.0] * 4, [-1e4, 0.0, -1e4, -1e4]], np.float32))
    np.testing.assert_allclose(posterior[0], chain.SUBTYPE_PRIOR)
    np.testing.assert_allclose(posterior[1], [0, 1, 0, 0])


def test_recorded_probability_is_the_posterior_mean_of_the_latent_one():
    state = _state(subtype=2, sex=1, glycaemia=chain.HIGH_RISK, obesity=1)
    evidence = np.log([[0.1, 0.2, 0.3, 0.4]])
    age = np.array([3000])
    latent, recorded = oracle.oracle_probabilities("readmission_30d", np.array([state]), age, evidence)
    each = oracle.probability_by_subtype("readmission_30d", np.array([state]), age)[0]
    weights = chain.SUBTYPE_PRIOR * [0.1, 0.2, 0.3, 0.4]
    assert latent[0] == np.float32(each[2])
    assert recorded[0] == pytest.approx((weights * each).sum() / weights.sum(), rel=1e-6)


def _state(**fields) -> int:
    fields = dict.fromkeys(chain.FIELDS, 0) | fields
    return int(chain.index_of({name: np.array(value) for name, value in fields.items()}))


# Futures by other code: one array a component of the state, and hazards read off the parameter tables one by one.
# Here an acute phase is its kind and the weeks since; a stay is the weeks left in hospital.

_CASES = [
    ("diabetes_onset", 60.0, {"subtype": 0, "sex": 1, "glycaemia": chain.HIGH_RISK, "obesity": 1}, None),
    ("diabetes_onset", 39.5, {"subtype": 3, "sex": 0, "glycaemia": chain.PREDIABETES_DOWN}, ("steroid", 2)),
    ("diabetes_onset", 75.0, {"subtype": 1, "glycaemia": chain.PREDIABETES_UP, "hypertension": 1, "heart": 1}, None),
    ("diabetes_onset", 17.5, {"subtype": 0, "glycaemia": chain.IMPAIRED_UP, "obesity": 1}, ("stay", 0)),
    ("mortality_1y", 79.8, {"subtype": 1, "sex": 1, "heart": 1, "kidney": 1}, ("repeat", 0)),
    ("mortality_1y", 86.0, {"subtype": 2, "copd": 1, "hypertension": 1, "glycaemia": chain.DIABETES}, None),
    ("mortality_1y", 69.3, {"subtype": 0, "sex": 1, "heart": 1, "obesity": 1}, ("stay", 0)),
    ("readmission_30d", 72.0, {"subtype": 2, "copd": 1, "heart": 1}, ("stay", 0)),
    ("readmission_30d", 50.0, {"subtype": 3, "glycaemia": chain.DIABETES}, ("repeat", 0)),
    ("readmission_30d", 29.97, {"subtype": 0, "sex": 1, "kidney": 1}, ("stay", 0)),
]
_FIRST_PHASE = {"steroid": chain.STEROID, "stay": chain.STAY, "repeat": chain.REPEAT}


@pytest.mark.parametrize(("task", "age", "fields", "acute"), _CASES, ids=[f"{t}-{a:g}" for t, a, _, _ in _CASES])
def test_probability_equals_the_share_of_simulated_futures(task, age, fields, acute):
    num, age_weeks = 20_000, int(age * chain.WEEKS_PER_YEAR)
    fields = dict.fromkeys(chain.FIELDS, 0) | fields
    phase = _FIRST_PHASE[acute[0]] + acute[1] if acute else chain.NO_PHASE
    state = np.array([_state(**fields | {"phase": phase})])
    exact = oracle.probability_by_subtype(task, state, np.array([age_weeks]))[0, fields["subtype"]]
    share = _share_of_futures(task, fields, acute, age_weeks, num)
    assert 0.003 < exact < 0.95
    assert abs(share - exact) < 4.5 * np.sqrt(exact * (1 - exact) / num)


def _share_of_futures(task: str, fields: dict, acute, age_weeks: int, num: int) -> float:
    """Share of `num` futures, simulated week by week, in which the outcome happens within the horizon."""
    rng = np.random.default_rng(0)
    now = {name: np.full(num, value) for name, value in fields.items()}
    now |= {
        "acute": np.full(num, acute[0] if acute else "none", dtype="<U8"),
        "since": np.full(num, acute[1] if acute else 9),
    }
    now |= {"hospital": np.zeros(num, int), "dead": np.zeros(num, bool)}
    happened = np.zeros(num, bool)
    for week in range(1, 53 if task != "readmission_30d" else 5):
        event = _draw_event(_yearly_rates(now, age_weeks + week), now, rng)
        outcome = {"diabetes_onset": "diabetes", "mortality_1y": "death", "readmission_30d": "stay"}[task]
        happened |= np.char.startswith(event, outcome)
        _apply(now, event)
    return float(happened.mean())


def _draw_event(rates: dict[str, np.ndarray], now: dict, rng) -> np.ndarray:
    uniform = rng.random(len(now["dead"])) * chain.WEEKS_PER_YEAR
    event, total = np.full(len(uniform), "none", dtype="<U16"), np.zeros(len(uniform))
    for name, rate in rates.items():
        event[(uniform >= total) & (uniform < total + rate)] = name
        total += rate
    return np.where(now["dead"] | (now["hospital"] > 0), "none", event)


def _yearly_rates(now: dict, age_weeks: int) -> dict[str, np.ndarray]:
    band = sum(age_weeks >= round(year * chain.WEEKS_PER_YEAR) for year in chain.BAND_YEARS)
    level, recent = now["glycaemia"], now["since"] < 6
    causes = {name: now[name] == 1 for name in chain.DISEASES} | {"diabetes": level == chain.DIABETES}
    causes |= {kind: recent & (now["acute"] == kind) for kind in _FIRST_PHASE}

    def times(name, base):
        rate = base * chain.BY_SUBTYPE[name][now["subtype"][0]] * chain.BY_SEX[name][now["sex"][0]]
        for cause, ratio in chain.BY_STATE[name].items():
            rate = np.where(causes[cause], rate * ratio, rate)
        return rate

    up = np.array([chain.HAZARDS["up"][band], *chain.UP_FROM[1:]])
    rates = {"up": times("up", up[level]), "down": np.array(chain.DOWN_FROM)[level]}
    rates["diabetes"] = times("diabetes", np.array(chain.DIABETES_BY_GLYCAEMIA)[level] * chain.DIABETES_AGE[band])
    for name in chain.DISEASES:
        rates[name] = np.where(now[name] == 1, 0, times(name, chain.HAZARDS[name][band]))
    rates["steroid"] = np.where(causes["stay"] | causes["repeat"], 0, times("steroid", chain.HAZARDS["steroid"][band]))
    stays = np.minimum(times("stay", chain.HAZARDS["stay"][band]), chain.MAX_STAYS_A_YEAR)
    burden = now["kidney"] + now["heart"] + now["copd"]
    longer = {weeks: base + rise * burden for weeks, (base, rise) in chain.LONG_STAY.items()}
    rates |= {"stay0": stays * (1 - longer[1] - longer[2]), "stay1": stays * longer[1], "stay2": stays * longer[2]}
    rates["death"] = times("death", chain.HAZARDS["death"][band])
    return rates


def _apply(now: dict, event: np.ndarray) -> None:
    """The state after a week's events."""
    up = np.array([chain.IMPAIRED_UP, *2 * [chain.PREDIABETES_UP], *2 * [chain.HIGH_RISK], -1, -1])
    down = np.array([-1, *2 * [chain.NORMAL], *2 * [chain.IMPAIRED_DOWN], chain.PREDIABETES_DOWN, -1])
    level = now["glycaemia"]
    now["glycaemia"] = np.select(
        [event == "up", event == "down", event == "diabetes"], [up[level], down[level], 6], level
    )
    for name in chain.DISEASES:
        now[name] = now[name] | (event == name)
    now["dead"] |= event == "death"
    now["since"] += now["hospital"] == 0  # the weeks count from discharge
    now["hospital"] = np.maximum(now["hospital"] - 1, 0)
    stays = np.char.startswith(event, "stay")
    again = (now["since"] <= 6) & (now["acute"] != "steroid") & (now["acute"] != "none")
    now["acute"] = np.select([event == "steroid", stays & again, stays], ["steroid", "repeat", "stay"], now["acute"])
    now["since"][stays | (event == "steroid")] = 0
    for weeks in (1, 2):
        now["hospital"][event == f"stay{weeks}"] = weeks


# Against labels made by the cohort engine from the written files


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    out = simulate.write(folder / "tables", num_patients=900, seed=5)
    store = build_store("synthea", [out], folder / "store", settings=StoreSettings())
    return out, store


def _join(simulated, name: str, index: str):
    """(subject, label, latent, recorded) at every labelled index time; fails where the oracle has no such row."""
    out, store = simulated
    task = dataclasses.replace(TASKS[name], index=index, follow_up="dataset_end")
    labels = make_labels(store, task)
    truth = pd.read_parquet(out / "oracle.parquet", filters=[("task", "=", name)])
    truth["time"] = truth.prediction_time.astype("int64") // 1_000_000
    rows = pd.DataFrame({"subject_id": labels.subject_ids, "time": labels.times, "label": labels.values[:, 0]})
    rows = rows.merge(truth, on=["subject_id", "time"], how="left", validate="1:1")
    assert rows.probability_latent.notna().all()
    return rows


@pytest.mark.parametrize(
    ("name", "index"),
    [("diabetes_onset", "every_visit"), ("mortality_1y", "every_visit"), ("readmission_30d", "discharge")],
)
def test_labels_come_true_as_often_as_the_oracle_says(simulated, name, index):
    rows = _join(simulated, name, index)
    for form in ("probability_latent", "probability_recorded"):
        groups = np.digitize(rows[form], [0.01, 0.03, 0.1, 0.3])
        for group in [None, *np.unique(groups)]:
            part = rows if group is None else rows[groups == group]
            excess = (part.label - part[form]).groupby(part.subject_id).sum()  # patients are independent, visits not
            if len(excess) >= 30:
                assert abs(excess.sum()) < 4.5 * np.sqrt((excess**2).sum()) + 1.0, (form, group, len(part))


def test_index_times_of_the_oracle_are_the_cohort_engines(simulated):
    """Every row of the oracle is an eligible index time or lies too late to be labelled, and none is missing."""
    rows = _join(simulated, "readmission_30d", "discharge")
    assert len(rows) > 200
    assert rows.label.mean() == pytest.approx(rows.probability_recorded.mean(), abs=0.05)
