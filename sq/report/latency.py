"""Latency in tables and figures: what a network takes where it runs, beside full precision and 8 bits in that run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sq.record import Record
from sq.report.labels import NETWORK, plain
from sq.report.style import FULL, MOST, STYLE, legend, look, pyplot
from sq.report.table import HEADLINES

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sq.report.table import Row

# What is timed, see `sq/latency/onnxruntime.py`, and what tables call it.
NAMES = {"full": FULL, "eight": "8 bits, rounded to nearest", "own": "the run's", "wide": "the run's, stored in 8 bits"}
APART = ("export", "latency")  # labels of families that say nothing here
AREA = 260  # of the marker of a network in full precision, in square points
Timed = dict[str, dict[str, Any]]  # by key of the record: what it says of latency


def table(rows: list[Row], records: list[Record]) -> pandas.DataFrame | None:
    """Return a line for each network that runs timed, means over seeds; None without any.

    Milliseconds are medians, and quartiles in brackets; how many times as fast as full precision a network is was
    found round by round in the same run. Bytes are of the ONNX file.
    """
    import pandas

    told, lines = _told(records), []
    for row in rows:
        own = [told[key] for key in row["keys"] if key in told]
        labels = {name: plain(value) for name, value in row["labels"].items() if name not in APART}
        for kind in (kind for kind in NAMES if all(kind in r["networks"] for r in own)):
            found = [r["networks"][kind] for r in own]
            if found:
                lines.append(labels | {"network": NAMES[kind]} | _cells(found) | {"runs": str(len(own))})
    return pandas.DataFrame(lines).fillna("-") if lines else None


def figures(rows: list[Row], records: list[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield the figure of accuracy, size and latency, if something was timed."""
    told = _told(records)
    if any(key in told for row in rows for key in row["keys"]):
        yield "latency", together(rows, told)


def together(rows: list[Row], told: Timed) -> Figure:
    """Draw accuracy against how many times as fast as full precision a network is; markers are as large as its file.

    A panel for each network; bars are quartiles over rounds; numbers are bits of weights. What was stored in 8 bits,
    whatever its codes, has a line of its own.
    """
    plt = pyplot()
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row["keys"][0] in told:
            panels.setdefault(_network(row), []).append(row)
    names = list(dict.fromkeys(name for own in panels.values() for name, *_ in _points(own, told)))[:MOST]
    with plt.rc_context(STYLE):
        size = (max(6.4, 0.6 + 3.6 * len(panels)), 3.2 + 0.18 * len(names))
        figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
        for panel, (network, own) in zip(axes.flat, panels.items(), strict=True):
            _draw(panel, own, told, names)
            panel.set_title(network, fontsize=8, loc="left")
        legend(figure, axes, 2)
    return figure


def _draw(axes: Axes, rows: list[Row], told: Timed, names: list[str]) -> None:
    full = statistics.fmean([s + d for row in rows for s, d in zip(row["score"], row["drop"], strict=True)])
    axes.scatter([1], [full], s=AREA, color="0.6", label=FULL, zorder=1)
    for name, row, kind in _points(rows, told):
        if name not in names:
            continue
        runs = [told[key]["networks"] for key in row["keys"] if key in told]
        x = {end: statistics.fmean(r[kind]["faster"][end] for r in runs) for end in ("low", "median", "high")}
        share = statistics.fmean(r[kind]["bytes"] / r["full"]["bytes"] for r in runs)
        y, style = statistics.fmean(row["score"]), look(names.index(name))
        known = name in axes.get_legend_handles_labels()[1]
        error = [[x["median"] - x["low"]], [x["high"] - x["median"]]]
        axes.errorbar([x["median"]], [y], xerr=error, color=style["color"], linewidth=0.8, capsize=2, zorder=2)
        marks = {"marker": style["marker"], "facecolor": style["markerfacecolor"], "edgecolor": style["color"]}
        axes.scatter([x["median"]], [y], s=AREA * share, label=None if known else name, zorder=3, **marks)
        text = f"{plain(row['labels']['bits'])}"
        axes.annotate(text, (x["median"], y), (6, 6), textcoords="offset points", fontsize=7)
    axes.margins(0.12)
    axes.set(
        xlabel="times as fast as full precision; area: bytes of the file", ylabel=HEADLINES[rows[0]["headline"]][0]
    )


def _points(rows: list[Row], told: Timed) -> Iterator[tuple[str, Row, str]]:
    """Yield the line, the row and the kind of each network that is drawn."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row["labels"].items():
            values.setdefault(name, set()).add(plain(value))
    telling = [n for n, found in values.items() if len(found) > 1 and n not in ("bits", "method", *NETWORK, *APART)]
    for row in rows:
        words = [row["labels"]["method"], *(f"{name}={plain(row['labels'].get(name))}" for name in telling)]
        for kind in ("own", "wide"):
            if all(kind in told[key]["networks"] for key in row["keys"] if key in told):
                yield " ".join(words) + (", stored in 8 bits" if kind == "wide" else ""), row, kind


def _network(row: Row) -> str:
    return " ".join(plain(row["labels"][name]) for name in NETWORK if name in row["labels"])


def _told(records: list[Record]) -> Timed:
    return {r["key"]: r["latency"] for r in records if "latency" in r}


def _cells(found: list[dict[str, Any]]) -> dict[str, str]:
    return {
        "ms": _with_quartiles(found, ".3f"),
        "x full precision": _with_quartiles([own["faster"] for own in found], ".2f"),
        "bytes": f"{statistics.fmean(own['bytes'] for own in found):,.0f}",
    }


def _with_quartiles(found: list[dict[str, float]], form: str) -> str:
    low, median, high = (statistics.fmean(own[end] for own in found) for end in ("low", "median", "high"))
    return f"{median:{form}} [{low:{form}}, {high:{form}}]"
