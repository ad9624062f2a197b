"""The house style of every figure, in print and on pages: told apart by the colour-blind, and in black and white."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, their yellow, which grey print loses, replaced by Tol's wine; marker and
# dash tell lines apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
MOST = 2 * len(MARKERS)  # lines in one panel: beyond it two would have the same marker
PNG_DPI = 150
FULL = "full precision"  # the name of its line
NAME, LETTER = 0.62, 0.062  # inches of a legend's line and of one letter of its name
PLACES = 6  # of a position in a figure, in its sizes: a hundredth of a thousandth of an inch
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


def look(index: int, size: float = 5) -> dict[str, Any]:
    """Return colour, marker (of `size` points) and dash of the line `index`; after 8 lines markers are hollow."""
    colour, turn = COLOURS[index % len(COLOURS)], index // len(COLOURS)
    return {
        "color": colour,
        "marker": MARKERS[index % len(MARKERS)],
        "markerfacecolor": "white" if turn % 2 else colour,
        "linestyle": DASHES[(index + turn) % len(DASHES)],
        "markersize": size,
        "linewidth": 1.2,
    }


def line(axes: Axes, x: list[float], y: list[list[float]], index: int, name: str) -> None:
    """Draw means of `y`, whose lists are of seeds, against `x` as the line `index`; bars are standard deviations."""
    mean = [statistics.fmean(values) for values in y]
    spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in y]
    axes.errorbar(
        x, mean, yerr=spread if any(spread) else None, capsize=2, label=name, **look(index)
    )


def legend(figure: Figure, axes: Any, across: int) -> None:
    """Put the names of all panels' lines below them, each once, full precision last.

    `across` of them stand in a row, or as many as the figure is wide enough for.
    """
    lines: dict[str, Any] = {}
    for panel in axes.flat:
        lines |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    names = sorted(lines, key=lambda name: name == FULL)
    handles = [lines[name] for name in names]
    widest = NAME + LETTER * max(map(len, names))
    columns = max(1, min(across, len(names), int(figure.get_figwidth() / widest)))
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `figure` as SVG and PDF, without dates, and close it; return the files.

    By the backends themselves: `Figure.savefig` draws twice for each format, and lays out anew.
    """
    plt = pyplot()
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.transforms import Bbox

    with plt.rc_context(STYLE):
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)
            figure.set_layout_engine("none")
            # The layout's last digits differ from process to process, and ids in the file follow
            # from them.
            for axes in figure.axes:
                axes.set_position(Bbox(axes.get_position(original=True).get_points().round(PLACES)))
        vectors, pages = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.pdf")
        FigureCanvasSVG(figure).print_svg(vectors, metadata={"Date": None, "Creator": None})
        FigureCanvasPdf(figure).print_pdf(
            pages, metadata={"CreationDate": None, "Creator": None, "Producer": None}
        )
    plt.close(figure)
    return [vectors, pages]


def png(figure: Figure) -> bytes:
    """Return `figure` as a PNG file, the same to the byte each time, and close it."""
    plt, file = pyplot(), io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=PNG_DPI, metadata={"Software": None})
    plt.close(figure)
    return file.getvalue()


def plain_decades(*axes: Axis) -> None:
    """Label logarithmic axes 0.01, 0.1, 1: shorter than powers of ten, and drawn in a fraction of the time."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            # it leaves out what would crowd the axis
            return f"{x:g}" if super().__call__(x, pos) else ""

    for axis in axes:
        axis.set_major_formatter(Plain())
        axis.set_minor_formatter(Plain())


def pyplot() -> Any:
    """Return matplotlib.pyplot, set to draw without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
