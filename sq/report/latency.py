"""Latency in tables and figures: a run's network beside full precision and 8 bits in that run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sq.allocation import latency_table
from sq.records.record import Record
from sq.report.labels import NETWORK, NOT_SHOWN, as_text, differing, network, texts
from sq.report.rows import (
    Row,
    all_have,
    frame,
    full_precision,
    grouped,
    mean,
    optional,
    records_of,
    values,
)
from sq.report.style import FULL, MAX_LINES, STYLE, legend, line_style, pyplot
from sq.report.table import HEADLINES

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The networks that are timed, see `sq/latency/onnxruntime.py`, and what tables call them.
NAMES = {
    "full": FULL,
    "w8a8": "W8A8, rounded to nearest",
    "w4a8": "W4A8, rounded to nearest",
    "run": "the run's",
    "run_in_8": "the run's, stored in 8 bits",
}
AREA = 260  # of the marker of a network in full precision, in square points
QUARTILES = ("low", "median", "high")
# by key of the record: its `latency`, and its mean bits
Timed = dict[str, dict[str, Any]]


def table(rows: list[Row], records: list[Record]) -> pandas.DataFrame | None:
    """Return a line for each network that runs timed, means over seeds; None without any.

    Milliseconds are medians, with quartiles in brackets. The ratio to full precision was measured
    round by round in the same run. Beside it is the sum over layers that were timed one by one.
    Bytes are of the ONNX file. VNNI is shown where records have it: without it, integer products
    saturate.
    """
    timed = _timed(records)
    lines = []
    for row in rows:
        runs = records_of(row, timed)
        if not runs:
            continue
        for kind, name in NAMES.items():
            if not _all_timed(runs, kind):
                continue
            networks = values(runs, "networks", kind)
            line = texts(row["labels"], without=NOT_SHOWN)
            line["network"] = name
            line["ms"] = _with_quartiles(networks, ".3f")
            line["x full precision"] = _with_quartiles(values(networks, "faster"), ".2f")
            line["bytes"] = f"{mean(networks, 'bytes'):,.0f}"
            line["layers alone"] = _sum_of_layers(runs, kind)
            line |= _vnni(runs)
            line["runs"] = str(len(runs))
            lines.append(line)
    return frame(lines)


def layers(records: list[Record]) -> dict[str, str]:
    """Return the tables of single layers by file name, as `allocation.latency_table` reads them."""
    tables = {}
    for record in records:
        latency = record.get("latency", {})
        if "table" in latency:
            tables[latency["table"]] = latency_table.to_csv(latency["layers"])
    return tables


def figures(rows: list[Row], records: list[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield the figure of accuracy, size and latency, if something was timed."""
    timed = _timed(records)
    complete = [row for row in rows if len(records_of(row, timed)) == len(row["keys"])]
    if complete:
        yield "latency", against_speed(complete, timed)


def against_speed(rows: list[Row], timed: Timed) -> Figure:
    """Draw accuracy against the speed-up over full precision; a marker's area is the file's size.

    A network has a panel. Bars are quartiles over rounds; numbers are mean bits of weights. Hollow
    markers are networks stored in 8 bits, whatever their codes.
    """
    plt = pyplot()
    panels = grouped(rows, network)
    settings = _settings_in_names(panels)
    lines = list(grouped(rows, lambda row: _line_name(row, settings)))
    shown = lines[:MAX_LINES]
    note = ""
    if len(lines) > MAX_LINES:
        note = f"; {MAX_LINES} of {len(lines)} lines"
    with plt.rc_context(STYLE):
        size = (max(6.4, 0.6 + 3.6 * len(panels)), 3.4 + 0.18 * len(shown))
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, layout="constrained", squeeze=False
        )
        for panel, (title, members) in zip(axes.flat, panels.items(), strict=True):
            full = full_precision(members)
            panel.scatter([1], [full], s=AREA, color="0.6", label=FULL, zorder=1)
            for row in members:
                name = _line_name(row, settings)
                if name in shown:
                    style = line_style(shown.index(name)) | {"label": name}
                    _draw(panel, row, records_of(row, timed), style)
            panel.margins(0.14)  # room for large markers at the edges
            panel.set_xlabel("times as fast as full precision")
            panel.set_ylabel(HEADLINES[members[0]["headline"]][0])
            panel.set_title(title, fontsize=8, loc="left")
        figure.suptitle(
            f"area: bytes of the file; hollow: codes stored in 8 bits{note}", fontsize=8
        )
        legend(figure, axes, 2)
    return figure


