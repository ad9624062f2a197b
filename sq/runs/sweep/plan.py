"""The plan of a sweep: the state of its runs, its share of them, and how long they should take."""

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
ESTIMATE_KEYS = ("choices", "seconds", "peak_bytes")  # of a record: what estimates need
MAX_ROWS = 1000  # in a listing: rich takes half a second for a thousand


@dataclass(frozen=True)
class Run:
    """A job with its state, "running" or one of `run_state.RunState`, and the cause."""

    job: Job
    state: str
    cause: str = ""


class ExistingRuns:
    """The state of all runs in the folders of `jobs`, from one pass over their records."""

    def __init__(self, jobs: list[Job]):
        self.states: dict[Path, RunState] = {}
        self.locked: set[Path] = set()
        for folder in sorted({job.file.parent for job in jobs}):
            self.locked |= run_locks.locked_records(folder)
            for file in sorted(folder.glob("*.json")):
                self.states[file] = run_state.find(file, reduce=_reduced)

    def state(self, job: Job) -> Run:
        """Return `job` with its state."""
        run = self.states.get(job.file, RunState("new"))
        if run.state == "damaged":
            return Run(job, run.state, run.cause)
        holder = run_locks.last_holder(job.file) if job.file in self.locked else None
        if holder is None:
            return Run(job, run.state, run.cause)
        process = run_locks.describe(holder)
        if run_locks.is_alive(holder):
            return Run(job, "running", process)
        if run.state == "new":
            return Run(job, run.state, f"{process}, which is gone")
        return Run(job, run.state, run.cause)

    def estimate(self, jobs: list[Job]) -> Estimate:
        """Return how long `jobs` should take, by earlier runs of the same choices."""
        seconds: dict[tuple, list[float]] = {}
        peaks: dict[tuple, float] = {}
        for run in self.states.values():
            record = run.record
            if run.state != "done" or not record or not {"choices", "seconds"} <= record.keys():
                continue
            kind = _kind(record["choices"])
            seconds.setdefault(kind, []).append(sum(record["seconds"].values()))
            peaks[kind] = max(peaks.get(kind, 0.0), *record.get("peak_bytes", {}).values(), 0.0)
        kinds = [_kind(job.choices) for job in jobs]
        earlier = [seconds[kind] for kind in kinds if kind in seconds]
        largest = max((peaks[kind] for kind in kinds if kind in peaks), default=0.0)
        return Estimate(
            sum(sum(times) / len(times) for times in earlier),
            largest / GIB,
            len(jobs) - len(earlier),
        )


@dataclass(frozen=True)
class Estimate:
    """Seconds of all runs in sequence, GiB of the largest, and the number of unknown runs."""

    seconds: float
    gib: float
    unknown: int

    def words(self, runs: int) -> str:
        """Return how long `runs` should take; how many run at a time is up to the launcher."""
        order = " one after the other" if runs > 1 else ""
        memory = f" and {self.gib:.1f} GiB" if self.gib else ""
        return f"about {durations.words(self.seconds)}{order}{memory}"


def share(jobs: list[Job], shard: str | None) -> list[Job]:
    """Return the jobs of `shard` "k/n", every n-th from the k-th on; all of them for None."""
    if shard is None:
        return jobs
    number, count = (int(part) for part in shard.split("/"))
    return jobs[number - 1 :: count]


def chosen(runs: list[Run], retry: str) -> list[Run]:
    """Return the `runs` to do: new ones, with `retry` "failed" those too, with "all" all."""
    states = {"new", "running", "damaged"}
    if retry == "failed":
        states.add("failed")
    elif retry != "none":
        return runs[:]
    return [run for run in runs if run.state in states or run.job.config["rerun"]]


def forecast(runs: list[Run], todo: list[Run], existing: ExistingRuns) -> str:
    """Return one line: the number of runs, their states, and how long `todo` should take."""
    count = Counter(run.state for run in runs)
    repeated = sum(run.state == "done" for run in todo)
    parts = [
        quantity(runs, "run"),
        f"{count['done'] - repeated} done",
        f"{len(todo)} to do",
    ]
    states = ("failed", "running", "damaged")
    parts += [f"{count[state]} {state}" for state in states if count[state]]
    line = ", ".join(parts)
    if not todo:
        return line
    estimate = existing.estimate([run.job for run in todo])
    if estimate.unknown == len(todo):
        return f"{line}; no earlier record to estimate their time from"
    line += f", {estimate.words(len(todo))} by earlier records"
    if estimate.unknown:
        line += f", {estimate.unknown} of them unknown"
    return line


def listing(
    runs: list[Run], todo: list[Run], part: str = "sweep.shard=k/n shows a part of them"
) -> Table:
    """Return a table of `runs`: which are `todo`, their overrides, state, record and cause.

    Parameters
    ----------
    part : how to see the runs that do not fit in the table
    """
    table = Table()
    for title in ("", "run", "state", "record", "cause"):
        table.add_column(title, overflow="fold")
    marked = {id(run) for run in todo}
    overrides = differing([run.job for run in runs])
    for run, text in list(zip(runs, overrides, strict=True))[:MAX_ROWS]:
        mark = "run" if id(run) in marked else ""
        table.add_row(mark, text, run.state, run.job.file.stem, run.cause)
    if len(runs) > MAX_ROWS:
        table.caption = f"... and {len(runs) - MAX_ROWS} more; {part}"
    return table


def single(job: Job) -> str:
    """Return how long a single run should take, "" if it is done, cannot run or is unknown."""
    if problems(job.config):
        return ""
    if run_state.find(job.file).state == "done" and not job.config["rerun"]:
        return ""
    estimate = ExistingRuns([job]).estimate([job])
    return "" if estimate.unknown else f"{estimate.words(1)}, by earlier records"


def differing(jobs: list[Job]) -> list[str]:
    """Return each job's overrides without those that all jobs share."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [
        " ".join(override for override in job.overrides if override not in shared) for job in jobs
    ]


def _reduced(record: Record) -> Record:
    """Return the part of a record that estimates need; thousands of whole ones take gigabytes."""
    return {name: record[name] for name in ESTIMATE_KEYS if name in record}


def _kind(choices: dict[str, str]) -> tuple:
    """Return the choices on which the duration of a run depends most."""
    families = ("model", "dataset", "quantizer", "allocation", "sensitivity")
    return tuple(choices.get(family) for family in families)
