"""A sweep: expanded and checked as a whole, run where the launcher says, then one table and every failure.

Hydra 1.3 shows the first failing job alone and stops nothing else; so jobs never raise here. They
leave records, and the summary reads those when the sweep ends, wherever the jobs ran.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from sq.config.schema import sweep_problems
from sq.core import progress
from sq.core.progress import out, say
from sq.errors import SqError, one_line
from sq.records import experiments, record, run_locks, run_state
from sq.runs import job
from sq.runs.launchers.base import Ended, Follower
from sq.runs.sweep import dry_run, expand, plan
from sq.runs.sweep.expand import Job
from sq.runs.sweep.plan import Run
from sq.tracker import upload

# runs jobs in this process, one by one
HERE = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
LOST = "left no record: never begun, killed or unable to write; run the same command again"


def run(loader: ConfigLoader, config: DictConfig, launcher: Launcher) -> None:
    """Run the sweep that a multirun's master `config` describes; exit 1 if a run failed.

    Raises
    ------
    SqError : the sweep makes no sense, in whole or in part; nothing was run then
    HydraException, OmegaConfBaseException : an override that Hydra refuses
    """
    every = expand.resolve(config)
    settings = every["sweep"]
    if wrong := experiments.misplaced(config.hydra, every["name"]):
        raise SqError(f"nothing was run: {wrong}")
    if isinstance(launcher, Follower):
        launcher.check()
    jobs = _jobs(loader, config, settings)
    here = _is_here(launcher) or (isinstance(launcher, Follower) and launcher.here)
    known, runs, todo = dry_run.look(jobs, settings["retry"], here=here)
    if settings["dry_run"]:
        dry_run.show(known, runs, todo)
        return
    for folder in {run.job.file.parent for run in todo}:
        record.probe(folder)
    say(plan.forecast(runs, todo, known))
    if todo:
        _launch(todo, launcher, again=settings["retry"] == "all")
    summarise(jobs, [run.job for run in todo])


def _jobs(loader: ConfigLoader, config: DictConfig, settings: dict[str, Any]) -> list[Job]:
    """Return the jobs of this launcher's share of the sweep."""
    if found := sweep_problems(settings):
        raise SqError("; ".join(found))
    every = expand.expand(loader, config, settings["max_runs"])
    if not every:
        raise SqError("the sweep expands to no run at all")
    jobs = plan.share(every, settings["shard"])
    if not jobs:
        raise SqError(f"sweep.shard={settings['shard']} of {len(every)} runs holds none")
    return jobs


def _is_here(launcher: Launcher) -> bool:
    """Return whether `launcher` is Hydra's own, which runs jobs in this process."""
    # By name: Hydra loads its plugins anew, so that their classes are not those one imports.
    return f"{type(launcher).__module__}.{type(launcher).__name__}" == HERE


def _launch(runs: list[Run], launcher: Launcher, *, again: bool) -> None:
    """Do `runs`, done ones too with `again`, where `launcher` says."""
    jobs = [_marked(run.job, again=again) for run in runs]
    words = [f"[{number}/{len(jobs)}] {own}" for number, own in enumerate(plan.differing(jobs), 1)]
    if _is_here(launcher):
        _here(jobs, words)
    elif isinstance(launcher, Follower):
        _follow(jobs, words, launcher)
    else:
        try:
            launcher.launch(
                [[*one.overrides, *(["rerun=true"] if again else [])] for one in jobs],
                initial_job_idx=0,
            )
        except Exception as error:
            # one job that crashed, and it gives up all; the others have left records
            say(f"launcher: {one_line(error)}")


def _marked(one: Job, *, again: bool) -> Job:
    """Return job `one` with the mark of what earlier attempts left, to be run `again` even if it is done."""
    config = {**one.config, "rerun": True} if again else one.config
    return replace(one, config=config, seen=record.fingerprint(one.file))


