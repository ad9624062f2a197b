"""Run a sweep: expand and check it, launch its jobs, then print a table and all failures.

Hydra 1.3 reports only the first failing job, so jobs never raise here. They write records, which
the summary reads when the sweep ends, wherever the jobs ran.
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

# Hydra's own launcher, which runs jobs in this process, one by one
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
NO_RECORD = "left no record: not started, killed, or could not write; run the same command again"


def run(loader: ConfigLoader, config: DictConfig, launcher: Launcher) -> None:
    """Run the sweep that a multirun's master `config` describes; exit 1 if a run failed.

    Raises
    ------
    SqError : the sweep makes no sense, in whole or in part; nothing was run then
    HydraException, OmegaConfBaseException : an override that Hydra refuses
    """
    resolved = expand.resolve(config)
    settings = resolved["sweep"]
    problem = experiments.misplaced(config.hydra, resolved["name"])
    if problem:
        raise SqError(f"nothing was run: {problem}")
    if isinstance(launcher, Follower):
        launcher.check()
    jobs = _jobs(loader, config, settings)
    here = _is_basic(launcher) or (isinstance(launcher, Follower) and launcher.here)
    existing, runs, todo = dry_run.look(jobs, settings["retry"], here=here)
    if settings["dry_run"]:
        dry_run.show(existing, runs, todo)
        return
    for folder in {run.job.file.parent for run in todo}:
        record.probe(folder)
    say(plan.forecast(runs, todo, existing))
    if todo:
        _launch(todo, launcher, again=settings["retry"] == "all")
    summarise(jobs, [run.job for run in todo])


def _jobs(loader: ConfigLoader, config: DictConfig, settings: dict[str, Any]) -> list[Job]:
    """Return the jobs of this launcher's share of the sweep."""
    problems = sweep_problems(settings)
    if problems:
        raise SqError("; ".join(problems))
    all_jobs = expand.expand(loader, config, settings["max_runs"])
    if not all_jobs:
        raise SqError("the sweep expands to no run at all")
    jobs = plan.share(all_jobs, settings["shard"])
    if not jobs:
        raise SqError(f"sweep.shard={settings['shard']} of {len(all_jobs)} runs is empty")
    return jobs


def _is_basic(launcher: Launcher) -> bool:
    """Tell whether `launcher` is Hydra's own, which runs jobs in this process."""
    # By name: Hydra loads its plugins again, so their classes are not those that one imports.
    return f"{type(launcher).__module__}.{type(launcher).__name__}" == BASIC_LAUNCHER


def _launch(runs: list[Run], launcher: Launcher, *, again: bool) -> None:
    """Do `runs`, with `again` even those that are done, by means of `launcher`."""
    jobs = [_fingerprinted(run.job, again=again) for run in runs]
    labels = [
        f"[{number}/{len(jobs)}] {overrides}"
        for number, overrides in enumerate(plan.differing(jobs), 1)
    ]
    if _is_basic(launcher):
        _run_here(jobs, labels)
    elif isinstance(launcher, Follower):
        _follow(jobs, labels, launcher)
    else:
        rerun = ["rerun=true"] if again else []
        try:
            launcher.launch([[*job.overrides, *rerun] for job in jobs], initial_job_idx=0)
        except Exception as error:
            # Such a launcher gives up after one crash; the other jobs have left records.
            say(f"launcher: {one_line(error)}")


def _fingerprinted(one: Job, *, again: bool) -> Job:
    """Return job `one` with the fingerprint of its record; with `again` it runs even if done."""
    config = {**one.config, "rerun": True} if again else one.config
    return replace(one, config=config, seen=record.fingerprint(one.file))


def _run_here(jobs: list[Job], labels: list[str]) -> None:
    """Run `jobs` in this process, one by one; those that another launcher is running come last."""
    remaining = list(zip(jobs, labels, strict=True))
    while remaining:
        before = len(remaining)
        remaining = [
            (one, label) for one, label in remaining if not _run_one(one, label, wait=False)
        ]
        if len(remaining) == before:  # other launchers run all of them
            one, label = remaining.pop(0)
            _run_one(one, label, wait=True)


