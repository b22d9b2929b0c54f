"""Patient vectors in two dimensions: PCA, t-SNE and, where umap-learn is installed, UMAP.

Distances in t-SNE and UMAP maps mean little beyond "near is near": figures are taken from the vectors themselves.
"""

import importlib
import importlib.util
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.manifold import TSNE

from ehrjax.evaluate.clusters import check_vectors, sample_rows, standardised
from ehrjax.wording import counted

METHODS = ("pca", "tsne", "umap")
MAX_PROJECTED = 3000  # patients: t-SNE of more takes minutes, and a map of more is a blot
MAX_COMPONENTS = 50  # of the vectors that t-SNE and UMAP see
MIN_PROJECTED = 4  # patients


class Projection(NamedTuple):
    """A map of some patients (`rows` of the vectors), or why there is none."""

    method: str
    rows: Int[np.ndarray, "n"]
    points: Float[np.ndarray, "n 2"] | None
    explained: float | None = None  # PCA: share of the variance that the two axes show
    reason: str = ""


def project(vectors: Float[np.ndarray, "P D"], method: str, *, seed: int = 0) -> Projection:
    """A map by `pca`, `tsne` or `umap` of at most 3,000 patients drawn by `seed`; the same seed gives the same map.

    Columns are standardised; t-SNE (perplexity 30) and UMAP (15 neighbours) see PCA's first 50 axes and start from its
    first two, so that the maps lie alike. `points` is None, with a reason, for fewer than four different patients and
    where umap-learn is missing. Raises ValueError for another method or a vector that is not finite.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use {', '.join(METHODS)}.")
    vectors = check_vectors(vectors)
    rows = sample_rows(len(vectors), MAX_PROJECTED, seed)
    num_different = len(np.unique(vectors[rows], axis=0))
    if num_different < MIN_PROJECTED:
        different = counted(num_different, "different patient")
        return Projection(method, rows, None, reason=f"{different}, {MIN_PROJECTED} are needed")
    if method == "umap" and importlib.util.find_spec("umap") is None:
        return Projection(method, rows, None, reason="umap-learn is not installed: pip install 'ehrjax[umap]'")
    components, explained = principal_components(standardised(vectors[rows]))
    start = components[:, :2] / components[:, 0].std()
    if method == "pca":
        return Projection(method, rows, components[:, :2], float(explained[:2].sum()))
    points = (_tsne if method == "tsne" else _umap)(components[:, :MAX_COMPONENTS], start, seed)
    return Projection(method, rows, points.astype(np.float64))


def principal_components(
    vectors: Float[np.ndarray, "n D"],
) -> tuple[Float[np.ndarray, "n C"], Float[np.ndarray, "C"]]:
    """Coordinates along the axes of falling variance (at least two columns), and each one's share of the variance.

    The largest loading of an axis is positive, so that a map does not flip between machines.
    """
    centred = vectors - vectors.mean(axis=0)
    u, scale, loadings = np.linalg.svd(centred, full_matrices=False)
    largest = np.take_along_axis(loadings, np.abs(loadings).argmax(axis=1)[:, None], axis=1)[:, 0]
    components = u * scale * np.where(largest < 0, -1.0, 1.0)
    missing = max(2 - components.shape[1], 0)
    variance = np.pad(scale**2, (0, missing))
    return np.pad(components, ((0, 0), (0, missing))), variance / max(variance.sum(), 1e-300)


def _tsne(components: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    perplexity = min(30.0, (len(components) - 1) / 3)
    return TSNE(init=1e-4 * start, perplexity=perplexity, random_state=seed).fit_transform(components)


def _umap(components: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about TensorFlow, about threads that a seed rules out
        umap = importlib.import_module("umap")  # takes seconds, hence only here
        num_neighbours = min(15, len(components) - 1)
        model = umap.UMAP(n_neighbors=num_neighbours, init=10 * start, random_state=seed, n_jobs=1)
        return np.asarray(model.fit_transform(components))
