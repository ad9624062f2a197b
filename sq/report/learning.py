"""Learned quantizers in tables and figures: steps, changes, and accuracy against time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sq.config.constraints import FLOAT
from sq.records.record import Record
from sq.report.distinct import ordered_names
from sq.report.labels import ACTIVATION, NETWORK, as_text, network_texts, sort_key, texts
from sq.report.rows import (
    Row,
    all_have,
    frame,
    full_precision,
    grouped,
    mean,
    optional,
    records_of,
    select,
    values,
)
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

STEPS = "iterations="  # the word of a method's name that varies along its line
PANELS_ACROSS = 3
FAR = 4  # drops farther below full precision than this times their median are not drawn to scale
PANEL_LABELS = (*NETWORK, "bits", ACTIVATION)  # each combination has a panel
STEP_SECONDS = "cpu_seconds_per_step"
PLAIN_STEP_SECONDS = "plain_cpu_seconds_per_step"  # the same step in full precision
Learned = dict[str, dict[str, Any]]  # by key of the record: its `learning`


def table(rows: list[Row], records: list[Record]) -> pandas.DataFrame | None:
    """Return the cost of the learned quantizers and what they changed, means over seeds.

    None without any. Steps are summed over all parts. CPU seconds are those of one step, without
    the work that is done once. The share of changed codes is relative to the start.
    """
    learned = _learned(records)
    lines = []
    for row in rows:
        runs = records_of(row, learned)
        if not runs:
            continue
        line = texts(row["labels"])
        line["steps"] = _mean_cell(runs, "steps", ".0f")
        line["CPU s a step"] = _mean_cell(runs, STEP_SECONDS, ".3f")
        line["x full precision"] = _ratio_cell(runs)
        line["solve s"] = f"{statistics.fmean(row['solve_seconds']):.1f}"
        line["codes changed"] = _mean_cell(runs, "flipped", ".2%")
        line["biases learned"] = _mean_cell(runs, "biases_moved", ".0f")
        line["runs"] = str(len(runs))
        lines.append(line)
    return frame(lines)


def figures(rows: list[Row], records: list[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield the figure of accuracy against time, if something was learned."""
    learned = _learned(records)
    if any(records_of(row, learned) for row in rows):
        yield "time", against_time(rows, learned)


def _learned(records: list[Record]) -> Learned:
    """Return `learning` of the records that have it, by key."""
    return {record["key"]: record["learning"] for record in records if "learning" in record}


