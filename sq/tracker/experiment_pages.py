"""What of an experiment is tracked: a page for each record in its folder, and one for the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sq.errors import SqError
from sq.records import run_state
from sq.records.record import Record
from sq.report.slim import Slim
from sq.tracker import run_page
from sq.tracker.run_page import Page


@dataclass(frozen=True)
class Item:
    """A page before it is made: its id, a digest of all it is made of, and what makes it."""

    id: str
    digest: str
    draw: Callable[[], Page]


@dataclass(frozen=True)
class Experiment:
    """What the folder of an experiment holds.

    Parameters
    ----------
    folder : its own
    records : by key, as reports read them (`sq.report.slim`): thousands of whole ones would take
    gigabytes
    failures : by key, a line for each run that failed, is damaged or could not be repeated
    digests : by key, of a record's bytes and those of its failed repetition; records known before
    have none
    damaged : by key, what is wrong with a file that is no record
    """

    folder: Path
    records: dict[str, Record]
    failures: dict[str, str]
    digests: dict[str, str]
    damaged: dict[str, str]

    @property
    def done(self) -> list[Record]:
        """Return the records of runs that are done."""
        return [own for own in self.records.values() if own["status"] == "done"]

    def items(self) -> list[Item]:
        """Return one item a record, sorted by key, and that of the whole at the end."""
        name = self.folder.name
        made = [
            Item(run_page.identity(name, key), digest, partial(_draw, self.folder / f"{key}.json"))
            for key, digest in self.digests.items()
        ]
        lines = [line.encode() for line in self.damaged.values()]
        whole = _hash(*(digest.encode() for digest in self.digests.values()), *lines)
        return [*made, Item(run_page.summary_identity(name), whole, self.summary)]

    def summary(self, also: Mapping[str, str] | None = None) -> Page:
        """Return the page of the whole.

        Parameters
        ----------
        also : failures known from elsewhere, by key; of those here too, these lines are shown
        """
        return run_page.summary(
            self.folder.name, self.done, {**(also or {}), **self.failures, **(also or {})}
        )


def read(folder: Path, known: Mapping[str, Record] | None = None) -> Experiment:
    """Return what `folder` holds; records that are `known`, by key, are not read again.

    A record belongs to the experiment whose folder it is in, and its key is the name of its file.
    """
    found = Experiment(folder, {}, {}, {}, {})
    slim = Slim()
    for file in sorted(folder.glob("*.json")):
        key = file.stem
        if known and key in known:
            found.records[key] = _own(known[key], file)
            continue
        parts: list[bytes] = []
        own = run_state.find(file, partial(_parse, parts), slim)
        if own.state == "damaged":
            found.damaged[key] = found.failures[key] = own.cause
        elif own.record is not None:
            found.records[key] = _own(own.record, file)
            found.digests[key] = _hash(*parts, *[b""] * (2 - len(parts)))
            if own.cause:
                found.failures[key] = f"{run_page.title(own.record)} ({key}): {own.cause}"
    return found


def _parse(parts: list[bytes], raw: bytes) -> Any:
    """Read JSON, and keep in `parts` the bytes it was read from: their digest is of what was read, not of what came."""
    from pydantic_core import from_json

    parts.append(raw)
    return from_json(raw)


def _draw(file: Path) -> Page:
    """Return the page of the run of record `file`, which is read for that: in whole it is needed but once.

    Raises
    ------
    SqError : it is damaged, or gone
    """
    own = run_state.find(file)
    if own.record is None:
        raise SqError(own.cause or f"{file} is gone")
    return run_page.run(
        _own(run_page.kept(own.repeat, own.record) if own.repeat else own.record, file)
    )


def _own(record: Record, file: Path) -> Record:
    return {**record, "name": file.parent.name, "key": file.stem}


def _hash(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.hexdigest()[:16]
