"""What a tracker shows of a record and of a whole experiment, as plain data: names, tags, figures, tables, pictures.

No client is needed here. A page has the same id whenever it is made of the same run, so that what
is sent again (a run repeated, a job requeued, an upload later) takes the place of what was there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sq.records.record import Record, contact_sheet

Mode = Literal["online", "offline", "disabled"]
TAG = 64  # characters W&B takes for one
BARE = ("model", "dataset", "quantizer")  # choices whose word says what it is
NAMED = ("correction", "activation")  # those whose "none" would not


@dataclass(frozen=True)
class Destination:
    """Where pages go; see `sq.tracker.wandb.open`."""

    mode: Mode
    project: str
    entity: str | None
    dir: str
    timeout: int


@dataclass(frozen=True)
class Table:
    """Named columns, and one list of cells a row."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Page:
    """One run as a tracker is to show it.

    Parameters
    ----------
    id : the same for the same run, in every process; unique within a project
    job_type : "run", or "summary" for an experiment as a whole
    summary : figures and words by name; pictures : PNG files
    """

    id: str
    title: str
    group: str
    job_type: str
    tags: list[str]
    config: dict[str, Any]
    summary: dict[str, Any]
    tables: dict[str, Table] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    exit_code: int = 0


def run(record: Record) -> Page:
    """Return the page of one run, done, failed or just begun (which is a failure as long as nothing else is known)."""
    done, config = record["status"] == "done", record["config"]
    own = {
        "choices": record["choices"],
        "key": record["key"],
        "provenance": record.get("provenance", {}),
    }
    return Page(
        id=identity(record["name"], record["key"]),
        title=title(record),
        group=record["name"],
        job_type="run",
        tags=tags(record),
        config={**config, **own},
        summary=_figures(record) if done else _cause(record),
        tables=_tables(record) if done else {},
        pictures=_sheet(record) if done else {},
        exit_code=0 if done else 1,
    )


def summary(name: str, records: Sequence[Record], failures: Mapping[str, str]) -> Page:
    """Return the page of experiment `name` as a whole: its table, its figures, what failed, and which code ran.

    Parameters
    ----------
    records : those of runs that are done
    failures : by key, a line each, with the cause; a run that is done and has one could not be
    repeated
    """
    commits = sorted({str(record.get("provenance", {}).get("commit")) for record in records})
    keys = sorted(record["key"] for record in records)
    failed = len(failures.keys() - {*keys})
    counts = {"runs": len(keys) + failed, "done": len(keys), "failed": failed}
    return Page(
        id=summary_identity(name),
        title=f"{name}: summary",
        group=name,
        job_type="summary",
        tags=["summary"],
        config={"name": name, "keys": keys, "commits": commits},
        summary={
            "status": "failed" if failed else "done",
            **counts,
            "not_repeated": len(failures) - failed,
            "commits": len(commits),
        },
        tables=_report(records) | _causes(list(failures.values())),
        pictures=_pictures(records),
        exit_code=1 if failed else 0,
    )


def identity(name: str, key: str) -> str:
    """Return the id of a run of experiment `name`: its key, and a hash of the name, for experiments share keys."""
    return f"{key}-{_hash(name)}"


def summary_identity(name: str) -> str:
    """Return the id of the page of experiment `name` as a whole."""
    return f"summary-{_hash(name)}"


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def title(record: Record) -> str:
    """Return what tells a run from its neighbours, in words."""
    choices, config = record["choices"], record["config"]
    words = [choices[family] for family in ("model", "quantizer") if family in choices] or ["run"]
    return f"{' '.join(words)} {config['bits']:g} bits seed {config['seed']}"


def tags(record: Record) -> list[str]:
    """Return what a reader filters runs by: choices in the words of the command line, and bits."""
    choices = record["choices"]
    words = [choices[family] for family in BARE if family in choices]
    words += [f"bits={record['config']['bits']:g}"]
    words += [f"{family}={choices[family]}" for family in NAMED if family in choices]
    return list(dict.fromkeys(word[:TAG] for word in words))


def kept(made: Record, earlier: Record | None) -> Record:
    """Return what a tracker is to show of a run `made` where the record of an `earlier` one may be there.

    Where repeating a done run failed, the earlier record is kept, and so are its figures; the
    failure is said beside.
    """
    if earlier is None or made["status"] == "done":
        return made
    return {**earlier, "repeat_error": made["error"], "repeat_traceback": made.get("traceback", "")}


def _figures(record: Record) -> dict[str, Any]:
    seconds = {f"seconds/{phase}": value for phase, value in record["seconds"].items()}
    again = {name: record[name] for name in ("repeat_error", "repeat_traceback") if name in record}
    return {"status": "done", **record["results"], **seconds, **again}


def _cause(record: Record) -> dict[str, Any]:
    return {
        "status": "failed",
        "error": record.get("error", ""),
        "traceback": record.get("traceback", ""),
    }


def _layers(record: Record) -> Table:
    columns = list(dict.fromkeys(name for layer in record["layers"] for name in layer))
    return Table(columns, [[layer.get(name) for name in columns] for layer in record["layers"]])


def _sensitivity(record: Record) -> Table:
    cost: Mapping[str, Mapping[str, float]] = record["sensitivity"]
    rows = [[name, int(bits), value] for name, row in cost.items() for bits, value in row.items()]
    return Table(["layer", "bits", "cost"], rows)


def _tables(record: Record) -> dict[str, Table]:
    return (
        {"layers": _layers(record), "sensitivity": _sensitivity(record)}
        | _curves(record)
        | _scores(record)
    )


def _scores(record: Record) -> dict[str, Table]:
    """Return what weighed each layer while it was learned, {} where nothing did."""
    scores: Mapping[str, float] = record.get("learning", {}).get("scores", {})
    return (
        {"scores": Table(["layer", "score"], [[*row] for row in scores.items()])} if scores else {}
    )


def _curves(record: Record) -> dict[str, Table]:
    """Return the terms of the loss, hardness and flipped codes by step, {} where nothing was learned."""
    rows: list[Mapping[str, Any]] = record.get("learning", {}).get("curves", [])
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return (
        {"curves": Table(columns, [[row.get(name) for name in columns] for row in rows])}
        if rows
        else {}
    )


def _sheet(record: Record) -> dict[str, bytes]:
    """Return the picture of the images that a run made to calibrate with, {} if it made none, or left it elsewhere."""
    if not record.get("calibration", {}).get("made"):
        return {}
    try:
        return {"images": contact_sheet(record["config"], record["key"]).read_bytes()}
    except OSError:
        return {}


def _causes(failures: Sequence[str]) -> dict[str, Table]:
    return {"failures": Table(["failure"], [[line] for line in failures])} if failures else {}


def _report(records: Sequence[Record]) -> dict[str, Table]:
    if not records:
        return {}
    from sq.report import table

    made = table.build(list(records))
    return {"table": Table(list(made.columns), made.to_numpy().tolist())}


def _pictures(records: Sequence[Record]) -> dict[str, bytes]:
    if not records:
        return {}
    from sq.report import figure, style, table

    done = list(records)
    return {name: style.png(drawn) for name, drawn in figure.all_figures(table.rows(done), done)}