def against_time(rows: list[Row], learned: Learned) -> Figure:
    """Draw accuracy against time, a panel for each network and bits and a line for each method.

    A line joins the runs of one method that differ in their steps; bars are of seeds. What else
    differs within a panel is in the line's name. Time is CPU time where something is learned, as
    other work on a machine does not change it; else solve time.
    """
    plt = pyplot()
    ordered = sorted(rows, key=_panel_key)
    panels = {}
    for title, members in grouped(ordered, _panel_title).items():
        panels[title] = _lines(members)
    names = ordered_names(list(panels.values()))[:MAX_LINES]
    across = min(PANELS_ACROSS, len(panels))
    down = -(-len(panels) // across)  # rounded up
    ylabel = HEADLINES[rows[0]["headline"]][0]
    with plt.rc_context(STYLE):
        # inches; the legend has four names a row
        size = (0.4 + 3.4 * across, 2.8 * down + 0.4 + 0.18 * (len(names) // 4))
        figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
        for panel in axes.flat[len(panels) :]:  # the rest of the last row
            panel.set_axis_off()
        for panel, (title, lines) in zip(axes.flat, panels.items(), strict=False):
            _draw_panel(panel, select(lines, names), names, learned)
            panel.set_title(title, fontsize=8, loc="left")
            panel.set_ylabel(ylabel)
        legend(figure, axes, 4)
    return figure


def _draw_panel(
    axes: Axes, lines: dict[str, list[Row]], names: list[str], learned: Learned
) -> None:
    """Draw the lines of one panel."""
    rows = []
    for name, members in lines.items():
        rows += members
        ordered = sorted(members, key=lambda row: _seconds(row, learned))
        seconds = [_seconds(row, learned) for row in ordered]
        draw_line(axes, seconds, values(ordered, "score"), names.index(name), name)
    draw_full_precision(axes, full_precision(rows))
    axes.set(xlabel="CPU time of learning, or solve time (s)", xscale="log")
    _cut_off(axes, rows, learned)
    plain_decades(axes.xaxis)


def _cut_off(axes: Axes, rows: list[Row], learned: Learned) -> None:
    """Cut off scores far below most others, and write them at the lower edge.

    Otherwise one of them would press the other lines together.
    """
    drops = list(map(statistics.fmean, values(rows, "drop")))  # means over seeds, in points
    full_scores = []
    for row, drop in zip(rows, drops, strict=True):
        score = statistics.fmean(row["score"])
        full_scores.append(score + drop)
    full = statistics.fmean(full_scores)
    # A median below one point would cut off what differs little.
    low = full - FAR * max(1.0, statistics.median(drops))
    scores = [full - drop for drop in drops]
    if min(scores) >= low:
        return
    high = max(full, *scores)
    axes.set_ylim(low, high + 0.1 * (high - low))
    for row, score in zip(rows, scores, strict=True):
        if score < low:
            axes.annotate(
                f"{score:.0f} ↓",
                (_seconds(row, learned), low),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )


def _panel_key(row: Row) -> list[tuple]:
    """Return the key that sorts rows by the labels of their panels."""
    return [sort_key(name, row["labels"].get(name)) for name in PANEL_LABELS]


def _panel_title(row: Row) -> str:
    """Return the title of a row's panel: network, dataset, bits of weights and of inputs."""
    labels = row["labels"]
    parts = list(network_texts(labels).values())
    parts.append(f"weights {as_text(labels['bits'])} bits")
    activation_bits = labels.get(ACTIVATION, FLOAT)
    if activation_bits != FLOAT:
        parts.append(f"inputs {as_text(activation_bits)}")
    return ", ".join(parts)


def _lines(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of one panel by line: the method without its steps, and what else differs."""
    lines: dict[str, list[Row]] = {}
    for method, members in grouped(rows, _method).items():
        settings = _varying_settings(members)
        for row in members:
            line_name = method
            for name in settings:
                value = as_text(row["labels"].get(name))
                line_name += f" {name}={value}"
            lines.setdefault(line_name, []).append(row)
    return lines


def _method(row: Row) -> str:
    """Return the method of a row without its number of steps."""
    parts = row["labels"]["method"].split()
    return " ".join(part for part in parts if not part.startswith(STEPS))


def _varying_settings(rows: list[Row]) -> list[str]:
    """Return the labels in which the rows of one method and panel differ."""
    varying = []
    for name in ordered_names(values(rows, "labels")):
        distinct_texts = {as_text(row["labels"].get(name)) for row in rows}
        if len(distinct_texts) > 1 and name not in ("method", *PANEL_LABELS):
            varying.append(name)
    return varying


def _seconds(row: Row, learned: Learned) -> float:
    """Return the CPU seconds of learning, mean over seeds; the solve time where it is unknown."""
    runs = records_of(row, learned)
    if not runs or not all_have(runs, STEP_SECONDS):
        return statistics.fmean(row["solve_seconds"])
    seconds = []
    for run in runs:
        # Older records have the seconds of a step alone, and no sum.
        of_steps = run["steps"] * run[STEP_SECONDS]
        seconds.append(run.get("cpu_seconds", of_steps))
    return statistics.fmean(seconds)


def _mean_cell(runs: list[dict[str, Any]], figure: str, form: str) -> str:
    """Return the mean of a figure that all `runs` have; "-" where one lacks it."""
    if not all_have(runs, figure):
        return "-"
    return f"{mean(runs, figure):{form}}"


def _ratio_cell(runs: list[dict[str, Any]]) -> str:
    """Return the time of a step over that in full precision, in the same run; "-" if unknown."""
    if not all(optional(runs, PLAIN_STEP_SECONDS)):
        return "-"
    ratios = [run[STEP_SECONDS] / run[PLAIN_STEP_SECONDS] for run in runs]
    return f"{statistics.fmean(ratios):.2f}"
