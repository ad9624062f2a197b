"""Records: one run's JSON, named by a hash of its config, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sq.config import renamed_targets
from sq.config.schema import nearest
from sq.core import files
from sq.core.wording import quantity
from sq.errors import SqError
from sq.records import migrations

VERSION = 1
# Settings that say where and how a run is kept, not what it computes.
BOOKKEEPING = (
    "name",
    "results",
    "outputs",
    "rerun",
    "sweep",
    "tracker",
    "cache",
    "cache_gib",
    "workers",
    "plugins",
)

Record = dict[str, Any]


def key(config: Mapping[str, Any]) -> str:
    """Return the run's identity: 16 hex digits, a hash of the resolved config without bookkeeping."""
    first = migrations.stripped(renamed_targets.original(config))
    science = {name: canonical(value) for name, value in first.items() if name not in BOOKKEEPING}
    return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:16]


def canonical(value: Any) -> Any:
    """Return `value` with whole floats as integers, so that 1 and 1.0 are one setting."""
    if isinstance(value, Mapping):
        return {name: canonical(own) for name, own in value.items()}
    if isinstance(value, list):
        return [canonical(own) for own in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def path(config: Mapping[str, Any], known: str | None = None) -> Path:
    """Return where the record of `config` belongs; its key takes a while to find, unless it is `known`."""
    return Path(config["results"]) / config["name"] / f"{known or key(config)}.json"


def folder(name: str, results: Path) -> Path:
    """Return the folder of the records of experiment `name`.

    Raises
    ------
    SqError : there is none, or it holds a benchmark
    """
    found = results / name
    if not found.is_dir():
        known = [f.name for f in results.iterdir() if f.is_dir()] if results.is_dir() else []
        raise SqError(
            f"no experiment {name} in {results}; {nearest(name, known) if known else 'it is empty'}"
        )
    if (found / "bench.json").is_file():
        raise SqError(
            f"{found} holds a benchmark: python -m sq.bench {name.removeprefix('bench_')} --report"
        )
    return found


def beside(wanted: set[Path]) -> list[str]:
    """Return a line for each folder of the records `wanted` that holds others."""
    places = {file.parent: file.parent.glob("*.json") for file in sorted(wanted)}
    return [
        f"{place.name}: {quantity(others, 'record')} beside, of other settings or of earlier code, in its tables too"
        for place, files in places.items()
        if (others := {*files} - wanted)
    ]


def failed_rerun(file: Path) -> Path:
    """Return where a failed attempt to repeat the done run of `file` is kept."""
    return file.parent / "failed" / file.name


def read(file: Path, parse: Callable[[bytes], Any] = json.loads) -> Record | None:
    """Return the record in `file`, None if there is none.

    Parameters
    ----------
    parse : reads JSON; raises a ValueError for what is none

    Raises
    ------
    SqError : the file is damaged or of another version
    """
    try:
        record = parse(file.read_bytes())
        version, status = record["record"], record.get("status")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SqError(
            f"cannot read {file}: {error.strerror}; correct results= or its rights"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SqError(
            f"{file} is not a whole record ({error}): delete it, and the run is done again"
        ) from error
    if version != VERSION:
        raise SqError(
            f"{file} is a record of version {version}, this sq reads {VERSION}: delete it or use that sq"
        )
    if status not in ("done", "failed"):
        raise SqError(
            f"{file} is not a whole record (status {status}): delete it, and the run is done again"
        )
    migrations.complete(record)
    return record


def mark(file: Path) -> str:
    """Return what tells whether the run of record `file` has been attempted since: a hash of what it left so far."""
    left = hashlib.sha256()
    for own in (file, failed_rerun(file)):
        with contextlib.suppress(OSError):
            left.update(own.name.encode() + own.read_bytes())
    return left.hexdigest()


def keep(file: Path, record: Record, *, spare: bool) -> None:
    """Write the `record` of an attempt: to `file`, or beside the done one there if that is to be spared a failure.

    Raises
    ------
    SqError : the folder cannot be written, or the disk is full
    """
    aside = spare and record["status"] == "failed"
    write(failed_rerun(file) if aside else file, record)
    if not aside:
        failed_rerun(file).unlink(missing_ok=True)


def read_all(
    folder: Path, keep: Callable[[Record], Record] = lambda record: record
) -> list[Record]:
    """Return every record in `folder`, sorted by key.

    Parameters
    ----------
    keep : returns of a record what is to be kept of it; 10,000 whole ones would take gigabytes

    Raises
    ------
    SqError : there is none, or one is damaged
    """
    from pydantic_core import from_json  # three times as fast as json

    files = sorted(folder.glob("*.json"))
    records = [keep(r) for file in files if (r := read(file, from_json)) is not None]
    if not records:
        raise SqError(f"no records in {folder}: run the experiment first")
    return records


def write(file: Path, record: Record) -> None:
    """Write `record` to `file`, whole or not at all; an earlier record survives a failure.

    Raises
    ------
    SqError : the folder cannot be written, or the disk is full
    """
    files.write_text(file, json.dumps(record, indent=1, allow_nan=False) + "\n")


def keep_ids(config: Mapping[str, Any], name: str, ids: list[str]) -> None:
    """Keep the ids of calibration images beside the records that name their hash, one a line."""
    file = Path(config["results"]) / config["name"] / "calibration" / f"{name}.txt"
    if not file.is_file():
        files.write_text(file, "\n".join(ids) + "\n")


def sheet(config: Mapping[str, Any], key: str) -> Path:
    """Return where the picture of the images belongs that a run made to calibrate with: beside its log."""
    return Path(config["outputs"]) / config["name"] / f"{key}.images.png"


def probe(folder: Path) -> None:
    """Make sure a record could be written to `folder`, before any work is done for it.

    Raises
    ------
    SqError : it could not
    """
    file = folder / f".probe.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        file.unlink()
    except OSError as error:
        raise SqError(
            f"cannot write to {folder}: {error.strerror}; correct results= or the folder's rights"
        ) from error
