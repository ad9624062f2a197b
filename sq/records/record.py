"""Records of runs: JSON files, named by a hash of the config, written whole or not at all."""

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
# Settings that decide where and how a run is stored, not what it computes.
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
    """Return the run's identity: a hash of the config without bookkeeping, as 16 hex digits."""
    original = migrations.stripped(renamed_targets.original(config))
    science = {
        name: canonical(value) for name, value in original.items() if name not in BOOKKEEPING
    }
    return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:16]


def canonical(value: Any) -> Any:
    """Return `value` with whole floats as integers, so that 1 and 1.0 are one setting."""
    if isinstance(value, Mapping):
        return {name: canonical(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [canonical(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def path(config: Mapping[str, Any], run_key: str | None = None) -> Path:
    """Return the file of the record of `config`; its key is computed unless `run_key` is given."""
    return Path(config["results"]) / config["name"] / f"{run_key or key(config)}.json"


def folder(name: str, results: Path) -> Path:
    """Return the folder of the records of experiment `name`.

    Raises
    ------
    SqError : there is none, or it holds a benchmark
    """
    experiment = results / name
    if not experiment.is_dir():
        names: list[str] = []
        if results.is_dir():
            names = [entry.name for entry in results.iterdir() if entry.is_dir()]
        raise SqError(
            f"no experiment {name} in {results}; {nearest(name, names) if names else 'it is empty'}"
        )
    if (experiment / "bench.json").is_file():
        raise SqError(
            f"{experiment} holds a benchmark: "
            f"python -m sq.bench {name.removeprefix('bench_')} --report"
        )
    return experiment


def beside(expected: set[Path]) -> list[str]:
    """Return a line for each folder of the `expected` records that holds other records too."""
    lines = []
    for record_folder in dict.fromkeys(file.parent for file in sorted(expected)):
        others = {*record_folder.glob("*.json")} - expected
        if others:
            lines.append(
                f"{record_folder.name}: {quantity(others, 'record')} beside, of other settings or "
                "of earlier code, in its tables too"
            )
    return lines


def failed_rerun(file: Path) -> Path:
    """Return the file for the failed attempt to repeat the done run of record `file`."""
    return file.parent / "failed" / file.name


def read(file: Path, parse: Callable[[bytes], Any] = json.loads) -> Record | None:
    """Return the record in `file`, None if there is none.

    Parameters
    ----------
    parse : a JSON parser; raises a ValueError for invalid JSON

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
            f"{file} is a record of version {version}, this sq reads {VERSION}: delete it or use "
            "that sq"
        )
    if status not in ("done", "failed"):
        raise SqError(
            f"{file} is not a whole record (status {status}): delete it, and the run is done again"
        )
    migrations.complete(record)
    return record


def fingerprint(file: Path) -> str:
    """Return a hash of the files of the run of record `file`, which changes with each attempt."""
    sha = hashlib.sha256()
    for attempt in (file, failed_rerun(file)):
        with contextlib.suppress(OSError):
            sha.update(attempt.name.encode() + attempt.read_bytes())
    return sha.hexdigest()


def save(file: Path, record: Record, *, keep_done: bool) -> None:
    """Write the `record` of an attempt to `file`.

    Parameters
    ----------
    keep_done : `file` is of a done run; a failed attempt to repeat it is written beside it

    Raises
    ------
    SqError : the folder cannot be written, or the disk is full
    """
    if keep_done and record["status"] == "failed":
        write(failed_rerun(file), record)
    else:
        write(file, record)
        failed_rerun(file).unlink(missing_ok=True)


def read_all(
    folder: Path, reduce: Callable[[Record], Record] = lambda record: record
) -> list[Record]:
    """Return every record in `folder`, sorted by key.

    Parameters
    ----------
    reduce : returns the part of a record to keep; 10,000 whole ones would take gigabytes

    Raises
    ------
    SqError : there is none, or one is damaged
    """
    from pydantic_core import from_json  # three times as fast as json

    records = []
    for file in sorted(folder.glob("*.json")):
        record = read(file, from_json)
        if record is not None:
            records.append(reduce(record))
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


def save_ids(config: Mapping[str, Any], name: str, ids: list[str]) -> None:
    """Write the ids of calibration images, one a line, beside the records that have their hash."""
    file = Path(config["results"]) / config["name"] / "calibration" / f"{name}.txt"
    if not file.is_file():
        files.write_text(file, "\n".join(ids) + "\n")


def contact_sheet(config: Mapping[str, Any], key: str) -> Path:
    """Return the file for the picture of generated calibration images: beside the run's log."""
    return Path(config["outputs"]) / config["name"] / f"{key}.images.png"


def probe(folder: Path) -> None:
    """Check that a record can be written to `folder`, before any work is done for it.

    Raises
    ------
    SqError : it cannot
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
