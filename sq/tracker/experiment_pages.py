"""The tracker pages of an experiment: one for each record in its folder, and one for the whole."""

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
    """A page that is not drawn yet: its id, a digest of its sources, and how to draw it."""

    id: str
    digest: str
    draw: Callable[[], Page]


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment's folder.

    Parameters
    ----------
    records : by key, as reports read them (`sq.report.slim`); thousands of whole ones would take
        gigabytes
    failures : by key, a line for each run that failed, is damaged or could not be repeated
    digests : by key, of the bytes of a record and of its failed repetition; records that were known
        before have none
    damaged : by key, the fault of a file that is not a record
    """

    folder: Path
    records: dict[str, Record]
    failures: dict[str, str]
    digests: dict[str, str]
    damaged: dict[str, str]

    @property
    def done(self) -> list[Record]:
        """Return the records of runs that are done."""
        return [record for record in self.records.values() if record["status"] == "done"]

    def items(self) -> list[Item]:
        """Return an item for each record, sorted by key, and one for the whole at the end."""
        name = self.folder.name
        items = []
        for key, digest in self.digests.items():
            draw = partial(_draw, self.folder / f"{key}.json")
            items.append(Item(run_page.identity(name, key), digest, draw))
        sources = [*self.digests.values(), *self.damaged.values()]
        whole = _hash(*(source.encode() for source in sources))
        return [*items, Item(run_page.summary_identity(name), whole, self.summary)]

    def summary(self, other_failures: Mapping[str, str] | None = None) -> Page:
        """Return the page of the whole experiment.

        Parameters
        ----------
        other_failures : known from elsewhere, by key; they replace those of the same keys here
        """
        others = other_failures or {}
        # The others come first, in their order.
        failures = {**others, **self.failures, **others}
        return run_page.summary(self.folder.name, self.done, failures)


def read(folder: Path, known: Mapping[str, Record] | None = None) -> Experiment:
    """Return the content of `folder`; records that are `known`, by key, are not read again.

    A record belongs to the experiment whose folder it is in, and its key is the name of its file.
    """
    experiment = Experiment(folder, {}, {}, {}, {})
    slim = Slim()
    for file in sorted(folder.glob("*.json")):
        key = file.stem
        if known and key in known:
            experiment.records[key] = _identified(known[key], file)
            continue
        contents: list[bytes] = []
        state = run_state.find(file, partial(_parse, contents), slim)
        if state.state == "damaged":
            experiment.damaged[key] = experiment.failures[key] = state.cause
        elif state.record is not None:
            experiment.records[key] = _identified(state.record, file)
            # of the record and its failed repetition, b"" if there is none
            experiment.digests[key] = _hash(*contents, *[b""] * (2 - len(contents)))
            if state.cause:
                title = run_page.title(state.record)
                experiment.failures[key] = f"{title} ({key}): {state.cause}"
    return experiment


def _parse(contents: list[bytes], raw: bytes) -> Any:
    """Parse JSON, and append its bytes to `contents`: the digest is of what was parsed."""
    from pydantic_core import from_json

    contents.append(raw)
    return from_json(raw)


def _draw(file: Path) -> Page:
    """Return the page of the run of record `file`, which is read in whole for that.

    Raises
    ------
    SqError : it is damaged, or gone
    """
    state = run_state.find(file)
    if state.record is None:
        raise SqError(state.cause or f"{file} is gone")
    record = state.record
    if state.repeat:
        record = run_page.displayed(state.repeat, state.record)
    return run_page.run(_identified(record, file))


def _identified(record: Record, file: Path) -> Record:
    """Return a record with the experiment and key of its file."""
    return {**record, "name": file.parent.name, "key": file.stem}


def _hash(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.hexdigest()[:16]
