"""What the figures have in common: colours and dashes, panels, legends, and how they are written.

Colours are those of Okabe and Ito, told apart by colour-blind readers; lines also differ by dash. Figures are built
without pyplot, so nothing is shown, kept open or changed for a caller's own plots.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ehrjax.evaluate.files import replaced

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)), (0, (8, 3)))
GREY = "#767676"


def wilson_interval(
    rate: Float[np.ndarray, "n"], count: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """95 % interval of a rate observed in `count` rows (Wilson, 1927, JASA 22:209)."""
    z = 1.96
    centre = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


def colour_of(index: int) -> str:
    """Colour of the system at this place."""
    return COLOURS[index % len(COLOURS)]


def dash_of(index: int) -> Any:
    """Line style of the system at this place."""
    return DASHES[index % len(DASHES)]


def add_legend(axes: Axes, loc: str = "above") -> None:
    """A legend where there is something to explain; its place is given, since looking for the best one is slow."""
    if not axes.get_legend_handles_labels()[0]:
        return
    if loc == "above":
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, fontsize=8)
    else:
        axes.legend(loc=loc)


def single_panel(title: str, size: tuple[float, float] = (5.6, 5.0), pad: float = 6) -> tuple[Figure, Axes]:
    """A figure of one panel; `size` in inches, `pad` in points between title and panel."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, pad=pad)
    tidy_axes(axes)
    return figure, axes


def panel_grid(num_panels: int, *, title: str, columns: int = 3, height: float = 3.2) -> tuple[list[Axes], Figure]:
    """A figure of so many panels, row by row; `height` of each in inches."""
    columns = min(columns, num_panels)
    num_rows = math.ceil(num_panels / columns)
    figure = Figure(figsize=(4.2 * columns, height * num_rows + 0.3), layout="constrained")
    axes_list = list(np.ravel(figure.subplots(num_rows, columns)))
    for axes in axes_list[:num_panels]:
        tidy_axes(axes)
    for axes in axes_list[num_panels:]:
        axes.remove()
    figure.suptitle(title)
    return axes_list[:num_panels], figure


def tidy_axes(axes: Axes) -> None:
    """No frame at the top and right, a faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E0E0E0", linewidth=0.6)
    axes.set_axisbelow(True)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG file, whole or not at all."""
    canvas = FigureCanvasAgg(figure)
    with replaced(path) as partial, partial.open("wb") as file:
        canvas.print_png(file, pil_kwargs={"compress_level": 6})
