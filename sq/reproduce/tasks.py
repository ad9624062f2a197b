"""What is to be done: of each experiment the runs that are not there, what they should take, what they lack."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sq.bench import settings
from sq.config import requirements
from sq.core.progress import track
from sq.errors import SqError
from sq.records import record, run_state
from sq.records.experiments import Experiment
from sq.runs import status
from sq.runs.sweep import plan
from sq.runs.sweep.expand import Job
from sq.runs.sweep.plan import Known


@dataclass(frozen=True)
class Task:
    """An experiment and how it stands: the records it should leave, and which of them are `missing`."""

    experiment: Experiment
    command: list[str]  # that makes what is missing
    records: list[Path]
    missing: list[Path]
    seconds: float | None = None  # that making them should take; None: nobody knows
    lacks: list[str] = field(default_factory=list)  # what it needs and is not here


def survey(chosen: list[Experiment], results: Path, words: list[str]) -> list[Task]:
    """Return a task for each experiment, the cheapest first; those of unknown cost last.

    Parameters
    ----------
    chosen : experiments of one folder
    results : the folder of records
    words : overrides of every run of a sweep

    Raises
    ------
    SqError : an experiment that cannot be composed
    """
    sweeps = track([one for one in chosen if not one.is_bench], "experiments")
    jobs = {one: status.jobs_of(one.stem, results, one.file.parent, words) for one in sweeps}
    known = Known([job for own in jobs.values() for job in own])
    tasks = [
        _bench(one, results)
        if one.is_bench
        else _sweep(one, jobs[one], known, _words(one, results, words))
        for one in chosen
    ]
    return sorted(
        tasks, key=lambda task: (task.seconds is None, task.seconds or 0.0, task.experiment.stem)
    )


def left(task: Task, results: Path) -> list[Path]:
    """Return which of the records of `task` are missing now."""
    if task.experiment.is_bench:
        return _bench(task.experiment, results).missing
    return [file for file in task.records if run_state.find(file).state != "done"]


def _words(one: Experiment, results: Path, words: list[str]) -> list[str]:
    return [
        sys.executable,
        "-m",
        "sq",
        "run",
        "-cd",
        str(one.file.parent),
        "-cn",
        one.stem,
        f"results={results}",
        *words,
    ]


def _sweep(one: Experiment, jobs: list[Job], known: Known, command: list[str]) -> Task:
    left = [run.job for run in plan.chosen([known.state(job) for job in jobs], "failed")]
    guess = known.estimate(left)
    seconds: float | None = guess.seconds
    if guess.unknown:  # of the same choices there is no earlier record: the header knows the mean
        seconds = (
            None if one.seconds is None else guess.seconds + guess.unknown * one.seconds / len(jobs)
        )
    files, missing = ([job.file for job in own] for own in (jobs, left))
    return Task(
        one, command, files, missing, seconds, requirements.lacking(job.config for job in left)
    )


def _bench(one: Experiment, results: Path) -> Task:
    own = settings.load(one.stem, [f"results={results}"], one.file.parent)
    command = [
        sys.executable,
        "-m",
        "sq.bench",
        one.stem,
        f"results={results}",
        "--experiments",
        str(one.file.parent),
    ]
    try:
        found = record.read(own.file)
    except SqError as error:
        return Task(one, command, [own.file], [own.file], one.seconds, [str(error)])
    if found is not None and found["key"] == record.key(settings.plain(own)):
        return Task(one, command, [own.file], [], 0.0)
    seconds = (
        one.seconds if one.seconds is not None or found is None else sum(found["seconds"].values())
    )
    return Task(one, command, [own.file], [own.file], seconds, requirements.lacking(_parts(own)))


def _parts(own: settings.Settings) -> list[dict[str, Any]]:
    """Return what a benchmark chooses, as the configs of runs have it."""
    words: list[tuple[str, Any]] = [
        (family, own.source[family]) for family in ("model", "dataset") if family in own.source
    ]
    words += [
        ("quantizer", entry if isinstance(entry, str) else entry["quantizer"])
        for entry in own.quantizers
    ]
    return [{family: settings.compose(family, choice, own.seed)} for family, choice in words]
