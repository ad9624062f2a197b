"""Mixed precision in tables and figures: rank correlation of sensitivities, chosen bits, fronts."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sq.records.record import Record
from sq.report.labels import NETWORK, Labels, as_text, texts
from sq.report.rows import frame, mean, mean_cell, optional, values
from sq.report.style import COLOURS, STYLE, draw_full_precision, line_style, pyplot

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COEFFICIENTS = ("spearman", "kendall")
FULL_BITS = 32  # of a layer that is not quantized


def correlations(records: list[Record]) -> pandas.DataFrame | None:
    """Return how well each metric's sensitivities rank the measured losses; None without any.

    The best metric of a network comes first. Mean +- standard deviation over seeds; the interval
    is that of one run, its bounds averaged over seeds.
    """
    measured = [record for record in records if "spearman" in record.get("results", {})]
    lines = []
    for labels, members in Labels(measured).groups():
        networks = [str(labels.get(name)) for name in NETWORK]
        best_first = -mean(members, "results", "spearman")  # as lower sorts first
        lines.append((networks, best_first, _correlation_line(labels, members)))
    lines.sort(key=lambda entry: entry[:2])
    return frame([line for *_, line in lines])


def _correlation_line(labels: dict[str, Any], members: list[Record]) -> dict[str, Any]:
    """Return the cells of one metric, see `correlations`."""
    line: dict[str, Any] = texts(labels, without=("bits",))
    for name in COEFFICIENTS:
        low = mean(members, "results", f"{name}_low")
        high = mean(members, "results", f"{name}_high")
        line[name] = mean_cell(values(members, "results", name), ".3f")
        line[f"{name} 95 %"] = f"[{low:.3f}, {high:.3f}]"
    line["metric s"] = mean_cell(values(members, "seconds", "sensitivity"), ".1f")
    line["trials"] = str(len(members[0]["trials"]["list"]))
    line["runs"] = str(len(members))
    return line


def figures(records: list[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures that there are records for, with their names: one a kind and network."""
    correlated, allocated, fronted = [], [], []
    for record in records:
        if record["status"] != "done":
            continue
        if "spearman" in record["results"]:
            correlated.append(record)
        if record.get("allocation"):
            allocated.append(record)
        if record.get("trials", {}).get("front"):
            fronted.append(record)
    kinds = (
        ("correlation", correlation_bars, correlated),
        ("bits", bits_map, allocated),
        ("front", fronts, fronted),
    )
    for kind, draw, members in kinds:
        by_model: dict[str, list[Record]] = {}
        for record in members:
            by_model.setdefault(record["choices"]["model"], []).append(record)
        for model in sorted(by_model):
            yield f"{kind}_{model}", draw(by_model[model], model)


def correlation_bars(records: list[Record], title: str) -> Figure:
    """Draw the rank correlation of each metric with measured losses, with 95 % intervals.

    The best metric is on top.
    """
    plt = pyplot()
    groups = _by_name(records)
    names = sorted(groups, key=lambda name: mean(groups[name], "results", "spearman"))
    members = [groups[name] for name in names]
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(5.4, 1.0 + 0.32 * len(names)), layout="constrained")
        # Hatches tell the two apart in grey print.
        _bars(axes, members, "spearman", shift=0.2, color=COLOURS[0], hatch="")
        _bars(axes, members, "kendall", shift=-0.2, color=COLOURS[1], hatch="///")
        axes.set_yticks(range(len(names)), names)
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set(xlabel="rank correlation of prices with measured loss", title=title)
        axes.legend(
            frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2
        )
    return figure


def _bars(
    axes: Axes, groups: list[list[Record]], coefficient: str, shift: float, **style: Any
) -> None:
    """Draw one coefficient of each group of records, with its 95 % interval."""
    lengths, below, above = [], [], []
    for members in groups:
        value = mean(members, "results", coefficient)
        lengths.append(value)
        below.append(value - mean(members, "results", f"{coefficient}_low"))
        above.append(mean(members, "results", f"{coefficient}_high") - value)
    axes.barh(
        [position + shift for position in range(len(groups))],
        lengths,
        0.38,
        edgecolor="white",
        label=coefficient,
        xerr=[below, above],
        capsize=2,
        error_kw={"linewidth": 0.8},
        **style,
    )


