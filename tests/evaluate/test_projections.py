"""Maps of patients: too few, all alike, one column; the same seed; groups stay apart."""

import importlib.util

import numpy as np
import pytest
from sklearn.decomposition import PCA

from ehrjax.evaluate import projections as module
from ehrjax.evaluate.clusters import standardised
from ehrjax.evaluate.projections import METHODS, principal_components, project


def _vectors(num_patients=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_patients, 6)) + 6 * (np.arange(num_patients) % 2)[:, None]


def _is_apart(points):
    centres = [points[start::2].mean(axis=0) for start in (0, 1)]
    return np.linalg.norm(centres[0] - centres[1]) > 2 * max(points[start::2].std() for start in (0, 1)) ** 0.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("vectors", [np.zeros((0, 3)), np.ones((1, 3)), np.ones((50, 3)), np.eye(3)])
def test_too_few_different_patients_have_no_map_but_a_reason(method, vectors):
    found = project(vectors, method)
    assert found.points is None and "4 are needed" in found.reason and len(found.rows) == len(vectors)


def test_pca_equals_scikit_learn_up_to_sign():
    vectors = standardised(_vectors())
    components, explained = principal_components(vectors)
    pca = PCA().fit(vectors)
    np.testing.assert_allclose(np.abs(components), np.abs(pca.transform(vectors)), atol=1e-9)
    np.testing.assert_allclose(explained, pca.explained_variance_ratio_)
    found = project(_vectors(), "pca")
    np.testing.assert_allclose(found.points, components[:, :2])
    assert found.explained == pytest.approx(explained[:2].sum()) and _is_apart(found.points)
    assert np.corrcoef(found.points[:, 0], _vectors().mean(axis=1))[0, 1] > 0.9  # the largest loading is positive


def test_vectors_of_one_column_are_a_line():
    found = project(np.arange(5.0)[:, None], "pca")
    assert found.points.shape == (5, 2) and (found.points[:, 1] == 0).all() and found.explained == 1
    assert np.isfinite(project(np.arange(5.0)[:, None], "tsne").points).all()


@pytest.mark.parametrize("num_patients", [4, 40])
def test_tsne_is_the_same_for_the_same_seed(num_patients):
    vectors = _vectors(num_patients)
    first, again = (project(vectors, "tsne", seed=2).points for _ in range(2))
    assert first.shape == (num_patients, 2) and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)


def test_groups_are_apart_in_tsne():
    assert _is_apart(project(_vectors(), "tsne").points)


def test_umap_is_the_same_for_the_same_seed_and_keeps_groups_apart():
    pytest.importorskip("numba", reason="umap-learn needs numba")
    if importlib.util.find_spec("umap") is None:
        pytest.skip("umap-learn is not installed")
    first, again = (project(_vectors(), "umap", seed=2).points for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert _is_apart(first)
    assert np.isfinite(project(_vectors(4), "umap").points).all()


def test_without_umap_there_is_a_message(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    found = project(_vectors(), "umap")
    assert found.points is None and "pip install 'ehrjax[umap]'" in found.reason


def test_of_many_patients_some_are_drawn_by_seed(monkeypatch):
    monkeypatch.setattr(module, "MAX_PROJECTED", 10)
    found = [project(_vectors(), "pca", seed=seed) for seed in (0, 0, 1)]
    assert found[0].points.shape == (10, 2) and (np.diff(found[0].rows) > 0).all()
    assert found[0].rows.tolist() == found[1].rows.tolist() != found[2].rows.tolist()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="method='lda' is unknown: use pca, tsne, umap"):
        project(_vectors(), "lda")
    with pytest.raises(ValueError, match="patient 3 is not finite"):
        project(np.where(np.arange(40)[:, None] == 3, np.inf, _vectors()), "pca")
    with pytest.raises(ValueError, match=r"shape \(40,\)"):
        project(np.zeros(40), "pca")
