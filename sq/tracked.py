"""What of an experiment is tracked: a page for each record in its folder, and one for the whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sq import mirror, record
from sq.errors import SqError
from sq.mirror import Page
from sq.record import Record


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
    records : by key; a done one whose repetition failed says so (`sq.mirror.kept`)
    digests : of each record's bytes, and of those of its failed repetition
    damaged : a line for each file that is no record
    """

    name: str
    records: dict[str, Record]
    digests: dict[str, str]
    damaged: list[str]

    @property
    def done(self) -> list[Record]:
        """Return the records of runs that are done."""
        return [own for own in self.records.values() if own["status"] == "done"]

    @property
    def failures(self) -> dict[str, str]:
        """Return a line for each run that failed, or could not be repeated, by key."""
        errors = {key: own.get("error") or own.get("repeat_error") for key, own in self.records.items()}
        return {key: f"{mirror.title(self.records[key])} ({key}): {error}" for key, error in errors.items() if error}

    def items(self) -> list[Item]:
        """Return one item a record, sorted by key, and that of the whole at the end."""
        made = [
            Item(mirror.identity(self.name, key), self.digests[key], partial(mirror.run, own))
            for key, own in self.records.items()
        ]
        whole = _hash(*(digest.encode() for digest in self.digests.values()), *(line.encode() for line in self.damaged))
        return [*made, Item(mirror.summary_identity(self.name), whole, self.summary)]

    def summary(self, also: Sequence[str] = ()) -> Page:
        """Return the page of the whole.

        Parameters
        ----------
        also : failures known from elsewhere, each with its key; of those here too, these lines are shown
        """
        own = [line for key, line in self.failures.items() if not any(f"({key})" in other for other in also)]
        damaged = [line for line in self.damaged if line not in "\n".join(also)]
        return mirror.summary(self.name, self.done, [*also, *own, *damaged])


def read(folder: Path, known: Mapping[str, Record] | None = None) -> Experiment:
    """Return what `folder` holds; records that are `known`, by key, are not parsed again.

    A record belongs to the experiment whose folder it is in, and its key is the name of its file.
    """
    records, digests, damaged = {}, {}, []
    for file in sorted(folder.glob("*.json")):
        repeated = record.failed_rerun(file)
        digest = _hash(_bytes(file), _bytes(repeated))  # first: a record that changes meanwhile counts as changed
        try:
            found = (known or {}).get(file.stem) or record.read(file)
            again = record.read(repeated) if found and found["status"] == "done" else None
        except SqError as error:
            damaged.append(str(error))
            continue
        if found is not None:
            whole = mirror.kept(again, found) if again else found
            records[file.stem] = {**whole, "name": folder.name, "key": file.stem}
            digests[file.stem] = digest
    return Experiment(folder.name, records, digests, damaged)


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # there is none, or `record.read` says why not
        return b""


def _hash(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.hexdigest()[:16]