def _run_one(one: Job, label: str, *, wait: bool) -> bool:
    say(label)
    return finish(one, wait=wait)


def _follow(jobs: list[Job], labels: list[str], launcher: Follower) -> None:
    """Let `launcher` run `jobs`, report each one's end, and record those whose process died."""
    with closing(launcher.run(jobs)) as ends:
        shown = progress.track(ends, "runs", len(jobs))
        # jobs that a process may still be doing
        pending = [end for end in shown if not _report(jobs[end.number], labels[end.number], end)]
    deadline = time.monotonic() + run_locks.LEASE + job.POLL
    while True:
        pending = [end for end in pending if not _report(jobs[end.number], labels[end.number], end)]
        if not pending or time.monotonic() > deadline:
            return  # what is still pending, another launcher runs
        time.sleep(job.POLL)


def _report(one: Job, label: str, end: Ended) -> bool:
    """Report the end of job `one`, and record it if its process died; False while it goes on."""
    file = one.file
    try:
        if end.cause and not end.begun and record.fingerprint(file) == one.seen:
            say(f"{label}: not done: {end.cause}")
            return True
        if end.cause and end.begun and not job.record_death(one, end.cause, end.trace):
            return False
        latest = record.read(record.failed_rerun(file)) or record.read(file)
        result = latest or {"error": "left no record"}
    except SqError as error:
        result = {"error": str(error)}
    outcome = f"failed: {result['error']}" if "error" in result else job.outcome(result)
    say(f"{label}: {outcome}")
    return True


def task(config: dict[str, Any], choices: dict[str, str]) -> None:
    """Run a job of a sweep in the process that another of Hydra's launchers started for it."""
    finish(Job([], config, choices))


def finish(one: Job, *, wait: bool = True) -> bool:
    """Run a job and report its outcome.

    Returns
    -------
    False if another process is running it and `wait` is False
    """
    result, failure = job.attempt(one, wait=wait)
    if result is None and not failure:
        say("    another launcher is running it")
        return False
    say(f"    failed: {failure}" if failure else f"    {job.outcome(result or {})}")
    return True


def summarise(jobs: list[Job], tried: list[Job]) -> None:
    """Print a table of all done runs, and every failure with its cause.

    Exit 1 if a run is not done, or one of those just `tried` could not be repeated. If any was
    tried, the tracker gets the page of the whole experiment too.
    """
    from sq.report import table

    records, failures = collect(jobs)
    if records:
        out.print(table.for_terminal(table.build(list(records.values()))))
    for file, line in failures.items():
        say(f"{'not repeated' if file in records else 'failed'}: {line}")
    repeats = len(failures.keys() & records.keys())
    parts = [f"{len(records)} of {len(jobs)} runs done", f"{len(failures) - repeats} failed"]
    if repeats:
        parts.append(f"{repeats} could not be repeated")
    folders = ", ".join(sorted({str(one.file.parent) for one in jobs}))
    say(f"{', '.join(parts)}; records in {folders}")
    if tried:
        upload.summarise(records, failures, jobs[0].config)
    if len(records) < len(jobs) or any(one.file in failures for one in tried):
        raise SystemExit(1)


def collect(jobs: list[Job]) -> tuple[dict[Path, record.Record], dict[Path, str]]:
    """Return by file the records of done jobs, reduced to what reports need, and failures as lines.

    A run that could not be repeated has both: its earlier record counts.
    """
    from sq.report.slim import Slim

    records, failures, slim = {}, {}, Slim()
    for one in jobs:
        state = run_state.find(one.file, reduce=slim)
        if state.state == "done" and state.record is not None:
            records[one.file] = state.record
        cause = NO_RECORD if state.state == "new" else state.cause
        if cause:
            failures[one.file] = f"{' '.join(one.overrides)} ({one.file.stem}): {cause}"
    return records, failures