def bits_map(records: list[Record], title: str) -> Figure:
    """Draw the bits of each layer's weights, seeds averaged; a column is a metric and budget."""
    plt = pyplot()
    groups = _by_name(records)
    layers = list(_layer_bits(records[0]))  # records of one network have the same
    columns = [_mean_bits(members, layers) for members in groups.values()]
    table = list(zip(*columns, strict=True))  # a line for each layer
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (2.2 + 0.42 * len(groups), 1.9 + 0.19 * len(layers))
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        # The scale is of 2 to 8 bits; more has the colour of 8.
        image = axes.imshow(table, cmap="cividis", aspect="auto", vmin=2, vmax=8)
        for y, cells in enumerate(table):
            for x, bits in enumerate(cells):
                text = axes.text(x, y, f"{bits:.2g}", ha="center", va="center", fontsize=6)
                # Out of the layout, which takes half the time then: a text stays in its cell.
                text.set(color="white" if bits < 5 else "black", in_layout=False)
        axes.set_xticks(range(len(groups)), list(groups), rotation=90, fontsize=7)
        axes.set_yticks(range(len(layers)), layers, fontsize=6)
        axes.set_title(f"{title}: bits of weights", fontsize=8)
        figure.colorbar(image, ax=axes, label="bits")
    return figure


def _mean_bits(records: list[Record], layers: list[str]) -> list[float]:
    """Return the bits of each layer, mean over records; a layer without bits is not quantized."""
    bits_of_run = list(map(_layer_bits, records))
    return [statistics.fmean(optional(bits_of_run, layer, FULL_BITS)) for layer in layers]


def fronts(records: list[Record], title: str) -> Figure:
    """Draw accuracy against the mean bits of weights along each metric's front, seeds averaged."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 3.4), layout="constrained")
        for index, (name, members) in enumerate(_by_name(records).items()):
            bits, top1 = _mean_front(values(members, "trials", "front"))
            axes.plot(bits, top1, label=name, **line_style(index, 4))
        scores = []
        for record in records:
            # Older trials took the whole split: their full precision is among the results alone.
            of_results = record["results"]["top1_full"]
            scores.append(record["trials"].get("top1_full", of_results))
        draw_full_precision(axes, statistics.fmean(scores))
        axes.set(xlabel="mean bits of weights", ylabel="top-1 %", title=f"{title}: no correction")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


def _mean_front(fronts: list[list[dict[str, float]]]) -> tuple[list[float], list[float]]:
    """Return the mean of several fronts over the bits that all of them reach: bits, and top-1.

    The bits are those of the front with most points there. Each front has its own points, so its
    accuracy is interpolated linearly between them.
    """
    import numpy as np

    all_bits, all_top1 = [], []
    for front in fronts:
        points = sorted((point["bits"], point["top1"]) for point in front)
        bits, top1 = zip(*points, strict=True)
        all_bits.append(bits)
        all_top1.append(top1)
    # Outside of what all fronts reach, a mean would be over fewer of them.
    low = max(bits[0] for bits in all_bits)
    high = min(bits[-1] for bits in all_bits)
    within = []  # points of each front between the bounds
    for bits in all_bits:
        inside = [b for b in bits if low <= b <= high]
        within.append(inside)
    grid = sorted({low, high, *max(within, key=len)}) if low <= high else []
    interpolated = []
    for bits, top1 in zip(all_bits, all_top1, strict=True):
        interpolated.append(np.interp(grid, bits, top1))
    return grid, np.mean(interpolated, 0).tolist()


def _by_name(records: list[Record]) -> dict[str, list[Record]]:
    """Return the records that differ in seeds only by the labels that tell them apart, in words."""
    groups = Labels(records).groups()
    varying = []
    for name in groups[0][0]:
        distinct_texts = {str(labels.get(name)) for labels, _ in groups}
        if len(distinct_texts) > 1 and name not in NETWORK:
            varying.append(name)
    by_name: dict[str, list[Record]] = {}
    for labels, members in groups:
        parts = []
        for name in varying:
            unit = " bits" if name == "bits" else ""
            parts.append(as_text(labels[name]) + unit)
        title = " ".join(parts) or as_text(labels["method"])
        by_name.setdefault(title, []).extend(members)
    return by_name


def _layer_bits(record: Record) -> dict[str, int]:
    """Return bits by layer name, of a whole record or of one that `sq.report.slim` has reduced."""
    return record.get("widths") or {layer["name"]: layer["bits"] for layer in record["layers"]}
