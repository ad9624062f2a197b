"""The figures of an experiment, in one house style that also reads in black and white."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
LEGEND = 6  # lines whose names fit into a panel; those of more stand beside it
WIDE = 16  # numbers whose largest is this many times the smallest are drawn on a logarithmic axis
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
    """Draw accuracy against weight bits, a panel for each activation bit-width, and layer error against solve time.

    One line a method, bars for seeds; the last panel shows the first activation bit-width, for layer errors do not
    depend on it. Where weight bits are the same throughout, accuracy stands against what does vary.
    """
    plt = pyplot()
    along = varied(rows)
    panels: dict[Any, list[Row]] = {}
    for row in rows:
        panels.setdefault(row["labels"].get(ACTIVATION) if along != ACTIVATION else None, []).append(row)
    names = list(dict.fromkeys(name for own in panels.values() for name in _by_method(own, along)))
    many = len(names) > LEGEND
    size = (3.6 * (len(panels) + 1) + (3.0 if many else 0.0), max(3.0, 0.17 * len(names) if many else 0.0))  # inches
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels) + 1, figsize=size, layout="constrained", squeeze=False)
        for panel, (bits, own) in zip(axes[0], panels.items(), strict=False):
            _accuracy(panel, own, names, along)
            if bits is not None:
                panel.set_title(f"activations: {bits:g} bits", fontsize=8, loc="left")
        _tradeoff(axes[0, -1], next(iter(panels.values())), names, along)
        if many:
            figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=7, loc="outside right upper")
        else:
            axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def varied(rows: list[Row]) -> str:
    """Return the label that rows differ in along an axis: weight bits, else the number that takes the most values."""
    values = {name: {row["labels"].get(name) for row in rows} for name in rows[0]["labels"]}
    numbers = {name: own for name, own in values.items() if all(type(v) in (int, float) for v in own) and len(own) > 1}
    return "bits" if "bits" in numbers or not numbers else max(numbers, key=lambda name: len(numbers[name]))


def _accuracy(axes: Axes, rows: list[Row], names: list[str], along: str) -> None:
    for name, own in _by_method(rows, along).items():
        _line(axes, [row["labels"][along] for row in own], [row["score"] for row in own], _look(name, names))
    full = statistics.fmean([s + d for row in rows for s, d in zip(row["score"], row["drop"], strict=True)])
    axes.axhline(full, color="0.4", linewidth=0.8, label="full precision")
    axes.set(xlabel={"bits": "weight bits"}.get(along, along), ylabel=HEADLINES[rows[0]["headline"]][0])
    places = sorted({row["labels"][along] for row in rows})
    if places[0] > 0 and places[-1] >= WIDE * places[0]:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()


def _tradeoff(axes: Axes, rows: list[Row], names: list[str], along: str) -> None:
    for name, own in _by_method(rows, along).items():
        seconds = [statistics.fmean(row["solve_seconds"]) for row in own]
        _line(axes, seconds, [row["relative_error"] for row in own], _look(name, names))
        for row, x in zip(own, seconds, strict=True):
            point = (x, statistics.fmean(row["relative_error"]))
            axes.annotate(f"{row['labels'][along]:g}", point, (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="solve time (s), all layers", ylabel="mean relative output error", xscale="log", yscale="log")
    axes.set_title(f"numbers at the points: {along}", fontsize=8, loc="right")


def _look(name: str, names: list[str]) -> dict[str, Any]:
    index = names.index(name)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[(index + index // len(COLOURS)) % len(DASHES)],  # another one when colours begin again
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


def _line(axes: Axes, x: list[float], y: list[list[float]], look: dict[str, Any]) -> None:
    mean = [statistics.fmean(values) for values in y]
    spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in y]
    axes.errorbar(x, mean, yerr=spread if any(spread) else None, **look)


def _by_method(rows: list[Row], along: str) -> dict[str, list[Row]]:
    """Group rows by every label but bits, activation bits and the one they differ in `along` a line, as they stand."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = " ".join(str(v) for k, v in row["labels"].items() if k not in ("bits", ACTIVATION, along))
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
