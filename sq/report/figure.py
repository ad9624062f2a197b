"""The figures of an experiment, in one house style that also reads in black and white."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sq.report.table import Row

# Okabe and Ito's colours, told apart by the colour-blind; marker and dash tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
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


def methods(rows: list[Row]) -> Figure:
    """Draw accuracy against bits, and layer error against solve time, one line a method, bars for seeds."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
        for index, (name, own) in enumerate(_by_method(rows).items()):
            look: dict[str, Any] = {
                "color": COLOURS[index % len(COLOURS)],
                "marker": MARKERS[index % len(MARKERS)],
                "linestyle": DASHES[index % len(DASHES)],
                "markersize": 5,
                "linewidth": 1.2,
                "capsize": 2,
                "label": name,
            }
            bits = [row["labels"]["bits"] for row in own]
            _line(left, bits, [row["top1"] for row in own], look)
            seconds = [statistics.fmean(row["solve_seconds"]) for row in own]
            _line(right, seconds, [row["relative_error"] for row in own], look)
            for row, x in zip(own, seconds, strict=True):
                point = (x, statistics.fmean(row["relative_error"]))
                right.annotate(f"{row['labels']['bits']:g}", point, (4, 4), textcoords="offset points", fontsize=7)
        full = statistics.fmean([t + d for row in rows for t, d in zip(row["top1"], row["drop"], strict=True)])
        left.axhline(full, color="0.4", linewidth=0.8, label="full precision")
        left.set(xlabel="weight bits", ylabel="top-1 (%)")
        left.set_xticks(sorted({row["labels"]["bits"] for row in rows}))
        left.legend(frameon=False, fontsize=8)
        right.set(xlabel="solve time (s), all layers", ylabel="mean relative output error", xscale="log", yscale="log")
        right.set_title("numbers at the points: bits", fontsize=8, loc="right")
    return figure


def heat(cost: pandas.DataFrame, title: str) -> Figure:
    """Draw each layer's cost at each bit-width as a map, logarithmic, with the figures in the cells."""
    plt = pyplot()
    from matplotlib.colors import LogNorm

    values = cost.to_numpy(dtype=float)
    positive = values[values > 0]
    floor = positive.min() if positive.size else 1e-12
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (1.8 + 0.75 * len(cost.columns), 0.8 + 0.24 * len(cost))
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        norm = LogNorm(floor, max(values.max(), floor * 10))
        image = axes.imshow(values.clip(min=floor), norm=norm, cmap="cividis", aspect="auto")
        for (y, x), value in _cells(values):
            dark = norm(max(value, floor)) < 0.5
            axes.text(x, y, f"{value:.1e}", ha="center", va="center", fontsize=6, color="white" if dark else "black")
        axes.set_xticks(range(len(cost.columns)), cost.columns)
        axes.set_yticks(range(len(cost)), cost.index, fontsize=7)
        axes.set(xlabel="bits", title=title)
        figure.colorbar(image, ax=axes, label="cost")
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `figure` as SVG and PDF, without dates, and close it; return the files."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        figure.savefig(stem.with_suffix(".pdf"), metadata={"CreationDate": None, "Creator": None, "Producer": None})
    plt.close(figure)
    return [stem.with_suffix(".svg"), stem.with_suffix(".pdf")]


def _line(axes: Axes, x: list[float], y: list[list[float]], look: dict[str, Any]) -> None:
    mean = [statistics.fmean(values) for values in y]
    spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in y]
    axes.errorbar(x, mean, yerr=spread if any(spread) else None, **look)


def _by_method(rows: list[Row]) -> dict[str, list[Row]]:
    """Group rows by every label but bits, in the order in which they stand."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = " ".join(str(v) for k, v in row["labels"].items() if k != "bits")
        groups.setdefault(name, []).append(row)
    return groups


def _cells(values: Any) -> list[tuple[tuple[int, int], float]]:
    return [((y, x), float(values[y, x])) for y in range(values.shape[0]) for x in range(values.shape[1])]


def pyplot() -> Any:
    """Return matplotlib.pyplot, set to draw without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
