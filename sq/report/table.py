"""The table of an experiment: one row for each method and bit-width, seeds averaged."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sq.config import leaves
from sq.record import BOOKKEEPING, Record

if TYPE_CHECKING:
    import pandas
    from rich.table import Table

SEEDS = ("seed", "calibration.seed")
ACTIVATION = "act. bits"  # the column
FLOAT = 32  # bits of what is not quantized
# How tables and figures name the main figure of a record (its "headline"), and how many digits of it mean something.
HEADLINES = {"top1": ("top-1 %", ".2f"), "map": ("mAP", ".4f")}
YARDSTICK = "obq"  # speed-ups are over this quantizer's runs on the same statistics
Row = dict[str, Any]


def rows(records: list[Record]) -> list[Row]:
    """Group records that differ in seeds only; return one row for each group.

    Returns
    -------
    `labels`: what tells the groups apart (method, bits, and whatever else varies); `headline`: the name of the main
    figure; `score`, its `drop`, `relative_error`, `solve_seconds`, `interval` (95 %, of the drop), `speedup`: lists
    with one entry a record (the last two may be shorter); `runs`
    """
    done = [r for r in records if r["status"] == "done"]
    flat = [_science(r) for r in done]
    varying = {name for name in set().union(*flat) if len({json.dumps(f.get(name)) for f in flat}) > 1}
    groups: dict[str, list[int]] = {}
    for i, settings in enumerate(flat):
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(i)
    made = [_row([done[i] for i in members], flat, flat[members[0]], varying, done) for members in groups.values()]
    return sorted(made, key=lambda row: [_rank(name, value) for name, value in row["labels"].items()])


def build(records: list[Record], *, times: bool = True) -> pandas.DataFrame:
    """Return the table as text cells, mean +- standard deviation where there are several seeds.

    Without `times` it holds what every machine of one kind gives alike.
    """
    import pandas

    made = rows(records)
    table = _full_precision(made)
    for row in made:
        cells = {name: _plain(value) for name, value in row["labels"].items()}
        cells |= {
            _title(row): _cell(row["score"], _form(row)),
            "drop": _cell(row["drop"], _form(row)),
            **({"95 %": _interval(row)} if any(own["interval"] for own in made) else {}),
            "rel. error": _cell(row["relative_error"], ".5f"),
            "solve s": _cell(row["solve_seconds"], ".3f"),
            "speed-up": _cell(row["speedup"], ".1f", "x"),
            "runs": str(row["runs"]),
        }
        table.append(cells)
    whole = pandas.DataFrame(table).fillna("-")
    return whole if times else whole.drop(columns=["solve s", "speed-up"])


def _full_precision(made: list[Row]) -> list[dict[str, str]]:
    """Return the cells of full precision, one line for each model and dataset in the table."""
    seen: dict[tuple, dict[str, str]] = {}
    for row in made:
        where = {name: _plain(row["labels"][name]) for name in ("model", "dataset") if name in row["labels"]}
        full = statistics.fmean(s + d for s, d in zip(row["score"], row["drop"], strict=True))
        cells = {"method": "full precision", "bits": "32", **where, _title(row): f"{full:{_form(row)}}"}
        seen.setdefault(tuple(where.values()), cells)
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

    shown = Table(caption="speed-up: over OBQ's solve time on the same statistics and machine", caption_justify="left")
    for name in table.columns:
        shown.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for cells in table.itertuples(index=False):
        shown.add_row(*cells)
    return shown


def _science(record: Record) -> dict[str, Any]:
    """Return what shaped the run's result, flat, seeds apart."""
    science = {name: value for name, value in record["config"].items() if name not in BOOKKEEPING}
    flat = {name: value for name, value in leaves(science).items() if name not in SEEDS}
    return flat | {f"choice of {name}": option for name, option in record["choices"].items() if name in science}


