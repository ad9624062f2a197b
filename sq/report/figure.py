"""The figures of an experiment: accuracy against bits, error against time, sensitivities."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sq.config.constraints import FLOAT
from sq.records.record import Record
from sq.report import latency, learning, mixed, sensitivities
from sq.report.labels import ACTIVATION, NETWORK, differing, network
from sq.report.rows import Row, full_precision, grouped, omit, optional, select, values
from sq.report.style import (
    MAX_LINES,
    STYLE,
    draw_full_precision,
    draw_line,
    legend,
    plain_decades,
    pyplot,
)
from sq.report.table import HEADLINES

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NETWORKS = 8  # rows of panels
DODGE = 0.05  # bits between two lines, so that their error bars do not overlap
LOG_RATIO = 16  # an axis is logarithmic if its largest value is this many times the smallest
AXIS_TITLES = {"bits": "weight bits"}  # of labels whose name would be unclear
TRADEOFF_WIDTH = 3.6  # inches of the panel of error against time


def all_figures(rows: list[Row], records: list[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield every figure of an experiment with its name, one at a time; the caller closes it."""
    yield "figure", methods(rows)
    for name, cost in sensitivities.tables(records).items():
        yield sensitivities.stem(name), heat(cost, f"{name}: cost by layer and bits")
    yield from mixed.figures(records)
    yield from learning.figures(rows, records)
    yield from latency.figures(rows, records)


def methods(rows: list[Row]) -> Figure:
    """Draw accuracy against weight bits, and mean layer error against solve time, by network.

    A network has a row of panels: one for each bit-width of activations, and one for error against
    time, at the highest of these, since layer errors do not depend on it. A line is a method, with
    bars for seeds (standard deviation). Where weight bits are the same throughout, accuracy stands
    against what does vary. What is too much for one figure is left to the page, and the figure
    says so.
    """
    plt = pyplot()
    along = varied(rows)
    rows = _without_network_labels(rows, along)
    networks = grouped(rows, network)
    shown = dict(list(networks.items())[:MAX_NETWORKS])
    by_activation_bits = grouped(rows, lambda row: _panel(row, along))
    columns = sorted(by_activation_bits, reverse=True)
    names = _line_names(shown, along)[:MAX_LINES]
    widths = []  # inches of each column of panels
    for activation_bits in columns:
        positions = _positions(by_activation_bits[activation_bits], along)
        widths.append(2.2 + 0.5 * min(8, len(positions)))
    widths.append(TRADEOFF_WIDTH)
    legend_height = 0.18 * (1 + len(names) // 6)  # inches; six names a row
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(shown),
            len(columns) + 1,
            figsize=(sum(widths), 2.7 * len(shown) + 0.3 + legend_height),
            layout="constrained",
            squeeze=False,
            width_ratios=widths,
        )
        for panels, (name, members) in zip(axes, shown.items(), strict=True):
            _network_row(panels, members, _panel_titles(name, columns), names, along)
        legend(figure, axes, 6)
        # The page shows everything: a reader of the figure has to know.
        note = _left_out(networks, names, along)
        if note:
            figure.suptitle(note, fontsize=8)
    return figure


def _without_network_labels(rows: list[Row], along: str) -> list[Row]:
    """Return `rows` without labels that differ between networks only, which have own panels."""
    names = {"method", "bits", ACTIVATION, along, *NETWORK}
    names.update(differing(grouped(rows, network).values()))
    result = []
    for row in rows:
        labels = select(row["labels"], names)
        result.append({**row, "labels": labels})
    return result


def varied(rows: list[Row]) -> str:
    """Return the label of the axis: weight bits if they vary, else the number with most values."""
    labels = values(rows, "labels")
    count_of_number = {}  # by label
    for name in rows[0]["labels"]:
        distinct_values = set(optional(labels, name))
        is_number = {type(value) for value in distinct_values} <= {int, float}
        if is_number and len(distinct_values) > 1:
            count_of_number[name] = len(distinct_values)
    if "bits" in count_of_number or not count_of_number:
        return "bits"
    return max(count_of_number, key=lambda name: count_of_number[name])


def _panel_titles(network: str, columns: list[int]) -> dict[int, str]:
    """Return the titles of a network's panels, by bits of activations."""
    titles = {}
    for bits in columns:
        parts = [network] if network else []
        if len(columns) > 1 or bits != FLOAT:
            parts.append(f"activations: {bits:g} bits")
        titles[bits] = ", ".join(parts)
    return titles


def _network_row(
    panels: Any, rows: list[Row], titles: dict[int, str], names: list[str], along: str
) -> None:
    """Draw the panels of one network, by bits of activations, then its error against time."""
    groups = grouped(rows, lambda row: _panel(row, along))
    for panel, (bits, title) in zip(panels, titles.items(), strict=False):
        if bits in groups:
            _accuracy(panel, groups[bits], names, along)
            panel.set_title(title, fontsize=8, loc="left")
        else:
            panel.set_axis_off()
    _tradeoff(panels[-1], groups[max(groups)], names, along)


