"""The figures of an experiment, in one house style that also reads in black and white."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sq.record import Record
from sq.report import table
from sq.report.table import ACTIVATION, HEADLINES

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sq.report.table import Row

# Okabe and Ito's colours, told apart by the colour-blind; marker and dash tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
PNG_DPI = 150
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


def every(records: list[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield every figure of an experiment with its name, one at a time: whoever takes one closes it."""
    yield "figure", methods(table.rows(records))
    for model, cost in table.sensitivity(records).items():
        yield f"sensitivity_{model}", heat(cost, f"{model}: cost by layer and bits")


def methods(rows: list[Row]) -> Figure:
    """Draw accuracy against weight bits, a panel for each activation bit-width, and layer error against solve time.

    One line a method, bars for seeds; the last panel shows the first activation bit-width, for layer errors do not
    depend on it.
    """
    plt = pyplot()
    panels: dict[Any, list[Row]] = {}
    for row in rows:
        panels.setdefault(row["labels"].get(ACTIVATION), []).append(row)
    names = list(dict.fromkeys(name for own in panels.values() for name in _by_method(own)))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels) + 1, figsize=(3.6 * (len(panels) + 1), 3.0), layout="constrained", squeeze=False
        )
        for panel, (bits, own) in zip(axes[0], panels.items(), strict=False):
            _accuracy(panel, own, names)
            if bits is not None:
                panel.set_title(f"activations: {bits:g} bits", fontsize=8, loc="left")
        _tradeoff(axes[0, -1], next(iter(panels.values())), names)
        axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _accuracy(axes: Axes, rows: list[Row], names: list[str]) -> None:
    for name, own in _by_method(rows).items():
        _line(axes, [row["labels"]["bits"] for row in own], [row["score"] for row in own], _look(name, names))
    full = statistics.fmean([s + d for row in rows for s, d in zip(row["score"], row["drop"], strict=True)])
    axes.axhline(full, color="0.4", linewidth=0.8, label="full precision")
    axes.set(xlabel="weight bits", ylabel=HEADLINES[rows[0]["headline"]][0])
    axes.set_xticks(sorted({row["labels"]["bits"] for row in rows}))


def _tradeoff(axes: Axes, rows: list[Row], names: list[str]) -> None:
    for name, own in _by_method(rows).items():
        seconds = [statistics.fmean(row["solve_seconds"]) for row in own]
        _line(axes, seconds, [row["relative_error"] for row in own], _look(name, names))
        for row, x in zip(own, seconds, strict=True):
            point = (x, statistics.fmean(row["relative_error"]))
            axes.annotate(f"{row['labels']['bits']:g}", point, (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="solve time (s), all layers", ylabel="mean relative output error", xscale="log", yscale="log")
    axes.set_title("numbers at the points: bits", fontsize=8, loc="right")


def _look(name: str, names: list[str]) -> dict[str, Any]:
    index = names.index(name)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markersize": 5,
        "linewidth": 1.2,
        "capsize": 2,
        "label": name,
    }


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


def png(figure: Figure) -> bytes:
    """Return `figure` as a PNG file, the same to the byte each time, and close it."""
    plt, file = pyplot(), io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(file, format="png", dpi=PNG_DPI, metadata={"Software": None})
    plt.close(figure)
    return file.getvalue()


def _line(axes: Axes, x: list[float], y: list[list[float]], look: dict[str, Any]) -> None:
    mean = [statistics.fmean(values) for values in y]
    spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in y]
    axes.errorbar(x, mean, yerr=spread if any(spread) else None, **look)


def _by_method(rows: list[Row]) -> dict[str, list[Row]]:
    """Group rows by every label but bits and activation bits, in the order in which they stand."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = " ".join(str(v) for k, v in row["labels"].items() if k not in ("bits", ACTIVATION))
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
