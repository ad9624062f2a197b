"""The table of an experiment: one row for each method and bit-width, seeds averaged."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sq.records.record import Record, canonical
from sq.report.labels import NETWORK, Labels, plain, rank
from sq.report.style import FULL

if TYPE_CHECKING:
    import pandas
    from rich.table import Table

# How tables and figures name the main figure of a record (its "headline"), and how many digits of
# it mean something.
HEADLINES = {"top1": ("top-1 %", ".2f"), "map": ("mAP", ".4f")}
YARDSTICK = "obq"  # speed-ups are over this quantizer's runs on the same statistics
CPU, WALL = "solve_cpu_seconds", "solve_seconds"  # sums over layers
Times = dict[str, float]  # seconds by clock, `CPU` or `WALL`
LEGEND = (
    "solve s: CPU seconds where all records have them, which other work on the machine does not change; else seconds\n"
    "speed-up: over OBQ's solve time on the same statistics and machine, likewise"
)
Row = dict[str, Any]


def rows(records: list[Record]) -> list[Row]:
    """Group records that differ in seeds only; return one row for each group.

    Returns
    -------
    `labels`: what tells the groups apart (method, bits, and whatever else varies); `headline`: the
    name of the main figure; `keys`: those of the records; `runs`: their number; lists with one
    entry a record: `score`, its `drop`, `relative_error`, `solve_seconds` (of the clock that
    `clock` names), and, maybe shorter, `interval` (95 %, of the drop) and `speedup`
    """
    done = [r for r in records if r["status"] == "done"]
    labels, times = Labels(done), yardsticks(done)
    what = clock(done)
    made = [
        _row([done[i] for i in members], labels.of(members[0]), times, what)
        for members in labels.groups()
    ]
    return sorted(
        made, key=lambda row: [rank(name, value) for name, value in row["labels"].items()]
    )


def build(records: list[Record]) -> pandas.DataFrame:
    """Return the table as text cells, mean +- standard deviation where there are several seeds."""
    return cells(rows(records))


def cells(made: list[Row]) -> pandas.DataFrame:
    """Return `rows` as the table's text cells, after one line of full precision for each network."""
    import pandas

    table = _full_precision(made)
    intervals = any(own["interval"] for own in made)
    for row in made:
        own = {name: plain(value) for name, value in row["labels"].items()}
        own |= {
            _title(row): _cell(row["score"], _form(row)),
            "drop": _cell(row["drop"], _form(row)),
            **({"95 %": _interval(row)} if intervals else {}),
            "rel. error": _cell(row["relative_error"], ".5f"),
            "solve s": _cell(row["solve_seconds"], ".3f"),
            "speed-up": _cell(row["speedup"], ".1f", "x"),
            "runs": str(row["runs"]),
        }
        table.append(own)
    return pandas.DataFrame(table).fillna("-")


def _full_precision(made: list[Row]) -> list[dict[str, str]]:
    """Return the cells of full precision, one line for each model and dataset in the table."""
    seen: dict[tuple, dict[str, str]] = {}
    for row in made:
        where = {name: plain(row["labels"][name]) for name in NETWORK if name in row["labels"]}
        full = statistics.fmean(s + d for s, d in zip(row["score"], row["drop"], strict=True))
        line = {"method": FULL, "bits": "32", **where, _title(row): f"{full:{_form(row)}}"}
        seen.setdefault(tuple(where.values()), line)
    return list(seen.values())


def _title(row: Row) -> str:
    return HEADLINES[row["headline"]][0]


def _form(row: Row) -> str:
    return HEADLINES[row["headline"]][1]


def _interval(row: Row) -> str:
    """Return the 95 % interval of the drop, its ends averaged over seeds."""
    if not row["interval"]:
        return "-"
    low, high = (statistics.fmean(ends) for ends in zip(*row["interval"], strict=True))
    return f"[{low:{_form(row)}}, {high:{_form(row)}}]"


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
    members: list[Record], labels: dict[str, Any], times: Mapping[str, Times], clock: str
) -> Row:
    name = headline(members[0])
    row: Row = {
        "labels": labels,
        "runs": len(members),
        "headline": name,
        "keys": [r.get("key") for r in members],
    }
    row["score"] = [r["results"][name] for r in members]
    for what in ("drop", "relative_error"):
        row[what] = [r["results"][what] for r in members]
    row["solve_seconds"] = [r["results"][clock] for r in members]
    row["interval"] = [
        (f["drop_low"], f["drop_high"]) for r in members if "drop_low" in (f := r["results"])
    ]
    row["speedup"] = [s for r in members if (s := speedup(r, times)) is not None]
    return row


def headline(record: Record) -> str:
    """Return the name of a finished run's main figure."""
    return str(record["results"].get("headline", "top1"))  # older records have no other


def clock(records: Iterable[Record]) -> str:
    """Return which figure is the solve time in a table of finished `records`.

    CPU seconds if all have them: they are the solver's own, where seconds on the clock are the
    machine's other work as well. Records older than these, and those of GPUs, have seconds on the
    clock alone.
    """
    return CPU if all(CPU in r["results"] for r in records) else WALL


def yardsticks(records: Iterable[Record]) -> dict[str, Times]:
    """Return OBQ's solve times in seconds by problem: on each clock that all of its runs have, the mean of them.

    The same problem: equal statistics, bits and grid, and the same machine, by its fingerprint in
    the record.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    for r in records:
        if r["choices"]["quantizer"] == YARDSTICK:
            runs.setdefault(_problem(r), []).append(r["results"])
    return {
        problem: {
            what: statistics.fmean(figures[what] for figures in own)
            for what in (CPU, WALL)
            if all(what in figures for figures in own)
        }
        for problem, own in runs.items()
    }


def speedup(record: Record, times: Mapping[str, Times]) -> float | None:
    """Return OBQ's solve time (see `yardsticks`) over that of `record`, on one clock; None if it is not known."""
    own, figures = times.get(_problem(record)), record["results"]
    if own is None:
        return None
    what = CPU if CPU in own and CPU in figures else WALL
    return own[what] / figures[what]


def _problem(record: Record) -> str:
    parts = [canonical(record["config"][part]) for part in ("bits", "grid", "allocation")]
    return json.dumps(
        [record["statistics"], record["provenance"]["machine"], *parts], sort_keys=True
    )


def _cell(values: list[float], form: str, unit: str = "") -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):{form}}"
    if float(mean) == 0:  # no "-0.00"
        mean = mean.lstrip("-")
    return f"{mean} +- {statistics.stdev(values):{form}}{unit}" if len(values) > 1 else mean + unit
