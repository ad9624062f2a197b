"""What a sweep will do: how its runs stand, which of them are its share, and what they should take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from sq.config.schema import problems
from sq.core import durations
from sq.core.wording import quantity
from sq.records import run_locks, run_state
from sq.records.record import Record
from sq.records.run_state import RunState
from sq.runs.sweep.expand import Job

GIB = 2**30
KEPT = ("choices", "seconds", "peak_bytes")  # of a record: what estimates go by
SHOWN = 1000  # runs in a listing: rich takes half a second for a thousand


@dataclass(frozen=True)
class Run:
    """A job as it stands: "running", or a state of `run_state.RunState`; and why, where that says something."""

    job: Job
    state: str
    cause: str = ""


class Known:
    """How all runs in the folders of `jobs` stand, each file read once; kept is what plans need, not whole records."""

    def __init__(self, jobs: list[Job]):
        self.standings: dict[Path, RunState] = {}
        self.claimed: set[Path] = set()
        for folder in sorted({job.file.parent for job in jobs}):
            self.claimed |= {
                folder / f"{place.name.split('.')[0]}.json"
                for place in (folder / "claims").glob("*.*")
            }
            self.standings |= {
                file: run_state.find(file, reduce=_kept) for file in sorted(folder.glob("*.json"))
            }

    def state(self, job: Job) -> Run:
        """Return how `job` stands."""
        found = self.standings.get(job.file, RunState("new"))
        if found.state == "damaged":
            return Run(job, found.state, found.cause)
        who = run_locks.last_holder(job.file) if job.file in self.claimed else None
        process = run_locks.describe(who) if who else ""
        if run_locks.is_alive(who):
            return Run(job, "running", process)
        return Run(
            job,
            found.state,
            f"{process}, which is gone" if found.state == "new" and who else found.cause,
        )

    def estimate(self, jobs: list[Job]) -> Estimate:
        """Return what `jobs` should take, by earlier runs of the same choices."""
        seconds: dict[tuple, list[float]] = {}
        peaks: dict[tuple, float] = {}
        for own in self.standings.values():
            if (
                own.state == "done"
                and (found := own.record)
                and {"choices", "seconds"} <= found.keys()
            ):
                kind = _alike(found["choices"])
                seconds.setdefault(kind, []).append(sum(found["seconds"].values()))
                peaks[kind] = max(peaks.get(kind, 0.0), *found.get("peak_bytes", {}).values(), 0.0)
        kinds = [_alike(job.choices) for job in jobs]
        told = [seconds[kind] for kind in kinds if kind in seconds]
        return Estimate(
            sum(sum(own) / len(own) for own in told),
            max((peaks[kind] for kind in kinds if kind in peaks), default=0.0) / GIB,
            len(jobs) - len(told),
        )


@dataclass(frozen=True)
class Estimate:
    """Seconds of all runs one after the other, GiB of the largest, and how many runs nothing is known of."""

    seconds: float
    gib: float
    unknown: int

    def words(self, runs: int) -> str:
        """Return what so many runs should take: how many of them are done at a time is the launcher's affair."""
        order = " one after the other" if runs > 1 else ""
        return f"about {durations.words(self.seconds)}{order}" + (
            f" and {self.gib:.1f} GiB" if self.gib else ""
        )


def share(jobs: list[Job], shard: str | None) -> list[Job]:
    """Return the jobs of `shard` "k/n", every n-th from the k-th on; all of them for None."""
    if shard is None:
        return jobs
    number, of = (int(part) for part in shard.split("/"))
    return jobs[number - 1 :: of]


def chosen(runs: list[Run], retry: str) -> list[Run]:
    """Return those of `runs` that are to be done: new ones, and by `retry` "failed" ones too, or "all"."""
    wanted = {
        "none": {"new", "running", "damaged"},
        "failed": {"new", "running", "damaged", "failed"},
    }.get(retry)
    return [run for run in runs if wanted is None or run.state in wanted or run.job.config["rerun"]]


def forecast(runs: list[Run], todo: list[Run], known: Known) -> str:
    """Return one line: how many runs there are, how they stand, and how long the ones `todo` should take."""
    count = Counter(run.state for run in runs)
    done = sum(run.state == "done" for run in runs) - sum(run.state == "done" for run in todo)
    parts = [quantity(runs, "run"), f"{done} done", f"{len(todo)} to do"]
    parts += [
        f"{count[state]} {state}" for state in ("failed", "running", "damaged") if count[state]
    ]
    line = ", ".join(parts)
    if not todo:
        return line
    guess = known.estimate([run.job for run in todo])
    if guess.unknown == len(todo):
        return f"{line}; no earlier record to estimate their time from"
    return f"{line}, {guess.words(len(todo))} by earlier records" + (
        f", {guess.unknown} of them unknown" if guess.unknown else ""
    )


def listing(
    runs: list[Run], todo: list[Run], part: str = "sweep.shard=k/n shows a part of them"
) -> Table:
    """Return a table of `runs`: which are `todo`, what sets each apart, how it stands, its record's key, and why.

    Parameters
    ----------
    part : how to see the runs that are too many for a table
    """
    shown = Table()
    for title in ("", "run", "state", "record", "cause"):
        shown.add_column(title, overflow="fold")
    marked = {id(run) for run in todo}
    for run, words in list(zip(runs, differing([run.job for run in runs]), strict=True))[:SHOWN]:
        mark = "run" if id(run) in marked else ""
        shown.add_row(mark, words, run.state, run.job.file.stem, run.cause)
    if len(runs) > SHOWN:
        shown.caption = f"... and {len(runs) - SHOWN} more; {part}"
    return shown


def single(job: Job) -> str:
    """Return what a run that is not part of a sweep should take; "" if it is done, cannot run, or nothing is known."""
    if problems(job.config) or (
        run_state.find(job.file).state == "done" and not job.config["rerun"]
    ):
        return ""
    known = Known([job])
    guess = known.estimate([job])
    return "" if guess.unknown else f"{guess.words(1)}, by earlier records"


def differing(jobs: list[Job]) -> list[str]:
    """Return each job's overrides without those that all share."""
    same = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [" ".join(word for word in job.overrides if word not in same) for job in jobs]


def _kept(record: Record) -> Record:
    """Return what plans need of a record: thousands of whole ones would take gigabytes."""
    return {name: record[name] for name in KEPT if name in record}


def _alike(choices: dict[str, str]) -> tuple:
    return tuple(
        choices.get(family)
        for family in ("model", "dataset", "quantizer", "allocation", "sensitivity")
    )
