"""A sweep as Hydra runs it: what will run and what it may take, then one table and every failure.

Hydra 1.3 shows the first failing job alone and stops nothing else; so jobs never raise here. They leave
records, and this callback reads those when the sweep ends, wherever the jobs ran.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sq import record
from sq.build import check
from sq.config import FAMILIES, problems
from sq.console import out, say
from sq.errors import SqError


@dataclass
class Job:
    """One point of a sweep: its overrides, its resolved config and the choices made in it."""

    overrides: list[str]
    config: dict[str, Any]
    choices: dict[str, str]


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return `config` as plain data, interpolations resolved, without Hydra's own part."""
    plain = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"]), resolve=True
    )
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def chosen(hydra: Any) -> dict[str, str]:
    """Return the option chosen for each of our config groups, from Hydra's own part of a config."""
    return {name: hydra.runtime.choices[name] for name in FAMILIES if name in hydra.runtime.choices}


def expand(config: DictConfig) -> list[Job]:
    """Return the jobs that a multirun's master `config` expands to, in order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    loader = GlobalHydra.instance().config_loader()
    words = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    words += [str(word) for word in config.hydra.overrides.task]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    jobs: dict[Any, Job] = {}
    for point in BasicSweeper.split_arguments(overrides, None)[0]:
        composed = loader.load_sweep_config(config, point)
        job = Job(point, resolve(composed), chosen(composed.hydra))
        jobs.setdefault(record.path(job.config), job)  # a point given twice is one run
    return list(jobs.values())


class Sweep(Callback):
    """Says what a sweep will do before it starts, and what came of it when it ends."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Expand the sweep, refuse what makes no sense, say what is done and what the rest may take."""
        try:
            self.jobs = expand(config)
        except (HydraException, OmegaConfBaseException):
            return  # Hydra composes the jobs itself next; its error reaches sq.cli, which explains it
        try:
            if not self.jobs:
                raise SqError("the sweep expands to no run at all")
            if bad := refused(self.jobs):
                raise SqError(f"nothing was run; {len(bad)} of {len(self.jobs)} runs make no sense: {' | '.join(bad)}")
            for folder in {record.path(job.config).parent for job in self.jobs}:
                record.probe(folder)
            say(forecast(self.jobs))
        except SqError as error:
            # Hydra turns exceptions raised in callbacks into warnings; only this one passes.
            say(f"sq: {error}")
            raise SystemExit(1) from error

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Say which run begins."""
        if config.hydra.mode == RunMode.MULTIRUN:
            number = int(config.hydra.job.num) + 1
            total = f"/{len(self.jobs)}" if self.jobs else ""
            same = set.intersection(*(set(job.overrides) for job in self.jobs)) if len(self.jobs) > 1 else set()
            say(f"[{number}{total}] {' '.join(word for word in config.hydra.overrides.task if word not in same)}")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print one table of everything that is done, list every failure with its cause, set the exit code."""
        from sq.report import table

        records, failures = collect(self.jobs)
        if records:
            out.print(table.for_terminal(table.build(records)))
        for line in failures:
            say(f"failed: {line}")
        say(f"{len(records)} of {len(self.jobs)} runs done, {len(failures)} failed; records in {_folders(self.jobs)}")
        if failures:
            raise SystemExit(1)


def refused(jobs: list[Job]) -> list[str]:
    """Return a line for each job whose settings make no sense; finished jobs are not looked at again."""
    lines: list[str] = []
    faults: dict[str, str] = {}  # equal parts are checked once: the first check of a family imports torch
    for job in jobs:
        found = problems(job.config)
        if not found and not _done(job):
            for family in FAMILIES:
                part = json.dumps([family, job.config[family]], sort_keys=True)
                if part not in faults:
                    faults[part] = _fault(job.config[family], family)
                if faults[part]:
                    found.append(faults[part])
        lines += [f"{' '.join(job.overrides)}: {line}" for line in found]
    return lines


def _fault(part: Any, family: str) -> str:
    try:
        check(part, family)
    except SqError as error:
        return str(error)
    return ""


def collect(jobs: list[Job]) -> tuple[list[record.Record], list[str]]:
    """Return the records of the jobs that are done, and a line for each of the others."""
    records, failures = [], []
    for job in jobs:
        file = record.path(job.config)
        where = f"{' '.join(job.overrides)} ({file.stem})"
        try:
            found = record.read(file)
        except SqError as error:
            failures.append(f"{where}: {error}")
            continue
        if found is None:
            failures.append(f"{where}: left no record: it was killed or could not write; run the same command again")
        elif found["status"] == "done":
            records.append(found)
            if again := record.read(record.failed_rerun(file)):
                failures.append(f"{where}: {again['error']} (repeating it failed; the earlier record was kept)")
        else:
            failures.append(f"{where}: {found['error']}")
    return records, failures


def forecast(jobs: list[Job]) -> str:
    """Return one line: how many runs there are, how many are done, and how long the rest should take."""
    left = [job for job in jobs if job.config["rerun"] or not _done(job)]
    line = f"{len(jobs)} runs, {len(jobs) - len(left)} done, {len(left)} to do"
    if not left:
        return line
    seconds, unknown = estimate(left)
    if unknown == len(left):
        return f"{line}; no earlier record to estimate their time from"
    return f"{line}, about {seconds:.0f} s by earlier records" + (f", {unknown} of them unknown" if unknown else "")


def expected_seconds(job: Job) -> float:
    """Return how long a single job should take; 0 if it is done, cannot run, or is the first of its kind."""
    if problems(job.config) or (_done(job) and not job.config["rerun"]):
        return 0.0
    return estimate([job])[0]


def estimate(jobs: list[Job]) -> tuple[float, int]:
    """Return the seconds `jobs` took on average in earlier runs of the same choices, and how many are unknown."""
    known: dict[tuple, list[float]] = {}
    for folder in {record.path(job.config).parent for job in jobs}:
        for file in folder.glob("*.json"):
            found = _quietly(file)
            if found and found["status"] == "done" and {"choices", "seconds"} <= found.keys():
                known.setdefault(_alike(found["choices"]), []).append(sum(found["seconds"].values()))
    guesses = [known.get(_alike(job.choices)) for job in jobs]
    return sum(sum(g) / len(g) for g in guesses if g), sum(g is None for g in guesses)


def _alike(choices: dict[str, str]) -> tuple:
    return tuple(choices.get(family) for family in ("model", "dataset", "quantizer", "allocation", "sensitivity"))


def _done(job: Job) -> bool:
    found = _quietly(record.path(job.config))
    return found is not None and found["status"] == "done"


def _quietly(file: Any) -> record.Record | None:
    try:
        return record.read(file)
    except SqError:
        return None  # the job itself, or the summary, will say so


def _folders(jobs: list[Job]) -> str:
    return ", ".join(sorted({str(record.path(job.config).parent) for job in jobs}))
