"""The table of an experiment: one row for each method and bit-width, seeds averaged."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sq.records.record import Record, canonical
from sq.report.labels import Labels, network_texts, sort_keys, texts
from sq.report.rows import Row, all_have, finished, full_precision, mean_cell, optional, values
from sq.report.style import FULL

if TYPE_CHECKING:
    import pandas
    from rich.table import Table

# How tables and figures name the main figure of a record (its "headline"), and how many digits of
# it mean something.
HEADLINES = {"top1": ("top-1 %", ".2f"), "map": ("mAP", ".4f")}
REFERENCE = "obq"  # speed-ups are over this quantizer's runs on the same statistics
CPU, WALL = "solve_cpu_seconds", "solve_seconds"  # sums over layers
Times = dict[str, float]  # seconds by clock, `CPU` or `WALL`
LEGEND = (
    "solve s: CPU seconds where all records have them, "
    "which other work on the machine does not change; else seconds\n"
    "speed-up: over OBQ's solve time on the same statistics and machine, likewise"
)


def rows(records: list[Record]) -> list[Row]:
    """Group records that differ in seeds only; return one row for each group.

    Returns
    -------
    `labels`: what tells the groups apart (method, bits, and whatever else varies); `headline`: the
    name of the main figure; `keys`: those of the records; `runs`: their number; lists with one
    entry a record: `score`, its `drop`, `relative_error`, `solve_seconds` (of the clock that
    `clock` names), and, maybe shorter, `interval` (95 %, of the drop) and `speedup`
    """
    runs = finished(records)
    reference = reference_times(runs)
    time_figure = clock(runs)
    table = []
    for labels, members in Labels(runs).groups():
        row = _row(members, labels, reference, time_figure)
        table.append(row)
    return sorted(table, key=lambda row: sort_keys(row["labels"]))


def build(records: list[Record]) -> pandas.DataFrame:
    """Return the table as text cells, mean +- standard deviation where there are several seeds."""
    return cells(rows(records))


def cells(rows: list[Row]) -> pandas.DataFrame:
    """Return `rows` as text cells, after one line of full precision for each network."""
    import pandas

    lines = _full_precision_lines(rows)
    intervals = any(values(rows, "interval"))
    for row in rows:
        title, form = HEADLINES[row["headline"]]
        line: dict[str, str] = texts(row["labels"])
        line[title] = _cell(row["score"], form)
        line["drop"] = _cell(row["drop"], form)
        if intervals:
            line["95 %"] = _interval(row, form)
        line["rel. error"] = _cell(row["relative_error"], ".5f")
        line["solve s"] = _cell(row["solve_seconds"], ".3f")
        line["speed-up"] = _cell(row["speedup"], ".1f", "x")
        line["runs"] = str(row["runs"])
        lines.append(line)
    return pandas.DataFrame(lines).fillna("-")


def _full_precision_lines(rows: list[Row]) -> list[dict[str, str]]:
    """Return the cells of full precision, one line for each model and dataset in the table."""
    lines: dict[tuple, dict[str, str]] = {}
    for row in rows:
        network = network_texts(row["labels"])
        title, form = HEADLINES[row["headline"]]
        score = f"{full_precision([row]):{form}}"
        line = {"method": FULL, "bits": "32", **network, title: score}
        lines.setdefault(tuple(network.values()), line)
    return list(lines.values())


def _interval(row: Row, form: str) -> str:
    """Return the 95 % interval of the drop, its bounds averaged over seeds."""
    if not row["interval"]:
        return "-"
    lows, highs = zip(*row["interval"], strict=True)
    return f"[{statistics.fmean(lows):{form}}, {statistics.fmean(highs):{form}}]"


def for_terminal(table: pandas.DataFrame) -> Table:
    """Return `table` as rich shows it."""
    from rich.table import Table

    shown = Table(caption=LEGEND, caption_justify="left")
    for name in table.columns:
        shown.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for line in table.itertuples(index=False):
        shown.add_row(*line)
    return shown


def _row(
    members: list[Record], labels: dict[str, Any], reference: Mapping[str, Times], clock: str
) -> Row:
    """Return the row of `members`, which differ in seeds only; see `rows`."""
    name = headline(members[0])
    intervals, speedups = [], []
    for record in members:
        results = record["results"]
        if "drop_low" in results:  # older records have no interval
            intervals.append((results["drop_low"], results["drop_high"]))
        ratio = speedup(record, reference)  # None without OBQ's run on this problem
        if ratio is not None:
            speedups.append(ratio)
    return {
        "labels": labels,
        "runs": len(members),
        "headline": name,
        "keys": optional(members, "key"),
        "score": values(members, "results", name),
        "drop": values(members, "results", "drop"),
        "relative_error": values(members, "results", "relative_error"),
        "solve_seconds": values(members, "results", clock),
        "interval": intervals,
        "speedup": speedups,
    }


def headline(record: Record) -> str:
    """Return the name of a finished run's main figure."""
    return str(record["results"].get("headline", "top1"))  # older records have no other


def clock(records: Iterable[Record]) -> str:
    """Return which figure is the solve time in a table of finished `records`.

    CPU seconds if all have them: they are the solver's own, while wall-clock seconds include the
    machine's other work. Older records, and those of GPUs, have wall-clock seconds only.
    """
    return CPU if all_have(values(records, "results"), CPU) else WALL


def reference_times(records: Iterable[Record]) -> dict[str, Times]:
    """Return OBQ's mean solve times in seconds, by problem and by clock.

    The same problem: equal statistics, bits and grid, and the same machine, by its fingerprint in
    the record. A clock that one of the problem's runs lacks is left out.
    """
    results_of_problem: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["choices"]["quantizer"] == REFERENCE:
            results_of_problem.setdefault(_problem(record), []).append(record["results"])
    times: dict[str, Times] = {}
    for problem, results in results_of_problem.items():
        times[problem] = {}
        for figure in (CPU, WALL):
            if all_have(results, figure):
                times[problem][figure] = statistics.fmean(values(results, figure))
    return times


def speedup(record: Record, reference: Mapping[str, Times]) -> float | None:
    """Return OBQ's solve time (see `reference_times`) over that of `record`, None if it is unknown.

    Both times are of one clock.
    """
    times = reference.get(_problem(record))
    if times is None:
        return None
    results = record["results"]
    figure = CPU if CPU in times and CPU in results else WALL
    return times[figure] / results[figure]


def _problem(record: Record) -> str:
    """Return the problem that solvers of equal text were given, and the machine, as text."""
    config = record["config"]
    # An allocation gives layers bits of their own, on which solve time depends.
    parts = [canonical(config[part]) for part in ("bits", "grid", "allocation")]
    machine = record["provenance"]["machine"]
    return json.dumps([record["statistics"], machine, *parts], sort_keys=True)


def _cell(numbers: list[float], form: str, unit: str = "") -> str:
    """Return the mean, with the standard deviation of several; "-" without any, never "-0.00"."""
    if not numbers:
        return "-"
    cell = mean_cell(numbers, form, unit)
    if float(f"{statistics.fmean(numbers):{form}}") == 0:
        return cell.lstrip("-")
    return cell
