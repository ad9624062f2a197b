"""The style of all figures, in print and on pages: for colour-blind readers and grey print too."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, with Tol's wine in place of their yellow, which grey print loses. There,
# marker and dash tell lines apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
MAX_LINES = 2 * len(MARKERS)  # in one panel: more would share a marker
PNG_DPI = 150
FULL = "full precision"  # the name of its line in tables and legends
HANDLE_INCHES, LETTER_INCHES = 0.62, 0.062  # of a legend's line, and of one letter of its name
POSITION_DIGITS = 6  # of a panel's position, in sizes of the figure: about a 100,000th of an inch
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "sq",  # the same ids in every build
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


def line_style(index: int, size: float = 5) -> dict[str, Any]:
    """Return colour, marker (of `size` points) and dash of line number `index`.

    After 8 lines the colours start again, with hollow markers.
    """
    colour = COLOURS[index % len(COLOURS)]
    turn = index // len(COLOURS)
    return {
        "color": colour,
        "marker": MARKERS[index % len(MARKERS)],
        "markerfacecolor": "white" if turn % 2 else colour,
        "linestyle": DASHES[(index + turn) % len(DASHES)],
        "markersize": size,
        "linewidth": 1.2,
    }


def draw_line(axes: Axes, x: list[float], y: list[list[float]], index: int, name: str) -> None:
    """Draw the means of `y` against `x` as line number `index`, with error bars.

    Parameters
    ----------
    y : for each point, the values of its seeds; bars are their standard deviation
    """
    means, deviations = [], []
    for seeds in y:
        means.append(statistics.fmean(seeds))
        # One seed has no standard deviation.
        deviations.append(statistics.stdev(seeds) if len(seeds) > 1 else 0.0)
    bars = deviations if any(deviations) else None
    axes.errorbar(x, means, yerr=bars, capsize=2, label=name, **line_style(index))


def draw_full_precision(axes: Axes, score: float) -> None:
    """Draw the score of full precision as a grey line."""
    axes.axhline(score, color="0.4", linewidth=0.8, label=FULL)


def legend(figure: Figure, axes: Any, across: int) -> None:
    """Put the names of all panels' lines below them, each once, full precision last.

    `across` of them stand in a row, or as many as the figure is wide enough for.
    """
    handle_of_name: dict[str, Any] = {}
    for panel in axes.flat:
        handles, names = panel.get_legend_handles_labels()
        handle_of_name |= dict(zip(names, handles, strict=True))
    names = sorted(handle_of_name, key=lambda name: name == FULL)
    handles = [handle_of_name[name] for name in names]
    widest = HANDLE_INCHES + LETTER_INCHES * max(map(len, names))
    columns = max(1, min(across, len(names), int(figure.get_figwidth() / widest)))
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `figure` as SVG and PDF, without dates, and close it; return the files.

    The backends are called directly: `Figure.savefig` draws twice for each format, and lays out
    again.
    """
    plt = pyplot()
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg = stem.with_name(f"{stem.name}.svg")
    pdf = stem.with_name(f"{stem.name}.pdf")
    with plt.rc_context(STYLE):
        _fix_layout(figure)  # once, for both formats
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
        FigureCanvasPdf(figure).print_pdf(
            pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None}
        )
    plt.close(figure)  # pyplot would keep it
    return [svg, pdf]


def _fix_layout(figure: Figure) -> None:
    """Lay the figure out once, at rounded positions.

    The layout's last digits differ from process to process, and ids in the SVG depend on them.
    """
    from matplotlib.transforms import Bbox

    layout = figure.get_layout_engine()
    if layout is None:
        return
    layout.execute(figure)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        corners = axes.get_position(original=True).get_points()
        axes.set_position(Bbox(corners.round(POSITION_DIGITS)))


def png(figure: Figure) -> bytes:
    """Return `figure` as a PNG file, the same to the byte each time, and close it."""
    plt = pyplot()
    file = io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=PNG_DPI, metadata={"Software": None})
    plt.close(figure)
    return file.getvalue()


def plain_decades(*axes: Axis) -> None:
    """Label logarithmic axes 0.01, 0.1, 1: shorter than powers of ten, and faster to draw."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            shown = super().__call__(x, pos)  # "" where labels would crowd the axis
            return f"{x:g}" if shown else ""

    for axis in axes:
        axis.set_major_formatter(Plain())
        axis.set_minor_formatter(Plain())


def pyplot() -> Any:
    """Return matplotlib.pyplot, set to draw without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