def _draw(axes: Axes, row: Row, runs: list[dict[str, Any]], style: dict[str, Any]) -> None:
    """Draw one row twice: its network stored in 8 bits, and as the run stores it."""
    labelled = axes.get_legend_handles_labels()[1]
    bits = mean(runs, "bits")
    score = statistics.fmean(row["score"])
    colour = style["color"]
    for kind in ("run_in_8", "run"):  # the run's own network is drawn on top
        if not _all_timed(runs, kind):
            continue
        networks = values(runs, "networks", kind)
        low, median, high = _quartiles(values(networks, "faster"))
        axes.errorbar(
            [median],
            [score],
            xerr=[[median - low], [high - median]],
            color=colour,
            linewidth=0.8,
            capsize=2,
            zorder=2,
        )
        label = None  # one entry of the legend for each line, with a full marker
        if kind == "run" and style["label"] not in labelled:
            label = style["label"]
        axes.scatter(
            [median],
            [score],
            s=AREA * _share_of_bytes(runs, networks),  # the area is proportional to bytes
            zorder=3,
            marker=style["marker"],
            facecolor=colour if kind == "run" else "white",
            edgecolor=colour,
            label=label,
        )
        axes.annotate(
            f"{bits:.2g}", (median, score), (6, 6), textcoords="offset points", fontsize=7
        )


def _share_of_bytes(runs: list[dict[str, Any]], networks: list[dict[str, Any]]) -> float:
    """Return the bytes of `networks` over those of full precision in the same run, the mean."""
    shares = []
    for run, timed in zip(runs, networks, strict=True):
        share = timed["bytes"] / run["networks"]["full"]["bytes"]
        shares.append(share)
    return statistics.fmean(shares)


def _settings_in_names(panels: dict[str, list[Row]]) -> list[str]:
    """Return the labels that go into the names of lines, beside the method."""
    excluded = ("bits", "method", *NETWORK, *NOT_SHOWN)
    return [name for name in differing(panels.values()) if name not in excluded]


def _line_name(row: Row, settings: list[str]) -> str:
    """Return the name of a row's line: the method, and "setting=value"."""
    line_name = row["labels"]["method"]
    for name in settings:
        value = as_text(row["labels"].get(name))
        line_name += f" {name.rpartition('.')[2]}={value}"
    return line_name


def _timed(records: list[Record]) -> Timed:
    """Return what the records with latency hold of it, by key."""
    timed = {}
    for record in records:
        if "latency" in record:
            bits = record["results"].get("bits")
            timed[record["key"]] = record["latency"] | {"bits": bits}
    return timed


def _all_timed(runs: list[dict[str, Any]], kind: str) -> bool:
    """Return whether all `runs` timed the network of this `kind`, see `NAMES`."""
    return all_have(values(runs, "networks"), kind)


def _sum_of_layers(runs: list[dict[str, Any]], kind: str) -> str:
    """Return the milliseconds of layers one by one, in all; "-" where a run did not time them."""
    sums = optional(optional(runs, "sums", {}), kind)
    if None in sums:
        return "-"
    return f"{statistics.fmean(sums):.3f}"


def _vnni(runs: list[dict[str, Any]]) -> dict[str, str]:
    """Return a cell on VNNI; none where no run says whether its CPU has it."""
    flags = set(optional(runs, "vnni")) - {None}
    if not flags:
        return {}
    texts_of_flags = {False: "no", True: "yes"}
    return {"VNNI": " and ".join(texts_of_flags[flag] for flag in sorted(flags))}


def _quartiles(spreads: list[dict[str, float]]) -> list[float]:
    """Return the lower quartile, median and upper quartile, each the mean over runs."""
    return [mean(spreads, name) for name in QUARTILES]


def _with_quartiles(spreads: list[dict[str, float]], form: str) -> str:
    """Return "median [lower quartile, upper quartile]"."""
    low, median, high = _quartiles(spreads)
    return f"{median:{form}} [{low:{form}}, {high:{form}}]"
