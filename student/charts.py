"""Charts as SVG for a page's own HTML, in colors that the page's style sheet sets."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib wants real colors; each stands for a variable of the style sheet, so that a page can turn dark.
_INK, _GRID = "#000001", "#000002"
_MARKERS = "osD^vPX*h"
_SERIES = [f"#0000{0xA1 + number:02x}" for number in range(len(_MARKERS))]
_VARIABLES = {_INK: "var(--muted)", _GRID: "var(--rule)"}
_VARIABLES |= {color: f"var(--c{number})" for number, color in enumerate(_SERIES, start=1)}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": _INK,
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
}
_TICKS = {"color": _INK, "major.size": 0, "minor.size": 0, "labelsize": 9}
_STYLE |= {f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()}


@dataclass(frozen=True)
class Series:
    """One line, or the points of one thing."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    """Place among the page's colors and markers, which repeat."""
    deviations: Sequence[float] = ()
    """Standard deviation of each y, drawn as bars."""
    markers: bool = True
    line: bool = True
    """True if points are joined."""
    labels: Sequence[str] = ()
    """Text next to each point."""

    def describe(self) -> str:
        """Return the first and the last point."""
        (x_first, y_first), (x_last, y_last) = self.points[0], self.points[-1]
        if len(self.points) == 1:
            return f"{self.name}: {y_first:.4g} at {x_first:,.6g}"
        return f"{self.name}: from {y_first:.4g} at {x_first:,.6g} to {y_last:.4g} at {x_last:,.6g}"


@dataclass(frozen=True)
class Chart:
    """A chart on a page."""

    title: str
    svg: str
    """Safe to stand in HTML."""
    summary: str
    """For readers who can't see it."""


def require_matplotlib() -> None:
    """Fail now, before anything is read, if matplotlib is not installed."""
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

    `identifier` is unlike that of any other chart of the page, and begins with a letter. `categories` are the names of
    x = 0, 1, …, if x is no number. `summary` says what the chart shows, by default the ends of each series.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    with mpl.rc_context({**_STYLE, "svg.hashsalt": identifier}):
        figure = Figure(figsize=(4.1, 2.7), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=x, ylabel=y, xscale="log" if log_x else "linear")
        axes.margins(x=0.05, y=0.12)
        for one in series:
            _draw_series(axes, one)
        thousands = FuncFormatter(lambda value, _: f"{value:,.10g}")
        axes.yaxis.set(major_locator=MaxNLocator(5), major_formatter=thousands)
        if categories:
            axes.set_xticks(range(len(categories)), categories)
        else:
            axes.xaxis.set(major_locator=LogLocator(subs=(1, 3)) if log_x else MaxNLocator(5))
            axes.xaxis.set(minor_locator=NullLocator(), major_formatter=thousands)
        svg = _svg(figure, identifier)
    summary = summary or "; ".join(one.describe() for one in series if one.points)
    return Chart(title, svg, f"{title}; {y or 'value'} by {x}. {summary}")


def swatch(identifier: str, color: int) -> str:
    """Draw a line with its marker, for a legend in HTML; arguments as in `draw` and `Series`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.hashsalt": identifier}):
        figure = Figure(figsize=(0.4, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 2), ylim=(-1, 1))
        _draw_series(axes, Series("", [(0, 0), (1, 0), (2, 0)], color=color), marked=[1])
        return _svg(figure, identifier)


def _draw_series(axes: "Axes", series: Series, marked: Sequence[int] | None = None) -> None:
    color, marker = (of[series.color % len(_MARKERS)] for of in (_SERIES, _MARKERS))
    xs, ys = zip(*series.points, strict=True) if series.points else ((), ())
    if series.deviations:
        axes.errorbar(xs, ys, series.deviations, fmt="none", ecolor=color, elinewidth=1, capsize=2)
    # A line of one point would be invisible.
    marker = marker if series.markers or len(series.points) == 1 else ""
    width = 1.5 if series.line else 0
    axes.plot(xs, ys, color=color, linewidth=width, marker=marker, markersize=5, markevery=marked)
    for point, label in zip(series.points, series.labels, strict=False):
        axes.annotate(label, point, xytext=(6, 4), textcoords="offset points", fontsize=8.5)


def _svg(figure: "Figure", identifier: str) -> str:
    """Write a figure as a part of a page: no addresses, ids of its own, the page's fonts and colors."""
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
