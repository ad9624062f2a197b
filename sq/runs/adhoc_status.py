"""How runs stand that answer no question of experiments/: the records and claims in their folder of results/."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from sq.core.progress import out, say, track
from sq.core.wording import quantity
from sq.errors import SqError, one_line
from sq.records import record, run_locks
from sq.tracker import run_page

SHOWN = 1000  # runs in a listing: rich takes half a second for a thousand


@dataclass(frozen=True)
class Left:
    """What a run has left: its key and state, what it was, and why it is not done."""

    key: str
    state: str
    words: str = ""
    cause: str = ""


def tell(folder: Path) -> int:
    """Say how all runs in `folder` stand, and list those that are not done; return 0 if there are none, else 1.

    Raises
    ------
    SqError : it holds no run, or a benchmark
    """
    record.folder(folder.name, folder.parent)
    claims = (place.name.partition(".")[0] for place in (folder / "claims").glob("[!.]*.*"))
    files = sorted({*folder.glob("*.json"), *(folder / f"{key}.json" for key in claims)})
    if not files:
        raise SqError(
            f"{folder} holds no record and no claim: run something with name={folder.name} first"
        )
    runs = [_left(file) for file in track(files, "records")]
    left = [run for run in runs if run.state != "done"]
    if left:
        out.print(_table(left))
    count = Counter(run.state for run in runs)
    told = ", ".join(
        f"{count[state]} {state}" for state in ("done", "running", "failed", "damaged", "ended")
    )
    say(
        f"{folder.name}: {quantity(runs, 'run')}: {told}; no experiment has this name, so nothing says what is missing"
    )
    return 1 if left else 0


def _left(file: Path) -> Left:
    """Return how the run of record `file` stands."""
    from pydantic_core import from_json

    who = run_locks.last_holder(file)
    try:
        found = record.read(file, from_json)
        words = run_page.title(found) if found else ""
    except (SqError, KeyError) as error:
        return Left(file.stem, "damaged", cause=one_line(error))
    if run_locks.is_alive(who) and who:
        return Left(file.stem, "running", words, run_locks.describe(who))
    if found is None:
        return Left(
            file.stem,
            "ended",
            cause=f"{run_locks.describe(who)}, which is gone" if who else "it was just given back",
        )
    return Left(file.stem, found["status"], words, found.get("error", ""))


def _table(runs: list[Left]) -> Table:
    shown = Table()
    for title in ("run", "state", "record", "cause"):
        shown.add_column(title, overflow="fold")
    for run in runs[:SHOWN]:
        shown.add_row(run.words, run.state, run.key, run.cause)
    if len(runs) > SHOWN:
        shown.caption = f"... and {len(runs) - SHOWN} more"
    return shown
