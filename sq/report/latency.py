"""Latency in tables and figures: what a network takes where it runs, beside full precision and 8 bits in that run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sq.allocation import latency_table
from sq.records.record import Record
from sq.report.labels import APART, NETWORK, network, plain, telling
from sq.report.style import FULL, MOST, STYLE, legend, look, pyplot
from sq.report.table import HEADLINES

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sq.report.table import Row

# What is timed, see `sq/latency/onnxruntime.py`, and what tables call it.
NAMES = {
    "full": FULL,
    "w8a8": "W8A8, rounded to nearest",
    "w4a8": "W4A8, rounded to nearest",
    "run": "the run's",
    "run_in_8": "the run's, stored in 8 bits",
}
AREA = 260  # of the marker of a network in full precision, in square points
# by key of the record: what it says of latency, and its mean bits
Timed = dict[str, dict[str, Any]]


def table(rows: list[Row], records: list[Record]) -> pandas.DataFrame | None:
    """Return a line for each network that runs timed, means over seeds; None without any.

    Milliseconds are medians, and quartiles in brackets; how many times as fast as full precision a
    network is was found round by round in the same run; what its layers take one by one, together,
    stands beside. Bytes are of the ONNX file. Where records say it: whether the CPU has VNNI,
    without which integer products saturate.
    """
    import pandas

    told, lines = _told(records), []
    for row in rows:
        own = [told[key] for key in row["keys"] if key in told]
        labels = {name: plain(value) for name, value in row["labels"].items() if name not in APART}
        for kind in (kind for kind in NAMES if all(kind in r["networks"] for r in own)):
            found = [r["networks"][kind] for r in own]
            if found:
                sums = [r.get("sums", {}).get(kind) for r in own]
                alone = {"layers alone": "-" if None in sums else f"{statistics.fmean(sums):.3f}"}
                lines.append(
                    labels
                    | {"network": NAMES[kind]}
                    | _cells(found)
                    | alone
                    | _vnni(own)
                    | {"runs": str(len(own))}
                )
    return pandas.DataFrame(lines).fillna("-") if lines else None


def layers(records: list[Record]) -> dict[str, str]:
    """Return the tables of single layers that runs wrote, by file name: what `allocation.latency_table` takes."""
    found = [r["latency"] for r in records if "table" in r.get("latency", {})]
    return {own["table"]: latency_table.to_csv(own["layers"]) for own in found}


def figures(rows: list[Row], records: list[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield the figure of accuracy, size and latency, if something was timed."""
    told = _told(records)
    timed = [row for row in rows if all(key in told for key in row["keys"])]
    if timed:
        yield "latency", together(timed, told)


def together(rows: list[Row], told: Timed) -> Figure:
    """Draw accuracy against how many times as fast as full precision a network is; markers are as large as its file.

    A panel for each network; bars are quartiles over rounds; numbers are mean bits of weights. What
    was stored in 8 bits, whatever its codes, is hollow.
    """
    plt = pyplot()
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(network(row), []).append(row)
    words = [
        name
        for name in telling(panels.values())
        if name not in ("bits", "method", *NETWORK, *APART)
    ]
    every = list(dict.fromkeys(_name(row, words) for row in rows))
    names, note = every[:MOST], f"; {MOST} of {len(every)} lines" if len(every) > MOST else ""
    with plt.rc_context(STYLE):
        size = (max(6.4, 0.6 + 3.6 * len(panels)), 3.4 + 0.18 * len(names))
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, layout="constrained", squeeze=False
        )
        for panel, (title, own) in zip(axes.flat, panels.items(), strict=True):
            full = statistics.fmean(
                [s + d for row in own for s, d in zip(row["score"], row["drop"], strict=True)]
            )
            panel.scatter([1], [full], s=AREA, color="0.6", label=FULL, zorder=1)
            for row in own:
                if (name := _name(row, words)) in names:
                    _draw(
                        panel,
                        row,
                        [told[key] for key in row["keys"]],
                        look(names.index(name)) | {"label": name},
                    )
            panel.margins(0.14)
            panel.set(
                xlabel="times as fast as full precision", ylabel=HEADLINES[own[0]["headline"]][0]
            )
            panel.set_title(title, fontsize=8, loc="left")
        figure.suptitle(
            f"area: bytes of the file; hollow: codes stored in 8 bits{note}", fontsize=8
        )
        legend(figure, axes, 2)
    return figure


def _draw(axes: Axes, row: Row, runs: list[dict[str, Any]], style: dict[str, Any]) -> None:
    """Draw one row: as it is stored, and stored in 8 bits."""
    known = axes.get_legend_handles_labels()[1]
    bits = statistics.fmean(own["bits"] for own in runs)
    for kind in (
        kind for kind in ("run_in_8", "run") if all(kind in own["networks"] for own in runs)
    ):
        found = [own["networks"][kind] for own in runs]
        x = {
            end: statistics.fmean(own["faster"][end] for own in found)
            for end in ("low", "median", "high")
        }
        pairs = zip(found, runs, strict=True)
        share = statistics.fmean(
            own["bytes"] / run["networks"]["full"]["bytes"] for own, run in pairs
        )
        y, colour = statistics.fmean(row["score"]), style["color"]
        error = [[x["median"] - x["low"]], [x["high"] - x["median"]]]
        axes.errorbar(
            [x["median"]], [y], xerr=error, color=colour, linewidth=0.8, capsize=2, zorder=2
        )
        label = style["label"] if kind == "run" and style["label"] not in known else None
        face = colour if kind == "run" else "white"
        looks: dict[str, Any] = {
            "marker": style["marker"],
            "facecolor": face,
            "edgecolor": colour,
            "label": label,
        }
        axes.scatter([x["median"]], [y], s=AREA * share, zorder=3, **looks)
        axes.annotate(
            f"{bits:.2g}", (x["median"], y), (6, 6), textcoords="offset points", fontsize=7
        )


def _name(row: Row, names: list[str]) -> str:
    words = (f"{name.rpartition('.')[2]}={plain(row['labels'].get(name))}" for name in names)
    return " ".join([row["labels"]["method"], *words])


def _told(records: list[Record]) -> Timed:
    return {
        r["key"]: r["latency"] | {"bits": r["results"].get("bits")}
        for r in records
        if "latency" in r
    }


def _vnni(runs: list[dict[str, Any]]) -> dict[str, str]:
    """Return a cell on VNNI, none where no run says whether its CPU has it."""
    said = {run["vnni"] for run in runs if run.get("vnni") is not None}
    return {"VNNI": " and ".join("yes" if has else "no" for has in sorted(said))} if said else {}


def _cells(found: list[dict[str, Any]]) -> dict[str, str]:
    return {
        "ms": _with_quartiles(found, ".3f"),
        "x full precision": _with_quartiles([own["faster"] for own in found], ".2f"),
        "bytes": f"{statistics.fmean(own['bytes'] for own in found):,.0f}",
    }


def _with_quartiles(found: list[dict[str, float]], form: str) -> str:
    low, median, high = (
        statistics.fmean(own[end] for own in found) for end in ("low", "median", "high")
    )
    return f"{median:{form}} [{low:{form}}, {high:{form}}]"
