"""Mixed precision in tables and figures: how well prices rank, the bits they lead to, and fronts that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sq.records.record import Record
from sq.report.labels import NETWORK, Labels, plain
from sq.report.style import COLOURS, FULL, STYLE, look, pyplot

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

COEFFICIENTS = ("spearman", "kendall")
UNTOUCHED = 32  # bits of a layer that is left as it is


def correlations(records: list[Record]) -> pandas.DataFrame | None:
    """Return how well each metric's prices rank what trials measured, the best of a network first; None without any.

    Mean +- standard deviation over seeds; the interval is that of one run, its ends averaged over
    seeds.
    """
    import pandas

    lines = []
    for labels, members in _groups([r for r in records if "spearman" in r.get("results", {})]):
        line: dict[str, Any] = {
            name: plain(value) for name, value in labels.items() if name != "bits"
        }
        for name in COEFFICIENTS:
            low, high = (_mean(members, f"{name}_{end}") for end in ("low", "high"))
            line |= {
                name: _cell([r["results"][name] for r in members], ".3f"),
                f"{name} 95 %": f"[{low:.3f}, {high:.3f}]",
            }
        line["metric s"] = _cell([r["seconds"]["sensitivity"] for r in members], ".1f")
        line |= {"trials": str(len(members[0]["trials"]["list"])), "runs": str(len(members))}
        lines.append(
            ([str(labels.get(name)) for name in NETWORK], -_mean(members, "spearman"), line)
        )
    lines.sort(key=lambda own: own[:2])
    return pandas.DataFrame([line for *_, line in lines]).fillna("-") if lines else None


def figures(records: list[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures that records have something for, with their names: one of each kind for each network."""
    done = [r for r in records if r["status"] == "done"]
    kinds = (
        ("correlation", bars, [r for r in done if "spearman" in r["results"]]),
        ("bits", chosen, [r for r in done if r.get("allocation")]),
        ("front", fronts, [r for r in done if r.get("trials", {}).get("front")]),
    )
    for kind, draw, own in kinds:
        for model in sorted({r["choices"]["model"] for r in own}):
            yield f"{kind}_{model}", draw([r for r in own if r["choices"]["model"] == model], model)


def bars(records: list[Record], title: str) -> Figure:
    """Draw the rank correlation of each metric with what trials measured, the best on top, with 95 % intervals."""
    plt = pyplot()
    groups = _named(records)
    names = sorted(groups, key=lambda name: _mean(groups[name], "spearman"))
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(5.4, 1.0 + 0.32 * len(names)), layout="constrained")
        for coefficient, shift, colour in zip(COEFFICIENTS, (0.2, -0.2), COLOURS, strict=False):
            values = [_mean(groups[name], coefficient) for name in names]
            lows = [
                v - _mean(groups[name], f"{coefficient}_low")
                for v, name in zip(values, names, strict=True)
            ]
            highs = [
                _mean(groups[name], f"{coefficient}_high") - v
                for v, name in zip(values, names, strict=True)
            ]
            style = {
                "color": colour,
                "hatch": "" if shift > 0 else "///",
                "edgecolor": "white",
                "label": coefficient,
            }
            error = {"xerr": [lows, highs], "capsize": 2, "error_kw": {"linewidth": 0.8}}
            axes.barh([i + shift for i in range(len(names))], values, 0.38, **style, **error)
        axes.set_yticks(range(len(names)), names)
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set(xlabel="rank correlation of prices with measured loss", title=title)
        axes.legend(
            frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2
        )
    return figure


def chosen(records: list[Record], title: str) -> Figure:
    """Draw the bits of each layer's weights, a column for each metric and budget, averaged over seeds."""
    plt = pyplot()
    groups = _named(records)
    layers = list(_widths(records[0]))
    chosen = [[_widths(r) for r in own] for own in groups.values()]
    values = [
        [statistics.fmean(bits.get(name, UNTOUCHED) for bits in own) for own in chosen]
        for name in layers
    ]
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (2.2 + 0.42 * len(groups), 1.9 + 0.19 * len(layers))
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=2, vmax=8)
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                shade = "white" if value < 5 else "black"
                axes.text(
                    x,
                    y,
                    f"{value:.2g}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color=shade,
                    in_layout=False,
                )
        axes.set_xticks(range(len(groups)), list(groups), rotation=90, fontsize=7)
        axes.set_yticks(range(len(layers)), layers, fontsize=6)
        axes.set_title(f"{title}: bits of weights", fontsize=8)
        figure.colorbar(image, ax=axes, label="bits")
    return figure


def fronts(records: list[Record], title: str) -> Figure:
    """Draw accuracy against the mean bits of weights along each metric's front, averaged over seeds."""
    plt = pyplot()
    groups = _named(records)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 3.4), layout="constrained")
        for i, (name, own) in enumerate(groups.items()):
            axes.plot(*_averaged([r["trials"]["front"] for r in own]), label=name, **look(i, 4))
        # The first records of fronts, whose trials took the whole split, have that figure among the
        # results alone.
        full = statistics.fmean(
            r["trials"].get("top1_full", r["results"]["top1_full"]) for r in records
        )
        axes.axhline(full, color="0.4", linewidth=0.8, label=FULL)
        axes.set(xlabel="mean bits of weights", ylabel="top-1 %", title=f"{title}: no correction")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


def _averaged(fronts: list[list[dict[str, float]]]) -> tuple[list[float], list[float]]:
    """Return bits that all `fronts` reach, those of the one with most points there, and the mean of top-1 at each.

    A front has points of its own: between two of them its accuracy is taken to change linearly.
    """
    import numpy as np

    lines = [sorted((point["bits"], point["top1"]) for point in front) for front in fronts]
    low, high = max(line[0][0] for line in lines), min(line[-1][0] for line in lines)
    within = [[bits for bits, _ in line if low <= bits <= high] for line in lines]
    places = sorted({low, high, *max(within, key=len)} if low <= high else {})
    tops = [
        np.interp(places, [bits for bits, _ in line], [top1 for _, top1 in line]) for line in lines
    ]
    return places, np.mean(tops, 0).tolist()


def _groups(records: list[Record]) -> list[tuple[dict[str, Any], list[Record]]]:
    labels = Labels(records)
    return (
        [(labels.of(own[0]), [records[i] for i in own]) for own in labels.groups()]
        if records
        else []
    )


def _named(records: list[Record]) -> dict[str, list[Record]]:
    """Return records that differ in seeds only by what tells them apart, in words."""
    groups = _groups(records)
    varying = [
        name for name in groups[0][0] if len({str(labels.get(name)) for labels, _ in groups}) > 1
    ]
    named: dict[str, list[Record]] = {}
    for labels, own in groups:
        words = [
            f"{plain(labels[n])} bits" if n == "bits" else plain(labels[n])
            for n in varying
            if n not in NETWORK
        ]
        named.setdefault(" ".join(words) or plain(labels["method"]), []).extend(own)
    return named


def _mean(records: list[Record], figure: str) -> float:
    return statistics.fmean(r["results"][figure] for r in records)


def _widths(record: Record) -> dict[str, int]:
    """Return bits by layer name, of a record as it is or as `sq.report.slim` keeps it."""
    return record.get("widths") or {layer["name"]: layer["bits"] for layer in record["layers"]}


def _cell(values: list[float], form: str) -> str:
    mean = f"{statistics.fmean(values):{form}}"
    return f"{mean} +- {statistics.stdev(values):{form}}" if len(values) > 1 else mean
