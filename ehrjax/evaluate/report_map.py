"""The map of patient embeddings: a chart that the page's script recolours, and that answers who a point is."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ehrjax.evaluate.report_blocks import Chart, EmbeddingMap, Key, escape, shortened
from ehrjax.evaluate.subgroups import AGE_BANDS, AGE_EDGES

WIDTH, HEIGHT, MARGIN = 440, 400, 12
MAX_NAMED = 6  # values of a colouring with a colour of their own; others are grey, style "n"
MAX_POINTS = 3000
LONGEST_NAME = 80
FIRST_COLOURINGS = ("disease", "cluster", "age", "outcome")
NOT_COLOURINGS = ("x", "y", "method", "top_codes")
METHOD_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


def map_block(found: Mapping[str, Any]) -> list[EmbeddingMap]:
    """The block of `embedding_map.json`; empty where no point has a place. Points carry no patient's id."""
    x, y = found.get("x") or [], found.get("y") or []
    kept = [row for row, point in enumerate(zip(x, y, strict=True)) if all(map(_is_finite, point))][:MAX_POINTS]
    if not kept:
        return []
    names = [name for name in FIRST_COLOURINGS if name in found]
    names += [name for name in found if name not in (*names, *NOT_COLOURINGS)]
    colourings = {
        name: _colouring(name, [found[name][row] for row in kept])
        for name in names
        if isinstance(found[name], list) and len(found[name]) == len(x)
    }
    codes, places = _top_codes([(found.get("top_codes") or [[]] * len(x))[row] for row in kept])
    data = {"colourings": colourings, "codes": codes, "topCodes": places}
    first = next(iter(colourings.values()), {"styles": ["0"] * len(kept), "legend": []})
    method = METHOD_NAMES.get(found.get("method", ""), str(found.get("method", "")))
    title = f"Patients by {method} of their embeddings (n = {len(kept):,})"
    chart = Chart(
        title,
        _dots([(x[row], y[row]) for row in kept], first["styles"], title),
        "each point is a patient; distances say little beyond that near is near",
        [Key("dot", style, name) for style, name in first["legend"]],
    )
    return [EmbeddingMap(chart, list(colourings), data)]


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _colouring(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Text and style of each point, and the legend as (style, text); the most frequent values have a colour."""
    texts = [_age_band(value) for value in values] if name == "age" else [_text(value) for value in values]
    counts = Counter(texts)
    order = [band for band in AGE_BANDS if band in counts] if name == "age" else _by_frequency(counts)
    style_of = {text: str(place) for place, text in enumerate(order)}
    legend = [(style, f"{text} ({counts[text]:,})") for text, style in style_of.items()]
    rest = len(texts) - sum(counts[text] for text in order)
    if rest:
        legend.append(("n", f"other or unknown ({rest:,})"))
    shown = [_age_text(value) for value in values] if name == "age" else texts
    return {"styles": [style_of.get(text, "n") for text in texts], "legend": legend, "texts": shown}


def _by_frequency(counts: Counter) -> list[str]:
    frequent = [text for text, _ in counts.most_common() if text != "unknown"][:MAX_NAMED]
    # In the order of their names, so that cluster 0 is the first colour here as in every figure.
    return sorted(frequent, key=lambda text: (not text.isdigit(), int(text) if text.isdigit() else 0, text))


def _text(value: Any) -> str:
    if value is None or value == "":
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else "unknown"
    return shortened(str(value), LONGEST_NAME)


def _age_band(value: Any) -> str:
    return AGE_BANDS[int(np.searchsorted(AGE_EDGES, value, side="right"))] if _is_finite(value) else "unknown"


def _age_text(value: Any) -> str:
    return f"{value:.0f}" if _is_finite(value) else "unknown"


def _top_codes(of_points: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """Each name once, and the points' codes as places in that list: names are long and few."""
    place: dict[str, int] = {}
    places = [[place.setdefault(str(code), len(place)) for code in codes] for codes in of_points]
    return [shortened(code, LONGEST_NAME) for code in place], places


def _dots(points: Sequence[tuple[float, float]], styles: Sequence[str], title: str) -> str:
    xy = np.array(points, np.float64)
    low = xy.min(axis=0)
    # One scale for both axes: a map that is stretched shows distances that are not there.
    span = float(np.ptp(xy, axis=0).max()) or 1.0
    size = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    offset = (size - np.ptp(xy, axis=0) / span * size.min()) / 2
    at = MARGIN + offset + (xy - low) / span * size.min()
    radius = float(np.clip(60 / math.sqrt(len(points)), 1.8, 5.0))
    circles = "".join(
        f'<circle class="d{style}" cx="{px:.1f}" cy="{HEIGHT - py:.1f}" r="{radius:.1f}"/>'
        for (px, py), style in zip(at.tolist(), styles, strict=True)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="chart map" role="img" tabindex="0"'
        f' aria-label="{escape(title)}">{circles}</svg>'
    )
