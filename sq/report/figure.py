"""The figures of an experiment: accuracy against bits, error against time, and the price of bits in each layer."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sq.config.constraints import FLOAT
from sq.records.record import Record
from sq.report import latency, learning, mixed, prices
from sq.report.labels import ACTIVATION, NETWORK, network, telling
from sq.report.style import FULL, MOST, STYLE, legend, line, plain_decades, pyplot
from sq.report.table import HEADLINES

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sq.report.table import Row

MOST_NETWORKS = 8  # rows of panels
DODGE = 0.05  # bits between two lines, so that one's bars do not hide the other's
WIDE = 16  # numbers whose largest is this many times the smallest are drawn on a logarithmic axis


def every(rows: list[Row], records: list[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield every figure of an experiment with its name, one at a time: whoever takes one closes it."""
    yield "figure", methods(rows)
    for name, cost in prices.tables(records).items():
        yield prices.stem(name), heat(cost, f"{name}: cost by layer and bits")
    yield from mixed.figures(records)
    yield from learning.figures(rows, records)
    yield from latency.figures(rows, records)


def methods(rows: list[Row]) -> Figure:
    """Draw accuracy against weight bits, and mean layer error against solve time; a row of panels for each network.

    One line a method, bars for seeds (standard deviation); a panel for each bit-width of
    activations. The last panel shows the highest of these, for layer errors do not depend on it.
    Where weight bits are the same throughout, accuracy stands against what does vary. What is too
    much for one figure is left to the page, and the figure says so.
    """
    plt = pyplot()
    along = varied(rows)
    rows = _telling(rows, along)
    networks = _by(rows, network)
    shown = dict(list(networks.items())[:MOST_NETWORKS])
    inputs = sorted({_panel(row, along) for row in rows}, reverse=True)
    names = list(dict.fromkeys(line_name(row, along) for own in shown.values() for row in own))[
        :MOST
    ]
    columns = _by(rows, lambda row: _panel(row, along), inputs)
    widths = [2.2 + 0.5 * min(8, len(_places(own, along))) for own in columns.values()]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(shown),
            len(inputs) + 1,
            figsize=(sum(widths) + 3.6, 2.7 * len(shown) + 0.3 + 0.18 * (1 + len(names) // 6)),
            layout="constrained",
            squeeze=False,
            width_ratios=[*widths, 3.6],
        )
        for panels, (name, own) in zip(axes, shown.items(), strict=True):
            words = {
                bits: _title(name, bits if len(inputs) > 1 or bits != FLOAT else None)
                for bits in inputs
            }
            _row(panels, own, words, names, along)
        legend(figure, axes, 6)
        if note := _left_out(networks, names, along):
            figure.suptitle(note, fontsize=8)
    return figure


def _telling(rows: list[Row], along: str) -> list[Row]:
    """Return the rows without labels that differ from network to network only, for each network has its own panels."""
    kept = {"method", "bits", ACTIVATION, along, *NETWORK, *telling(_by(rows, network).values())}
    told = ({name: value for name, value in row["labels"].items() if name in kept} for row in rows)
    return [{**row, "labels": labels} for row, labels in zip(rows, told, strict=True)]


def varied(rows: list[Row]) -> str:
    """Return the label that rows differ in along an axis: weight bits, else the number that takes the most values."""
    values = {name: {row["labels"].get(name) for row in rows} for name in rows[0]["labels"]}
    numbers = {
        name: own
        for name, own in values.items()
        if all(type(v) in (int, float) for v in own) and len(own) > 1
    }
    return (
        "bits"
        if "bits" in numbers or not numbers
        else max(numbers, key=lambda name: len(numbers[name]))
    )


def _row(
    panels: Any, rows: list[Row], titles: dict[int, str], names: list[str], along: str
) -> None:
    """Draw the panels of one network, by their bits of activations."""
    groups = _by(rows, lambda row: _panel(row, along), list(titles))
    for panel, (bits, own) in zip(panels, groups.items(), strict=False):
        if own:
            _accuracy(panel, own, names, along)
            panel.set_title(titles[bits], fontsize=8, loc="left")
        else:
            panel.set_axis_off()
    _tradeoff(panels[-1], groups[max(bits for bits, own in groups.items() if own)], names, along)


def _accuracy(axes: Axes, rows: list[Row], names: list[str], along: str) -> None:
    ticks = _places(rows, along)
    wide = ticks[0] > 0 and ticks[-1] >= WIDE * ticks[0]
    dodge = 0.0 if along != "bits" else DODGE if len(ticks) > 1 else 3 * DODGE
    for name, own in _lines(rows, names, along).items():
        shift = dodge * (names.index(name) - (len(names) - 1) / 2)
        own = sorted(own, key=lambda row: row["labels"][along])
        places = [row["labels"][along] + shift for row in own]
        line(axes, places, [row["score"] for row in own], names.index(name), name)
    full = statistics.fmean(
        [s + d for row in rows for s, d in zip(row["score"], row["drop"], strict=True)]
    )
    axes.axhline(full, color="0.4", linewidth=0.8, label=FULL)
    axes.margins(x=0.06 if len(ticks) > 1 else 0.15)
    axes.set(
        xlabel={"bits": "weight bits"}.get(along, along), ylabel=HEADLINES[rows[0]["headline"]][0]
    )
    if wide:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{place:g}" for place in ticks])
    axes.minorticks_off()
    axes.grid(visible=False, axis="x")


def _tradeoff(axes: Axes, rows: list[Row], names: list[str], along: str) -> None:
    for name, own in _lines(rows, names, along).items():
        seconds = [statistics.fmean(row["solve_seconds"]) for row in own]
        line(axes, seconds, [row["relative_error"] for row in own], names.index(name), name)
        for row, x in zip(own, seconds, strict=True):
            point = (x, statistics.fmean(row["relative_error"]))
            axes.annotate(
                f"{row['labels'][along]:g}", point, (4, 4), textcoords="offset points", fontsize=7
            )
    axes.set(
        xlabel="solve time (s), all layers",
        ylabel="mean relative output error",
        xscale="log",
        yscale="log",
    )
    plain_decades(axes.xaxis, axes.yaxis)
    axes.set_title(f"numbers at the points: {along}", fontsize=8, loc="right")


def heat(cost: pandas.DataFrame, title: str) -> Figure:
    """Draw each layer's cost at each bit-width as a map, logarithmic, with the figures in the cells.

    Where a layer has no price, as one with settled bits has none at others, the cell is empty.
    """
    plt = pyplot()
    from matplotlib.colors import LogNorm

    values = cost.to_numpy(dtype=float)
    positive = values[values > 0]
    floor = positive.min() if positive.size else 1e-12
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (1.8 + 0.75 * len(cost.columns), 0.8 + 0.24 * len(cost))
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        norm = LogNorm(floor, max(positive.max(initial=0.0), floor * 10))
        image = axes.imshow(values.clip(min=floor), norm=norm, cmap="cividis", aspect="auto")
        for (y, x), value in _cells(values):
            dark = norm(max(value, floor)) < 0.5
            text = axes.text(x, y, f"{value:.1e}", ha="center", va="center", fontsize=6)
            # inside its cell: costs half the time
            text.set(color="white" if dark else "black", in_layout=False)
        axes.set_xticks(range(len(cost.columns)), cost.columns)
        axes.set_yticks(range(len(cost)), cost.index, fontsize=7)
        axes.set(xlabel="bits", title=title)
        plain_decades(figure.colorbar(image, ax=axes, label="cost").ax.yaxis)
    return figure


def _by(rows: list[Row], what: Any, order: list[Any] | None = None) -> dict[Any, list[Row]]:
    """Group `rows` by what `what` returns of them, in `order` or else as they stand."""
    groups: dict[Any, list[Row]] = {value: [] for value in order or []}
    for row in rows:
        groups.setdefault(what(row), []).append(row)
    return groups


def _lines(rows: list[Row], names: list[str], along: str) -> dict[str, list[Row]]:
    return {
        name: own
        for name, own in _by(rows, lambda row: line_name(row, along)).items()
        if name in names
    }


def _title(name: str, activation_bits: int | None) -> str:
    words = "" if activation_bits is None else f"activations: {activation_bits:g} bits"
    return ", ".join(text for text in (name, words) if text)


def _panel(row: Row, along: str) -> int:
    """Return the bits of activations, whose runs share a panel, unless they are what accuracy stands against."""
    return FLOAT if along == ACTIVATION else row["labels"].get(ACTIVATION, FLOAT)


def line_name(row: Row, along: str) -> str:
    """Return every label but those of panels, the bits, and what accuracy stands against, in one name."""
    apart = ("bits", ACTIVATION, along, *NETWORK)
    return " ".join(str(value) for name, value in row["labels"].items() if name not in apart)


def _places(rows: list[Row], along: str) -> list[float]:
    return sorted({row["labels"][along] for row in rows})


def _left_out(networks: dict[str, list[Row]], names: list[str], along: str) -> str:
    """Return what the figure does not show; "" if it shows everything."""
    lines = {line_name(row, along) for own in networks.values() for row in own}
    parts = [
        f"{len(names)} of {len(lines)} lines" if len(lines) > len(names) else "",
        f"{MOST_NETWORKS} of {len(networks)} networks" if len(networks) > MOST_NETWORKS else "",
    ]
    return (
        " and ".join(part for part in parts if part) + " shown; all: index.html"
        if any(parts)
        else ""
    )


def _cells(values: Any) -> list[tuple[tuple[int, int], float]]:
    every = (
        ((y, x), float(values[y, x]))
        for y in range(values.shape[0])
        for x in range(values.shape[1])
    )
    return [(place, value) for place, value in every if value == value]  # NaN is not
