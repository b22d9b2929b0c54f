"""The oracle against futures simulated by other code, and against the labels of the cohort engine."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ehrjax.data import oracle, simulate
from ehrjax.data import simulate_chain as chain
from ehrjax.data.build import build_store
from ehrjax.data.cohorts import make_labels
from ehrjax.data.labels import Labels
from ehrjax.data.store import StoreSettings
from ehrjax.data.tasks import TASKS, Task
from experiments.oracle import evaluate_oracle

DAY, WEEK = oracle.DAY, oracle.WEEK
NOON = DAY // 2


def by_subtype(task, state, age_weeks, offset=NOON):
    """P(outcome | subtype) of one state, [4]."""
    one = (np.array([value]) for value in (state, age_weeks, offset))
    return oracle.probability_by_subtype((task,), *one)[0, 0]


def test_no_rows_give_no_probabilities():
    none = np.zeros(0, np.int64)
    assert oracle.probability_by_subtype(("readmission_30d", "time_to_readmission"), none, none, none).shape == (
        2,
        0,
        4,
    )


def test_unknown_task_is_refused():
    with pytest.raises(KeyError, match="length_of_stay"):
        by_subtype("length_of_stay", 0, 0)


def test_tasks_of_different_events_and_states_past_the_outcome_are_refused():
    healthy, one = np.array([_state()]), np.array([3000])
    with pytest.raises(ValueError, match="same events"):
        oracle.probability_by_subtype(("mortality_1y", "diabetes_onset"), healthy, one, one)
    with pytest.raises(ValueError, match="at_risk"):
        by_subtype("time_to_ckd_hf", _state(heart=1), 3000)


def test_every_task_of_the_oracle_is_a_shipped_one():
    for name, task in oracle.ORACLE_TASKS.items():
        shipped, _, condition = name.partition("--")
        assert TASKS[shipped].horizon_days == task.horizon_days
        assert not condition or condition in dict(TASKS[shipped].conditions)


def test_windows_hold_whole_weeks_and_a_chance_of_one_more():
    offsets = np.array([NOON, DAY + 7 * 3600 - 1, DAY + 13 * 3600 - 1, DAY + 19 * 3600 - 1, int(4.5 * DAY)])
    weeks, chance = oracle.weeks_ahead("time_to_readmission", offsets)  # 90 days are 13 weeks less a day
    assert weeks.tolist() == [12, 12, 12, 13, 13]
    np.testing.assert_allclose(chance, [0, 0, 0.5, 0, 0])
    for task, whole in (("diabetes_onset", 52), ("mortality_1y", 52), ("readmission_30d", 4)):
        weeks, chance = oracle.weeks_ahead(task, np.arange(7 * 3600, int(4.9 * DAY), 1800))
        assert set(weeks) == {whole} and not chance.any()


def test_more_time_is_more_risk_and_tasks_solved_together_are_solved_alone():
    state, age = np.array([_state(glycaemia=chain.HIGH_RISK)] * 3), np.array([1990, 2040, 2400])
    tasks, offset = ("diabetes_onset", "time_to_diabetes"), np.full(3, NOON)
    together = oracle.probability_by_subtype(tasks, state, age, offset)
    assert (together[1] > together[0]).all()
    for task, values in zip(tasks, together, strict=True):
        np.testing.assert_allclose(values, oracle.probability_by_subtype((task,), state, age, offset)[0], atol=1e-6)


def test_age_bands_are_crossed_as_one_week_at_a_time_would():
    """The compressed walk back over a birthday against plain backward steps, each with the band of its own week."""
    task, state = "time_to_ckd_hf", _state(subtype=1, hypertension=1)
    events, block = oracle.ORACLE_TASKS[task].events, 2  # of subtype 1 and sex 0
    birthday = int(chain.BAND_WEEKS[4])
    for before in (1, 20, 100, 155):
        position = oracle._at_risk_positions(events, block)[state % oracle._BLOCK]
        values = 0.0
        for week in range(156, 0, -1):
            band = 5 if week > before else 4
            matrix, outcome = oracle._transitions(events, block, band)
            values = matrix @ values + outcome if week < 156 else outcome
        assert by_subtype(task, state, birthday - 1 - before)[1] == pytest.approx(values[position], abs=1e-6)


def test_posterior_is_the_prior_without_evidence_and_survives_extreme_evidence():
    posterior = oracle.subtype_posterior(np.array([[-5.0] * 4, [-1e4, 0.0, -1e4, -1e4]], np.float32))
    np.testing.assert_allclose(posterior[0], chain.SUBTYPE_PRIOR)
    np.testing.assert_allclose(posterior[1], [0, 1, 0, 0])


def test_recorded_probability_is_the_posterior_mean_of_the_latent_one():
    state = _state(subtype=2, sex=1, glycaemia=chain.HIGH_RISK, obesity=1)
    evidence = np.log([[0.1, 0.2, 0.3, 0.4]])
    age = np.array([3000])
    offset = np.array([NOON])
    latent, recorded = oracle.oracle_probabilities(("readmission_30d",), np.array([state]), age, offset, evidence)
    each = by_subtype("readmission_30d", state, 3000)
    weights = chain.SUBTYPE_PRIOR * [0.1, 0.2, 0.3, 0.4]
    assert latent[0, 0] == np.float32(each[2])
    assert recorded[0, 0] == pytest.approx((weights * each).sum() / weights.sum(), rel=1e-6)


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
    ("time_to_diabetes", 38.2, {"subtype": 0, "sex": 1, "glycaemia": chain.PREDIABETES_UP}, ("steroid", 1)),
    ("time_to_ckd_hf", 69.0, {"subtype": 1, "hypertension": 1, "glycaemia": chain.DIABETES}, None),
    ("time_to_death", 78.5, {"subtype": 1, "sex": 1, "heart": 1}, ("stay", 0)),
    ("time_to_readmission", 72.0, {"subtype": 2, "copd": 1}, ("stay", 0)),
    ("conditions_1y--hypertension", 59.5, {"subtype": 1, "obesity": 1, "kidney": 1}, None),
    ("conditions_1y--copd", 65.0, {"subtype": 2}, None),
]
_OUTCOMES = {
    "diabetes_onset": ("diabetes",),
    "time_to_diabetes": ("diabetes",),
    "mortality_1y": ("death",),
    "time_to_death": ("death",),
    "readmission_30d": ("stay0", "stay1", "stay2"),
    "time_to_readmission": ("stay0", "stay1", "stay2"),
    "time_to_ckd_hf": ("kidney", "heart"),
    "conditions_1y--hypertension": ("hypertension",),
    "conditions_1y--copd": ("copd",),
}
_DAYS = {"1y": 365, "onset": 365, "30d": 30, "readmission": 90}  # by the end of the name, else three years
# Days since the start of the index week. At 1.5 and 4.5 days the windows end while a week's events are recorded.
_OFFSET_DAYS = {"time_to_readmission": 1.5, "time_to_death": 4.5}
_FIRST_PHASE = {"steroid": chain.STEROID, "stay": chain.STAY, "repeat": chain.REPEAT}


@pytest.mark.parametrize(("task", "age", "fields", "acute"), _CASES, ids=[f"{t}-{a:g}" for t, a, _, _ in _CASES])
def test_probability_equals_the_share_of_simulated_futures(task, age, fields, acute):
    num, age_weeks = 20_000, int(age * chain.WEEKS_PER_YEAR)
    offset = int(_OFFSET_DAYS.get(task, 0.5) * DAY)
    fields = dict.fromkeys(chain.FIELDS, 0) | fields
    phase = _FIRST_PHASE[acute[0]] + acute[1] if acute else chain.NO_PHASE
    exact = by_subtype(task, _state(**fields | {"phase": phase}), age_weeks, offset)[fields["subtype"]]
    share = _share_of_futures(task, fields, acute, age_weeks, offset, num)
    assert 0.003 < exact < 0.95
    assert abs(share - exact) < 4.5 * np.sqrt(exact * (1 - exact) / num)


def _share_of_futures(task: str, fields: dict, acute, age_weeks: int, offset: int, num: int) -> float:
    """Share of `num` futures, simulated week by week, in which the outcome is recorded within the horizon's seconds."""
    rng = np.random.default_rng(0)
    now = {name: np.full(num, value) for name, value in fields.items()}
    now |= {
        "acute": np.full(num, acute[0] if acute else "none", dtype="<U8"),
        "since": np.full(num, acute[1] if acute else 9),
    }
    now |= {"hospital": np.zeros(num, int), "dead": np.zeros(num, bool)}
    happened = np.zeros(num, bool)
    last_second = offset + DAY * next((d for end, d in _DAYS.items() if task.partition("--")[0].endswith(end)), 1095)
    for week in range(1, last_second // WEEK + 1):
        event = _draw_event(_yearly_rates(now, age_weeks + week), now, rng)
        hours = rng.random(num) * 20 if "death" in _OUTCOMES[task] else 7 + rng.random(num) * 12
        happened |= np.isin(event, _OUTCOMES[task]) & (week * WEEK + hours * 3600 <= last_second)
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


def _truth(simulated, name: str) -> pd.DataFrame:
    truth = pd.read_parquet(simulated[0] / "oracle.parquet", filters=[("task", "=", name)])
    truth["time"] = truth.prediction_time.astype("int64") // 1_000_000
    return truth


def _labels(simulated, name: str) -> tuple[Task, Labels]:
    """Labels at all index times of a shipped task."""
    task = replace(TASKS[name], max_rows_per_patient=None, follow_up="dataset_end")
    return task, make_labels(simulated[1], task)


def _join(simulated, name: str) -> pd.DataFrame:
    """(subject, label, latent, recorded) at every index time with a whole window; fails where the oracle lacks one."""
    task, labels = _labels(simulated, name.partition("--")[0])
    k = labels.names.index(name.partition("--")[2]) if "--" in name else 0
    value, known = labels.values[:, k], labels.mask[:, k]
    if labels.kind == "survival":
        value = labels.values[:, 1] == 1
        known = labels.times + task.horizon_days * DAY <= simulated[1].manifest["last_time"]
    rows = pd.DataFrame({"subject_id": labels.subject_ids, "time": labels.times, "label": value.astype(float)})[known]
    rows = rows.merge(_truth(simulated, name), on=["subject_id", "time"], how="left", validate="1:1")
    assert rows.probability_latent.notna().all()
    return rows


@pytest.mark.parametrize("name", oracle.ORACLE_TASKS)
def test_labels_come_true_as_often_as_the_oracle_says(simulated, name):
    rows = _join(simulated, name)
    assert len(rows) > 200
    for form in ("probability_latent", "probability_recorded"):
        groups = np.digitize(rows[form], [0.01, 0.03, 0.1, 0.3])
        for group in [None, *np.unique(groups)]:
            part = rows if group is None else rows[groups == group]
            excess = (part.label - part[form]).groupby(part.subject_id).sum()  # patients are independent, visits not
            if len(excess) >= 30:
                assert abs(excess.sum()) < 4.5 * np.sqrt((excess**2).sum()) + 1.0, (form, group, len(part))


@pytest.mark.parametrize("name", oracle.ORACLE_TASKS)
def test_index_times_of_the_oracle_are_the_cohort_engines(simulated, name):
    """Both have the same rows, but for those too late in the data to be labelled."""
    task, labels = _labels(simulated, name.partition("--")[0])
    k = labels.names.index(name.partition("--")[2]) if "--" in name else 0
    engine = set(zip(labels.subject_ids[labels.mask[:, k]], labels.times[labels.mask[:, k]], strict=True))
    truth = _truth(simulated, name)
    end = simulated[1].manifest["last_time"]
    early = truth.time < end if labels.kind == "survival" else truth.time + task.horizon_days * DAY <= end
    assert engine == set(zip(truth.subject_id[early], truth.time[early], strict=True))


# The figures of a run


def test_figures_of_the_oracle(simulated):
    out, _ = simulated
    survival = evaluate_oracle("time_to_ckd_hf", out, _labels(simulated, "time_to_ckd_hf")[1])
    assert 0.7 < survival["c_index"] < survival["latent_c_index"] < 0.95
    assert {"auc_1095d", "brier_1095d", "latent_c_index_ipcw"} <= survival.keys()
    conditions = evaluate_oracle("conditions_1y", out, _labels(simulated, "conditions_1y")[1])
    assert 0.7 < conditions["macro_auroc"] < 0.95
    binary = evaluate_oracle("mortality_1y", out, _labels(simulated, "mortality_1y")[1])
    assert set(binary) == {f"{form}{name}" for form in ("", "latent_") for name in ("auroc", "auprc", "brier")}


def test_tasks_without_an_oracle_have_no_figures_and_foreign_rows_are_named(simulated):
    out, _ = simulated
    labels = _labels(simulated, "time_to_readmission")[1]
    assert evaluate_oracle("time_to_other", out, labels._replace(name="time_to_other")) is None
    assert evaluate_oracle("length_of_stay", out, labels._replace(kind="regression")) is None
    with pytest.raises(ValueError, match="no time_to_readmission row for subject"):
        evaluate_oracle("time_to_readmission", out, labels._replace(times=labels.times + 1))
