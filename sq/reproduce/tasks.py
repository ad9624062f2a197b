"""The state of each experiment: missing records, the time they take, and what it lacks."""

from __future__ import annotations

import itertools
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
from sq.runs.sweep.plan import ExistingRuns


@dataclass(frozen=True)
class ExperimentState:
    """An experiment, the records it should write, and which of them are `missing`."""

    experiment: Experiment
    command: list[str]  # that writes the missing records
    records: list[Path]
    missing: list[Path]
    seconds: float | None = None  # estimate for the missing records; None: unknown
    lacks: list[str] = field(default_factory=list)  # data, weights and packages that are not here


def survey(chosen: list[Experiment], results: Path, overrides: list[str]) -> list[ExperimentState]:
    """Return the state of each experiment, the cheapest first; those of unknown cost last.

    Parameters
    ----------
    chosen : experiments of one folder
    results : the folder of records
    overrides : of every run of a sweep

    Raises
    ------
    SqError : an experiment that cannot be composed
    """
    sweeps = [experiment for experiment in chosen if not experiment.is_bench]
    jobs: dict[Experiment, list[Job]] = {}
    for experiment in track(sweeps, "experiments"):
        folder = experiment.file.parent
        jobs[experiment] = status.jobs_of(experiment.stem, results, folder, overrides)
    # One estimate over all experiments: they have runs in common.
    earlier = ExistingRuns(list(itertools.chain.from_iterable(jobs.values())))
    states = []
    for experiment in chosen:
        if experiment.is_bench:
            state = _bench(experiment, results)
        else:
            command = _sweep_command(experiment, results, overrides)
            state = _sweep(experiment, jobs[experiment], earlier, command)
        states.append(state)
    return sorted(states, key=_cost)


def _cost(state: ExperimentState) -> tuple:
    """Return the key that sorts experiments by cost, unknown costs last."""
    return state.seconds is None, state.seconds or 0.0, state.experiment.stem


def missing_records(state: ExperimentState, results: Path) -> list[Path]:
    """Return which records of an experiment are missing now."""
    if state.experiment.is_bench:
        return _bench(state.experiment, results).missing
    return [file for file in state.records if run_state.find(file).state != "done"]


def _sweep_command(experiment: Experiment, results: Path, overrides: list[str]) -> list[str]:
    """Return the command that does the runs of an experiment."""
    folder = str(experiment.file.parent)
    command = [sys.executable, "-m", "sq", "run", "-cd", folder, "-cn", experiment.stem]
    return [*command, f"results={results}", *overrides]


def _sweep(
    experiment: Experiment, jobs: list[Job], earlier: ExistingRuns, command: list[str]
) -> ExperimentState:
    """Return the state of an experiment from its jobs; `earlier` knows the records there are."""
    states = [earlier.state(job) for job in jobs]  # done, failed, new or damaged
    # Failed runs are repeated, as in a sweep.
    missing = [run.job for run in plan.chosen(states, "failed")]
    estimate = earlier.estimate(missing)
    seconds: float | None = estimate.seconds
    if estimate.unknown:
        # Some runs have no earlier record of the same choices: the header tells their mean time.
        seconds = None
        if experiment.seconds is not None:
            mean_seconds = experiment.seconds / len(jobs)
            seconds = estimate.seconds + estimate.unknown * mean_seconds
    return ExperimentState(
        experiment,
        command,
        records=[job.file for job in jobs],
        missing=[job.file for job in missing],
        seconds=seconds,
        lacks=requirements.lacking(job.config for job in missing),
    )


def _bench(experiment: Experiment, results: Path) -> ExperimentState:
    """Return the state of a benchmark, which writes one record."""
    folder = experiment.file.parent
    benchmark = settings.load(experiment.stem, [f"results={results}"], folder)
    command = [sys.executable, "-m", "sq.bench", experiment.stem, f"results={results}"]
    command += ["--experiments", str(folder)]
    records = [benchmark.file]
    try:
        existing = record.read(benchmark.file)
    except SqError as error:
        return ExperimentState(
            experiment, command, records, records, experiment.seconds, [str(error)]
        )
    if existing is not None and existing["key"] == record.key(settings.plain(benchmark)):
        return ExperimentState(experiment, command, records, [], 0.0)
    seconds = experiment.seconds
    if seconds is None and existing is not None:  # a record of other settings: about as long
        seconds = sum(existing["seconds"].values())
    lacks = requirements.lacking(_config_parts(benchmark))
    return ExperimentState(experiment, command, records, records, seconds, lacks)


def _config_parts(benchmark: settings.Settings) -> list[dict[str, Any]]:
    """Return the choices of a benchmark as configs of runs hold them, one a config."""
    parts: list[dict[str, Any]] = []
    for family in ("model", "dataset"):
        if family in benchmark.source:
            config = settings.compose(family, benchmark.source[family], benchmark.seed)
            parts.append({family: config})
    for entry in benchmark.quantizers:
        choice = entry if isinstance(entry, str) else entry["quantizer"]
        config = settings.compose("quantizer", choice, benchmark.seed)
        parts.append({"quantizer": config})
    return parts
