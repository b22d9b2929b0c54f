"""Explanations of single patients as charts: which visits and codes moved the risk, and the risk after each visit."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ehrjax.evaluate.explain_plots import NUM_NAMED, top_codes, visit_times
from ehrjax.evaluate.report_blocks import Chart, Charts, Fold, Heading, Paragraph
from ehrjax.evaluate.report_charts import Bar, Series, bar_chart, line_chart
from ehrjax.evaluate.tables import digits

MAX_EXPLAINED = 5
RAISES, LOWERS = 1, 0  # styles


def explanation_blocks(tables: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """A few tables of `explain_patients` as charts, the first open.

    Patients are numbered in the order given: an id, or a row number, would lead back to a person.
    """
    if tables:
        yield Paragraph(
            "Attributions by integrated gradients, in log-odds: what moved this model, not what causes the outcome."
        )
    for place, table in enumerate(tables[:MAX_EXPLAINED], 1):
        risk = table.get("risk")
        title = f"Patient {place}" + (f", risk {digits(risk)}" if risk is not None else "")
        visits = table.get("visits") or []
        charts = [*_visit_charts(visits), *_code_chart(visits)]
        if charts:
            yield Heading(title) if place == 1 else Fold(title, [Charts(charts)])
            if place == 1:
                yield Charts(charts)


def _visit_charts(visits: Sequence[Mapping[str, Any]]) -> list[Chart]:
    if not visits:
        return []
    times, label = visit_times(visits)
    times, values = times.tolist(), [visit["attribution"] for visit in visits]
    limits = (min(times) - 0.5, max(times) + 0.5)
    series = [Series("", limits, (0.0, 0.0), is_reference=True)]
    for name, style, sign in (("raises the risk", RAISES, 1), ("lowers the risk", LOWERS, -1)):
        rows = [row for row, value in enumerate(values) if value is not None and sign * value > 0]
        of_sign = [values[row] for row in rows]
        low, high = [min(value, 0.0) for value in of_sign], [max(value, 0.0) for value in of_sign]
        at = [times[row] for row in rows]
        series.append(Series(name, at, of_sign, low, high, has_line=False, has_points=True, style=style))
    moved = line_chart("Visits that moved the risk", series, xlabel=label, ylabel="attribution (logit)", xlim=limits)
    risks = [visit.get("risk_after") for visit in visits]
    top = 1.15 * max((risk for risk in risks if risk is not None), default=0.0) or 0.01
    after = Series("risk", times, risks, is_step=True, has_points=True, style=2)
    return moved + line_chart(
        "Risk had the record ended with each visit", [after], xlabel=label, ylabel="risk", xlim=limits, ylim=(0.0, top)
    )


def _code_chart(visits: Sequence[Mapping[str, Any]]) -> list[Chart]:
    bars = []
    for number, code in top_codes(visits, NUM_NAMED):
        value = code["attribution"]
        style = RAISES if value > 0 else LOWERS
        bars.append(Bar(f"visit {number}: {code['description']}", value, f"{value:+.3f}", style=style))
    return bar_chart("Codes that moved it most", bars)
