"""The ceiling of subtype recovery: a calibrated posterior of whole records, and figures in their range."""

import json

import numpy as np

from ehrjax.data import simulate_chain as chain
from ehrjax.data.simulate import simulate
from experiments.benchmarks import subtype_ceiling


def test_posterior_of_whole_records_beats_the_prior_and_belongs_to_its_patient(monkeypatch):
    posterior, states, years = subtype_ceiling.last_visits(150, seed=3)
    assert len(posterior) == len(states) == len(years) == 150 and (years >= 0).all()
    named = posterior.argmax(axis=1) == chain.fields_of(states)["subtype"]
    assert named.mean() > 0.6 and abs(named.mean() - posterior.max(axis=1).mean()) < 0.15
    latest = simulate(150, 3).index
    of_one = latest.subject_id == latest.subject_id.min()
    assert states[0] == latest.state[of_one][latest.time[of_one].argmax()]
    monkeypatch.setattr(subtype_ceiling, "BLOCK_PATIENTS", 100)
    np.testing.assert_allclose(np.sort(subtype_ceiling.last_visits(150, seed=3)[2]), np.sort(years))


def test_figures_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subtype_ceiling, "RECORD_YEARS", (0,))
    subtype_ceiling.main(["--num-patients=120", f"--out={tmp_path / 'ceiling.json'}"])
    results = json.loads((tmp_path / "ceiling.json").read_text())
    assert results == json.loads(capsys.readouterr().out)
    (figures,) = results["subtype"].values()
    assert 0.3 < figures["ari"] < 0.95 and figures["num_patients"] == 120
    assert (
        figures["by_named_subtype"]["posterior"]["silhouette"] > figures["by_true_subtype"]["posterior"]["silhouette"]
    )
    assert results["disease"]["all_diseases"]["silhouette"] < 1