def _row(members: list[Record], flat: list[dict], own: dict, varying: set[str], done: list[Record]) -> Row:
    first = members[0]
    labels: dict[str, Any] = {"method": _method(first, flat, own, varying), "bits": first["config"]["bits"]}
    if any(_activation_bits(r) for r in done):
        labels[ACTIVATION] = _activation_bits(first) or FLOAT
    for name in sorted(varying):
        family = name.removeprefix("choice of ").split(".")[0]
        if family in ("quantizer", "bits") or name.endswith("_target_") or name == "activation.bits":
            continue
        if name == "choice of activation" and len({f.get(name) for f in flat} - {"none"}) <= 1:
            continue  # the bits say as much
        if name.startswith("choice of "):
            labels[family] = own.get(name)
        elif f"choice of {family}" not in varying:  # a setting of the same choice, set to other values
            labels[name] = own.get(name)
    headline = first["results"].get("headline", "top1")  # older records have no other
    row: Row = {"labels": labels, "runs": len(members), "headline": headline}
    row["score"] = [r["results"][headline] for r in members]
    for name in ("drop", "relative_error", "solve_seconds"):
        row[name] = [r["results"][name] for r in members]
    row["interval"] = [(f["drop_low"], f["drop_high"]) for r in members if "drop_low" in (f := r["results"])]
    row["speedup"] = [s for r in members if (s := speedup(r, done)) is not None]
    return row


def _activation_bits(record: Record) -> int | None:
    return (record["config"].get("activation") or {}).get("bits")


def _method(record: Record, flat: list[dict], own: dict, varying: set[str]) -> str:
    """Return the quantizer's name, with those of its settings that vary among the runs of that quantizer."""
    name = record["choices"]["quantizer"]
    peers = [f for f in flat if f.get("choice of quantizer") == name]
    knobs = sorted(k for k in varying if k.startswith("quantizer.") and len({json.dumps(f.get(k)) for f in peers}) > 1)
    return " ".join([name, *(f"{k.rsplit('.', 1)[1]}={own.get(k)}" for k in knobs)])


def speedup(record: Record, records: Iterable[Record]) -> float | None:
    """Return OBQ's solve time over that of `record`, for the same problem on the same machine; None if unknown.

    The same problem: equal statistics, bits and grid. The same machine: equal fingerprint in the record.
    """
    same = [
        r["results"]["solve_seconds"]
        for r in records
        if r["choices"]["quantizer"] == YARDSTICK
        and r["statistics"] == record["statistics"]
        and r["provenance"]["machine"] == record["provenance"]["machine"]
        and all(r["config"][part] == record["config"][part] for part in ("bits", "grid", "allocation"))
    ]
    return statistics.fmean(same) / record["results"]["solve_seconds"] if same else None


def _cell(values: list[float], form: str, unit: str = "") -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):{form}}"
    if float(mean) == 0:  # no "-0.00"
        mean = mean.lstrip("-")
    return f"{mean} +- {statistics.stdev(values):{form}}{unit}" if len(values) > 1 else mean + unit


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _rank(name: str, value: Any) -> tuple:
    """Sort numbers by value (bits from high to low), text with its numbers by value, absent values last."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, -value if name == "bits" else value, ())
    words = tuple((not w.isdigit(), int(w) if w.isdigit() else 0, w) for w in re.split(r"(\d+)", str(value)))
    return (1 if value is not None else 2, 0, words)


def sensitivity(records: list[Record]) -> Mapping[str, pandas.DataFrame]:
    """Return, by model, each layer's cost at each bit-width, averaged over distinct statistics."""
    import pandas

    tables: dict[str, dict[str, Record]] = {}
    for record in records:
        if record["status"] == "done":
            tables.setdefault(record["choices"]["model"], {}).setdefault(record["statistics"], record)
    mean = {}
    for model, by_statistics in tables.items():
        frames = [
            pandas.DataFrame(r["sensitivity"]).T.sort_index(axis=1, key=lambda bits: bits.astype(int))
            for r in by_statistics.values()
        ]
        mean[model] = sum(frames[1:], frames[0]) / len(frames)
    return mean