def _here(jobs: list[Job], words: list[str]) -> None:
    """Run `jobs` in this process, one by one; those that another launcher is running come last."""
    left = list(zip(jobs, words, strict=True))
    while left:
        begun = len(left)
        left = [(one, own) for one, own in left if not _done(one, own, wait=False)]
        if len(left) == begun:
            _done(*left.pop(0), wait=True)


def _done(one: Job, words: str, *, wait: bool) -> bool:
    say(words)
    return finish(one, wait=wait)


def _follow(jobs: list[Job], words: list[str], launcher: Follower) -> None:
    """Let `launcher` run `jobs` elsewhere, say what came of each, and record those whose process died."""
    with closing(launcher.run(jobs)) as ended:
        every = progress.track(ended, "runs", len(jobs))
        dying = [end for end in every if not _told(jobs[end.number], words[end.number], end)]
    until = time.monotonic() + run_locks.LEASE + job.POLL
    while dying := [end for end in dying if not _told(jobs[end.number], words[end.number], end)]:
        if time.monotonic() > until:
            return  # another launcher runs them
        time.sleep(job.POLL)


def _told(one: Job, words: str, end: Ended) -> bool:
    """Say what came of job `one`, after leaving a record of it if its process died in it; False while that goes on."""
    file = one.file
    try:
        if end.cause and not end.begun and record.fingerprint(file) == one.seen:
            say(f"{words}: not done: {end.cause}")
            return True
        if end.cause and end.begun and not job.bury(one, end.cause, end.trace):
            return False
        made = (
            record.read(record.failed_rerun(file))
            or record.read(file)
            or {"error": "left no record"}
        )
    except SqError as error:
        made = {"error": str(error)}
    say(f"{words}: " + (f"failed: {made['error']}" if "error" in made else job.outcome(made)))
    return True


def task(config: dict[str, Any], choices: dict[str, str]) -> None:
    """Run a job of a sweep, in whatever process one of Hydra's own launchers has put it."""
    finish(Job([], config, choices))


def finish(one: Job, *, wait: bool = True) -> bool:
    """Run a job and say what came of it; return False if another process is running it and we are not to `wait`."""
    made, failure = job.attempt(one, wait=wait)
    if made is None and not failure:
        say("    another launcher is running it")
        return False
    say(f"    failed: {failure}" if failure else f"    {job.outcome(made or {})}")
    return True


def summarise(jobs: list[Job], tried: list[Job]) -> None:
    """Print one table of everything that is done, list every failure with its cause.

    Exit 1 if a run is not done, or one of those just `tried` could not be repeated. Where anything
    was tried, the tracker gets the experiment as a whole too.
    """
    from sq.report import table

    records, failures = collect(jobs)
    if records:
        out.print(table.for_terminal(table.build(list(records.values()))))
    for file, line in failures.items():
        say(f"{'not repeated' if file in records else 'failed'}: {line}")
    repeats = len(failures.keys() & records.keys())
    say(
        f"{len(records)} of {len(jobs)} runs done, {len(failures) - repeats} failed"
        + (f", {repeats} could not be repeated" if repeats else "")
        + f"; records in {_folders(jobs)}"
    )
    if tried:
        upload.summarise(records, failures, jobs[0].config)
    if len(records) < len(jobs) or any(one.file in failures for one in tried):
        raise SystemExit(1)


def collect(jobs: list[Job]) -> tuple[dict[Path, record.Record], dict[Path, str]]:
    """Return the records of the jobs that are done, as reports read them, and a line for each failure; by file.

    A run that could not be repeated has both: its earlier record counts.
    """
    from sq.report.slim import Slim

    records, failures, slim = {}, {}, Slim()
    for one in jobs:
        found = run_state.find(one.file, reduce=slim)
        if found.state == "done" and found.record is not None:
            records[one.file] = found.record
        cause = LOST if found.state == "new" else found.cause
        if cause:
            failures[one.file] = f"{' '.join(one.overrides)} ({one.file.stem}): {cause}"
    return records, failures


def _folders(jobs: list[Job]) -> str:
    return ", ".join(sorted({str(one.file.parent) for one in jobs}))
