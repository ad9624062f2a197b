"""The page that a tracker shows of a record or a whole experiment, as plain data without a client.

A page of the same run always has the same id. What is sent again (a repeated run, a requeued job, a
later upload) replaces the earlier page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sq.records.record import Record, contact_sheet

Mode = Literal["online", "offline", "disabled"]
TAG_LENGTH = 64  # characters that W&B accepts
PLAIN_TAGS = ("model", "dataset", "quantizer")  # choices whose name is clear by itself
NAMED_TAGS = ("correction", "activation")  # choices such as "none", which need their family


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
    """The page of one run in a tracker.

    Parameters
    ----------
    id : the same for the same run, in every process; unique within a project
    job_type : "run", or "summary" for an experiment as a whole
    summary : numbers and text by name
    pictures : PNG files by name
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
    """Return the page of one run, done or failed; a run that has just begun counts as failed."""
    done = record["status"] == "done"
    config = {
        **record["config"],
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
        config=config,
        summary=_figures(record) if done else _cause(record),
        tables=_tables(record) if done else {},
        pictures=_contact_sheet(record) if done else {},
        exit_code=0 if done else 1,
    )


def summary(name: str, records: Sequence[Record], failures: Mapping[str, str]) -> Page:
    """Return the page of a whole experiment: table, figures, failures, and commits of the code.

    Parameters
    ----------
    records : those of runs that are done
    failures : by key, a line with the cause; a done run that has one could not be repeated
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
    """Return the id of a run: its key, and a hash of the name, since experiments share keys."""
    return f"{key}-{_hash(name)}"


def summary_identity(name: str) -> str:
    """Return the id of the page of experiment `name` as a whole."""
    return f"summary-{_hash(name)}"


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def title(record: Record) -> str:
    """Return a title such as "resnet18 rtn 4 bits seed 0"."""
    choices, config = record["choices"], record["config"]
    names = [choices[family] for family in ("model", "quantizer") if family in choices]
    return f"{' '.join(names or ['run'])} {config['bits']:g} bits seed {config['seed']}"


def tags(record: Record) -> list[str]:
    """Return tags to filter runs by: choices as on the command line, and bits."""
    choices = record["choices"]
    names = [choices[family] for family in PLAIN_TAGS if family in choices]
    names += [f"bits={record['config']['bits']:g}"]
    names += [f"{family}={choices[family]}" for family in NAMED_TAGS if family in choices]
    return list(dict.fromkeys(name[:TAG_LENGTH] for name in names))


def displayed(latest: Record, earlier: Record | None) -> Record:
    """Return the record to show of a run with a `latest` attempt and perhaps an `earlier` done one.

    If repeating a done run failed, that is the earlier record, with the failure in addition.
    """
    if earlier is None or latest["status"] == "done":
        return latest
    return {
        **earlier,
        "repeat_error": latest["error"],
        "repeat_traceback": latest.get("traceback", ""),
    }


def _figures(record: Record) -> dict[str, Any]:
    """Return the results of a done run, seconds by phase, and the error of a failed repeat."""
    seconds = {f"seconds/{phase}": value for phase, value in record["seconds"].items()}
    repeat = {name: record[name] for name in ("repeat_error", "repeat_traceback") if name in record}
    return {"status": "done", **record["results"], **seconds, **repeat}


def _cause(record: Record) -> dict[str, Any]:
    return {
        "status": "failed",
        "error": record.get("error", ""),
        "traceback": record.get("traceback", ""),
    }


def _layers(record: Record) -> Table:
    return _table(record["layers"])


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of `rows`, with the columns of all of them in order of first appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return Table(list(names), [[row.get(name) for name in names] for row in rows])


def _sensitivity(record: Record) -> Table:
    sensitivity: Mapping[str, Mapping[str, float]] = record["sensitivity"]
    rows: list[list[Any]] = []
    for layer, costs in sensitivity.items():
        rows += [[layer, int(bits), cost] for bits, cost in costs.items()]
    return Table(["layer", "bits", "cost"], rows)


def _tables(record: Record) -> dict[str, Table]:
    return (
        {"layers": _layers(record), "sensitivity": _sensitivity(record)}
        | _curves(record)
        | _scores(record)
    )


def _scores(record: Record) -> dict[str, Table]:
    """Return the weight of each layer in learning, {} if learning used none."""
    scores: Mapping[str, float] = record.get("learning", {}).get("scores", {})
    if not scores:
        return {}
    return {"scores": Table(["layer", "score"], [[*row] for row in scores.items()])}


def _curves(record: Record) -> dict[str, Table]:
    """Return terms of the loss, hardness and flipped codes by step, {} if nothing was learned."""
    rows: list[Mapping[str, Any]] = record.get("learning", {}).get("curves", [])
    return {"curves": _table(rows)} if rows else {}


def _contact_sheet(record: Record) -> dict[str, bytes]:
    """Return the picture of generated calibration images, {} if there is none on this machine."""
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

    report = table.build(list(records))
    return {"table": Table(list(report.columns), report.to_numpy().tolist())}


def _pictures(records: Sequence[Record]) -> dict[str, bytes]:
    if not records:
        return {}
    from sq.report import figure, style, table

    listed = list(records)
    figures = figure.all_figures(table.rows(listed), listed)
    return {name: style.png(drawing) for name, drawing in figures}
