"""Charts and tables of a report."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: as it is read.
        value: what the column is sorted by; None is always last.
        best: whether it is the best of its column.
        notes: numbers of footnotes.
        detail: in small letters below the text.
    """

    text: str
    value: float | None = None
    best: bool = False
    notes: tuple[int, ...] = ()
    detail: str = ""


EMPTY = Cell("")


@dataclass(frozen=True)
class Column:
    """Head of a column, with a second line."""

    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Rows:
    """Rows that stay together however the table is sorted; the first cell of each is its name."""

    title: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """A table with groups of rows."""

    caption: str
    columns: Sequence[Column]
    groups: Sequence[Rows]


def number(value: float, form: str = ",.3f") -> Cell:
    """A cell for a number."""
    return Cell(format(value, form), value)


# Charts of a report: SVG for a page's own HTML, in colours that the page's style sheet sets.

# matplotlib wants real colours; each stands for a variable of the style sheet, so that a page can turn dark.
_INK, _GRID = "#000001", "#000002"
_SERIES = tuple(f"#0000{number:02x}" for number in range(0xA1, 0xAA))
_VARIABLES = {
    _INK: "var(--muted)",
    _GRID: "var(--rule)",
    **{colour: f"var(--c{number})" for number, colour in enumerate(_SERIES, start=1)},
}
COLOURS = len(_SERIES)
_MARKERS = "osD^vPX*h"
_SIZE = (4.1, 2.7)
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.labelsize": 9,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 7),
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": _INK,
}


@dataclass(frozen=True)
class Series:
    """One line, or the points of one thing.

    Attributes:
        name: what it is.
        points: x and y.
        colour: 0 to `COLOURS` - 1.
        deviations: of each y, where several were measured; drawn as bars.
        markers: whether each point is marked.
        line: whether points are joined.
        labels: beside each point, where there is something to say.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    deviations: Sequence[float] = ()
    markers: bool = True
    line: bool = True
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """A chart on a page.

    Attributes:
        title: above it.
        svg: safe to stand in HTML.
        summary: for who can't see it.
    """

    title: str
    svg: str
    summary: str


def require_matplotlib() -> None:
    """Fail now, before anything is measured.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(f"the report's charts need matplotlib ({error}): pip install matplotlib") from error


def draw(
    identifier: str,
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    categories: Sequence[str] = (),
    summary: str = "",
) -> Chart:
    """Draw a chart; the same data gives the same bytes.

    Args:
        identifier: unlike that of any other chart of the page; begins with a letter.
        title: for the page; it is not drawn.
        series: what to draw.
        x: name of the axis.
        y: name of the axis.
        log_x: whether x is logarithmic.
        categories: names of x = 0, 1, …, where x is no number.
        summary: what it shows; by default it says where each series begins and ends.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_style(identifier)):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        if log_x:
            axes.set_xscale("log")
        for one in series:
            _draw_series(axes, one)
        _label_axes(axes, series, x, y, log_x, categories)
        svg = _svg(figure, identifier)
    summary = summary or "; ".join(_summary(one) for one in series if one.points)
    return Chart(title, svg, f"{title}; {y or 'value'} by {x}. {summary}")


def swatch(identifier: str, colour: int) -> str:
    """A line with its marker, for a legend in HTML.

    Args:
        identifier: unlike that of any chart of the page; begins with a letter.
        colour: as in `Series`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_style(identifier)):
        figure = Figure(figsize=(0.4, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 2), ylim=(-1, 1))
        _draw_series(axes, Series("", [(0, 0), (1, 0), (2, 0)], colour=colour), marked=[1])
    return _svg(figure, identifier)


def _style(identifier: str) -> Any:
    """Settings of matplotlib, under which the same drawing gives the same ids."""
    return {**_STYLE, "svg.hashsalt": identifier}


def _draw_series(axes: "Axes", series: Series, marked: Sequence[int] | None = None) -> None:
    colour = _SERIES[series.colour % COLOURS]
    xs, ys = zip(*series.points, strict=True) if series.points else ((), ())
    if series.deviations:
        axes.errorbar(xs, ys, series.deviations, fmt="none", ecolor=colour, elinewidth=1, capsize=2)
    marker = _MARKERS[series.colour % COLOURS] if series.markers else ""
    width = 1.5 if series.line else 0
    axes.plot(xs, ys, color=colour, linewidth=width, marker=marker, markersize=5, markevery=marked)
    for point, label in zip(series.points, series.labels, strict=False):
        axes.annotate(label, point, xytext=(6, 4), textcoords="offset points", fontsize=8.5)


def _label_axes(axes: "Axes", series: Sequence[Series], x: str, y: str, log_x: bool, categories: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(x=0.05, y=0.12)
    thousands = FuncFormatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(thousands)
    if categories:
        axes.set_xticks(range(len(categories)), categories)
    elif log_x:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(thousands)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(thousands)


def _summary(series: Series) -> str:
    (x_first, y_first), (x_last, y_last) = series.points[0], series.points[-1]
    if len(series.points) == 1:
        return f"{series.name}: {y_first:.4g} at {x_first:,.6g}"
    return f"{series.name}: from {y_first:.4g} at {x_first:,.6g} to {y_last:.4g} at {x_last:,.6g}"


def _svg(figure: "Figure", identifier: str) -> str:
    """A figure as a part of a page: no addresses, ids of its own, the page's fonts and colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', ' aria-hidden="true" focusable="false"', svg, count=1)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    # Groups are numbered alike in every chart, and shapes are named after what they look like.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{identifier}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub("#0000[0-9a-f]{2}", lambda match: _VARIABLES.get(match[0], match[0]), svg)
    return re.sub(r"\n\s*", "\n", svg)
