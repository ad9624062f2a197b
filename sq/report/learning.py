"""Learned quantizers in tables and figures: what was learned, in how many steps, and accuracy against time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sq.config.constraints import FLOAT
from sq.records.record import Record
from sq.report.labels import ACTIVATION, NETWORK, plain, rank
from sq.report.style import FULL, MOST, STYLE, legend, line, plain_decades, pyplot
from sq.report.table import HEADLINES

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sq.report.table import Row

STEPS = "iterations="  # of a method's name: what its line goes along
ACROSS = 3  # panels in a row
FAR = 4  # times what the median loses: farther below full precision nothing is drawn
PANEL = (*NETWORK, "bits", ACTIVATION)  # labels that have a panel to themselves


def table(rows: list[Row], records: list[Record]) -> pandas.DataFrame | None:
    """Return what the learned quantizers among `rows` took and changed, means over seeds; None without any.

    Steps are of all parts together; CPU seconds are those of one step, without what is done once;
    of codes, the share that is not as it was at the start.
    """
    import pandas

    told = _told(records)
    lines = []
    for row in rows:
        own = [told[key] for key in row["keys"] if key in told]
        if own:
            lines.append(
                {name: plain(value) for name, value in row["labels"].items()}
                | {
                    "steps": _mean(own, "steps", ".0f"),
                    "CPU s a step": _mean(own, "cpu_seconds_per_step", ".3f"),
                    "x full precision": _ratio(own),
                    "solve s": f"{statistics.fmean(row['solve_seconds']):.1f}",
                    "codes changed": _mean(own, "flipped", ".2%"),
                    "biases learned": _mean(own, "biases_moved", ".0f"),
                    "runs": str(len(own)),
                }
            )
    return pandas.DataFrame(lines).fillna("-") if lines else None


def figures(rows: list[Row], records: list[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield the figure of accuracy against time, if something was learned."""
    told = _told(records)
    if any(key in told for row in rows for key in row["keys"]):
        yield "time", against_time(rows, told)


def _told(records: list[Record]) -> dict[str, dict[str, Any]]:
    """Return what records say of learning, by their keys."""
    return {r["key"]: r["learning"] for r in records if "learning" in r}


def against_time(rows: list[Row], told: dict[str, dict[str, Any]]) -> Figure:
    """Draw accuracy against time, a panel for each network and bits and a line for each method, bars for seeds.

    A line joins the runs of one method that differ in their steps. What else differs in a panel is
    in its name. Time is that of the CPU where something is learned, which other work on a machine
    does not stretch; else solve time.

    Parameters
    ----------
    told : what records say of learning, by their keys
    """
    plt = pyplot()
    settings: dict[str, list[Row]] = {}
    for row in sorted(
        rows, key=lambda row: [rank(name, row["labels"].get(name)) for name in PANEL]
    ):
        settings.setdefault(_setting(row["labels"]), []).append(row)
    panels = {setting: _lines(own) for setting, own in settings.items()}
    names = list(dict.fromkeys(name for own in panels.values() for name in own))[:MOST]
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    with plt.rc_context(STYLE):
        size = (0.4 + 3.4 * across, 2.8 * down + 0.4 + 0.18 * (len(names) // 4))
        figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (setting, lines) in zip(axes.flat, panels.items(), strict=False):
            for name in (name for name in lines if name in names):
                own = sorted(lines[name], key=lambda row: _seconds(row, told))
                line(
                    axis,
                    [_seconds(row, told) for row in own],
                    [row["score"] for row in own],
                    names.index(name),
                    name,
                )
            shown = [row for name, own in lines.items() if name in names for row in own]
            full = [s + d for row in shown for s, d in zip(row["score"], row["drop"], strict=True)]
            axis.axhline(statistics.fmean(full), color="0.4", linewidth=0.8, label=FULL)
            axis.set(
                xlabel="CPU time of learning, or solve time (s)",
                ylabel=HEADLINES[rows[0]["headline"]][0],
                xscale="log",
            )
            _floor(axis, shown, told)
            axis.set_title(setting, fontsize=8, loc="left")
            plain_decades(axis.xaxis)
        legend(figure, axes, 4)
    return figure


def _floor(axis: Axes, rows: list[Row], told: dict[str, dict[str, Any]]) -> None:
    """Cut off what lies far below most, so that they can be told apart; a figure at the edge says where it is."""
    drops = [statistics.fmean(row["drop"]) for row in rows]
    full = statistics.fmean(
        statistics.fmean(row["score"]) + drop for row, drop in zip(rows, drops, strict=True)
    )
    least = full - FAR * max(1.0, statistics.median(drops))
    if all(full - drop >= least for drop in drops):
        return
    most = max(full, *(full - drop for drop in drops))
    axis.set_ylim(least, most + 0.1 * (most - least))
    for row, drop in zip(rows, drops, strict=True):
        if full - drop < least:
            place = (_seconds(row, told), least)
            axis.annotate(
                f"{full - drop:.0f} ↓",
                place,
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )


def _setting(labels: dict[str, Any]) -> str:
    network = [plain(labels[name]) for name in NETWORK if name in labels]
    bits = f"weights {plain(labels['bits'])} bits"
    inputs = (
        [f"inputs {plain(labels[ACTIVATION])}"] if labels.get(ACTIVATION, FLOAT) != FLOAT else []
    )
    return ", ".join([*network, bits, *inputs])


def _lines(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of one panel by the name of their line: the method, and what differs among its own runs."""
    methods: dict[str, list[Row]] = {}
    for row in rows:
        words = [word for word in row["labels"]["method"].split() if not word.startswith(STEPS)]
        methods.setdefault(" ".join(words), []).append(row)
    found: dict[str, list[Row]] = {}
    for method, own in methods.items():
        others = dict.fromkeys(
            name for row in own for name in row["labels"] if name not in ("method", *PANEL)
        )
        telling = [
            name for name in others if len({plain(row["labels"].get(name)) for row in own}) > 1
        ]
        for row in own:
            words = [method, *(f"{name}={plain(row['labels'].get(name))}" for name in telling)]
            found.setdefault(" ".join(words), []).append(row)
    return found


def _seconds(row: Row, told: dict[str, dict[str, Any]]) -> float:
    own = [told[key] for key in row["keys"] if key in told]
    if not own or not all("cpu_seconds_per_step" in r for r in own):
        return statistics.fmean(row["solve_seconds"])
    # Records from before the sum was kept have that of steps alone.
    return statistics.fmean(
        r.get("cpu_seconds", r["steps"] * r["cpu_seconds_per_step"]) for r in own
    )


def _mean(own: list[dict[str, Any]], what: str, form: str) -> str:
    """Return the mean of a figure that all have; "-" where one lacks it."""
    return (
        f"{statistics.fmean(r[what] for r in own):{form}}" if all(what in r for r in own) else "-"
    )


def _ratio(own: list[dict[str, Any]]) -> str:
    """Return what steps took over what the same steps take in full precision, each in its own run; "-" if untold."""
    if not all(r.get("plain_cpu_seconds_per_step") for r in own):
        return "-"
    return f"{statistics.fmean(r['cpu_seconds_per_step'] / r['plain_cpu_seconds_per_step'] for r in own):.2f}"
