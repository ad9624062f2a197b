"""The state of a run, derived from the records that it left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sq.errors import SqError
from sq.records.record import Record, failed_rerun, read


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Parameters
    ----------
    state : "done", "failed", "new" (no record), or "damaged" (a file that is not a whole record)
    cause : why it failed, or what is damaged; of a done run "", unless it could not be repeated
    record : of the run; None if there is none, or a damaged one
    repeat : the record of the failed attempt to repeat a done run
    """

    state: Literal["done", "failed", "new", "damaged"]
    cause: str = ""
    record: Record | None = None
    repeat: Record | None = None


def find(
    file: Path,
    parse: Callable[[bytes], Any] | None = None,
    reduce: Callable[[Record], Record] = lambda record: record,
) -> RunState:
    """Return the state of the run of record `file`.

    A done run stays done if repeating it fails, because its results are there.

    Parameters
    ----------
    parse : a JSON parser; None takes the fastest one
    reduce : returns the part of a record to keep
    """
    from pydantic_core import from_json  # three times as fast as json

    parse = parse or from_json
    repeat = None
    try:
        record = read(file, parse)
        if record is not None and record["status"] == "done":
            repeat = read(failed_rerun(file), parse)
    except SqError as error:
        return RunState("damaged", str(error))
    if record is None:
        return RunState("new")
    if record["status"] != "done":
        return RunState("failed", _error(record), reduce(record))
    cause = ""
    if repeat is not None:
        cause = (
            f"repeating it failed: {_error(repeat)} (the earlier record counts; rerun=true tries "
            f"again, and deleting {failed_rerun(file)} settles it)"
        )
    return RunState("done", cause, reduce(record), repeat)


def _error(record: Record) -> str:
    return str(record.get("error", "no cause was recorded"))
