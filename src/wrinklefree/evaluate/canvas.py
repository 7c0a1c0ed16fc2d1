"""What all plots share: style, panels, axes, and SVG files of reproducible bytes.

Colours are those of Okabe and Ito, which remain distinct in the common forms of colour blindness.
matplotlib is imported when a plot is drawn; figures belong to no global state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

INK, GREY, PALE = "#222222", "#8a8a8a", "#d4d4d4"
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SERIES = (BLUE, VERMILION, GREEN, "#CC79A7", ORANGE, "#56B4E9", INK)
LINE_STYLES = ("-", "--", ":")
DENSE, TERNARY, DIFFUSION = INK, BLUE, VERMILION
MODEL_COLORS = {
    **dict.fromkeys(("base", "pruned"), DENSE),
    **dict.fromkeys(("naive", "subln", "stage2", "distill_ar"), TERNARY),
    **dict.fromkeys(("dlm", "distill_dlm"), DIFFUSION),
}
"""Of each model in bars, in curves and, where it is not that of ink, in a terminal. Against white
and black the contrast of those is over 3."""

_STYLE: dict[str, Any] = {
    "svg.hashsalt": "wrinklefree",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e9e9e9",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
}


@contextmanager
def _style() -> Iterator[None]:
    """Drawing does not depend on the user's own matplotlib settings."""
    import matplotlib

    # It lists fonts for mathematics that a machine lacks, and are not drawn with.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in _STYLE.items():
            cast(dict[str, Any], matplotlib.rcParams)[name] = value
        yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this project's style."""

    @wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return drawing


def save_svg(figure: Figure, path: Path) -> None:
    """Write ``figure``; the same numbers give the same bytes, whatever the day."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _style():
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def panels(
    rows: int, columns: int, size: tuple[float, float], **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of ``size`` inches with ``rows * columns`` axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **subplots)
    return figure, list(axes.flat)


def panel_grid(
    number: int,
    columns: int,
    panel: tuple[float, float],
    margin: tuple[float, float],
    **subplots: Any,
) -> tuple[Figure, list[Axes]]:
    """``number`` axes in lines of ``columns``; what is left of the last line is blank.

    Parameters
    ----------
    panel, margin : inches across and up that each panel takes, and the figure beside them.
    """
    rows = math.ceil(number / columns)
    size = (panel[0] * columns + margin[0], panel[1] * rows + margin[1])
    figure, axes = panels(rows, columns, size, **subplots)
    for spare in axes[number:]:
        spare.set_axis_off()
    return figure, axes[:number]


def heading(figure: Figure, text: str) -> None:
    """The figure's title, flush left."""
    figure.suptitle(text, x=0.01, ha="left")


def label_first_column(row: list[Axes], text: str) -> None:
    """Name the vertical axis once per line of panels."""
    for axes in row:
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(text)


def tokens_axis(axes: Axes) -> None:
    """Ticks such as 20 k and 1.5 M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def logarithmic(axes: Axes) -> None:
    """A logarithmic vertical axis with ticks such as 0.5, 1 and 20."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