def _accuracy(axes: Axes, rows: list[Row], names: list[str], along: str) -> None:
    """Draw the accuracy of each line against label `along`."""
    ticks = _positions(rows, along)
    dodge = _dodge(along, len(ticks))
    for name, members in _lines(rows, names, along).items():
        index = names.index(name)
        # A line has the same shift in all panels, and the shifts have their middle at 0.
        shift = dodge * (index - (len(names) - 1) / 2)
        ordered = sorted(members, key=lambda row: row["labels"][along])
        positions = [value + shift for value in values(ordered, "labels", along)]
        draw_line(axes, positions, values(ordered, "score"), index, name)
    draw_full_precision(axes, full_precision(rows))
    axes.margins(x=0.06 if len(ticks) > 1 else 0.15)
    axes.set(xlabel=AXIS_TITLES.get(along, along), ylabel=HEADLINES[rows[0]["headline"]][0])
    if ticks[0] > 0 and ticks[-1] >= LOG_RATIO * ticks[0]:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(visible=False, axis="x")


def _dodge(along: str, ticks: int) -> float:
    """Return how far apart lines stand at one position, in bits; 0 along other labels."""
    if along != "bits":
        return 0.0
    if ticks == 1:
        return 3 * DODGE  # a single position leaves more room
    return DODGE


def _tradeoff(axes: Axes, rows: list[Row], names: list[str], along: str) -> None:
    """Draw the layer error of each line against solve time, with label `along` at the points."""
    for name, members in _lines(rows, names, along).items():
        seconds = list(map(statistics.fmean, values(members, "solve_seconds")))
        errors = values(members, "relative_error")
        draw_line(axes, seconds, errors, names.index(name), name)
        for row, x in zip(members, seconds, strict=True):
            point = (x, statistics.fmean(row["relative_error"]))
            text = f"{row['labels'][along]:g}"
            axes.annotate(text, point, (4, 4), textcoords="offset points", fontsize=7)
    axes.set(
        xlabel="solve time (s), all layers",
        ylabel="mean relative output error",
        xscale="log",
        yscale="log",
    )
    plain_decades(axes.xaxis, axes.yaxis)
    axes.set_title(f"numbers at the points: {along}", fontsize=8, loc="right")


def heat(cost: pandas.DataFrame, title: str) -> Figure:
    """Draw each layer's cost at each bit-width as a heat map, on a logarithmic scale.

    A cell is empty where a layer has no cost: one with fixed bits has none at others.
    """
    plt = pyplot()
    from matplotlib.colors import LogNorm

    costs = cost.to_numpy(dtype=float)
    positive = costs[costs > 0]
    floor = positive.min() if positive.size else 1e-12  # zeros have no logarithm
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (1.8 + 0.75 * len(cost.columns), 0.8 + 0.24 * len(cost))  # inches
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        norm = LogNorm(floor, max(positive.max(initial=0.0), floor * 10))
        image = axes.imshow(costs.clip(min=floor), norm=norm, cmap="cividis", aspect="auto")
        for y, line in enumerate(costs.tolist()):
            for x, value in enumerate(line):
                if value != value:  # NaN: no cost
                    continue
                is_dark = norm(max(value, floor)) < 0.5  # the lower half of cividis
                text = axes.text(x, y, f"{value:.1e}", ha="center", va="center", fontsize=6)
                # Out of the layout, which takes half the time then: a text stays in its cell.
                text.set(color="white" if is_dark else "black", in_layout=False)
        axes.set_xticks(range(len(cost.columns)), cost.columns)
        axes.set_yticks(range(len(cost)), cost.index, fontsize=7)
        axes.set(xlabel="bits", title=title)
        plain_decades(figure.colorbar(image, ax=axes, label="cost").ax.yaxis)
    return figure


def _lines(rows: list[Row], names: list[str], along: str) -> dict[str, list[Row]]:
    """Return the rows of each line that is among `names`."""
    return select(grouped(rows, lambda row: line_name(row, along)), names)


def _line_names(networks: dict[str, list[Row]], along: str) -> list[str]:
    """Return the names of the lines of all `networks`, each once, in order."""
    rows = itertools.chain.from_iterable(networks.values())
    return list(grouped(rows, lambda row: line_name(row, along)))


def _panel(row: Row, along: str) -> int:
    """Return the bits of activations, which have a panel each unless they are the axis."""
    if along == ACTIVATION:
        return FLOAT
    return row["labels"].get(ACTIVATION, FLOAT)


def line_name(row: Row, along: str) -> str:
    """Return the name of a row's line: its labels, but for those of panels, bits, and `along`."""
    excluded = ("bits", ACTIVATION, along, *NETWORK)
    return " ".join(map(str, omit(row["labels"], excluded).values()))


def _positions(rows: list[Row], along: str) -> list[float]:
    """Return the values of label `along` in `rows`, in ascending order."""
    return sorted(set(values(rows, "labels", along)))


def _left_out(networks: dict[str, list[Row]], names: list[str], along: str) -> str:
    """Return what the figure does not show; "" if it shows everything."""
    parts = []
    lines = len(_line_names(networks, along))
    if lines > len(names):
        parts.append(f"{len(names)} of {lines} lines")
    if len(networks) > MAX_NETWORKS:
        parts.append(f"{MAX_NETWORKS} of {len(networks)} networks")
    if not parts:
        return ""
    return " and ".join(parts) + " shown; all: index.html"
