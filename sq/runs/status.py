"""The state of the runs of an experiment, or in a folder: ``python -m sq status NAME``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table

from sq.config.schema import nearest
from sq.core import closed_pipe, plugins
from sq.core.progress import out, say, track
from sq.core.wording import quantity
from sq.errors import SqError, one_line
from sq.records import experiments, record, run_locks
from sq.runs import messages
from sq.runs.sweep import expand, plan
from sq.runs.sweep.expand import Job
from sq.runs.sweep.plan import MAX_ROWS, Run
from sq.tracker import run_page


class NoExperiment(SqError):
    """A name that no file of experiments/ has."""


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description="The state of the runs of an experiment."
    )
    parser.add_argument("name", help="the experiment: what its records are kept under in results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where records are (default: results)"
    )
    parser.add_argument(
        "--experiments",
        type=Path,
        default=experiments.FOLDER,
        help="the folder of experiment files",
    )
    return parser


@closed_pipe.quiet
def main(arguments: list[str] | None = None, prog: str = "python -m sq status") -> int:
    """Parse the command line, print the state of runs; return 0 if all are done, else 1."""
    options = parser(prog).parse_args(arguments)
    try:
        jobs, parts = expected(options.name, options.results, options.experiments.absolute())
        existing = plan.ExistingRuns(jobs)
        runs = [_renamed(existing.state(job)) for job in jobs]
    except NoExperiment as error:
        return _print_adhoc(options.results / options.name, error)
    except SqError as error:
        say(f"sq: {error}")
        return 1
    remaining = [run for run in runs if run.state != "done"]
    listed = [run for run in runs if run.state != "done" or run.cause]
    if listed:
        more = f"python -m sq.report {options.name} lists all that failed"
        out.print(plan.listing(listed, remaining, more))
    say(
        f"{options.name}: {quantity(runs, 'run')} of {', '.join(parts)}: {_summary(runs, existing)}"
    )
    for line in record.beside({job.file for job in jobs}):
        say(line)
    return 1 if remaining else 0


def _summary(runs: list[Run], existing: plan.ExistingRuns) -> str:
    """Return how many runs have which state, and how long the rest should take."""
    count = Counter(run.state for run in runs)
    states = ("done", "running", "failed", "damaged", "missing")
    summary = ", ".join(f"{count[state]} {state}" for state in states)
    repeats = sum(run.state == "done" and bool(run.cause) for run in runs)
    if repeats:
        summary += f", {repeats} of the done could not be repeated"
    remaining = [run.job for run in runs if run.state != "done"]
    estimate = existing.estimate(remaining)
    if remaining and estimate.unknown < len(remaining):
        summary += f"; the rest takes {estimate.words(len(remaining))}"
    return summary


def _renamed(run: Run) -> Run:
    """Return `run` with the state "missing" in place of "new": no sweep is about to do it."""
    return replace(run, state="missing") if run.state == "new" else run


def expected(
    name: str, results: Path, folder: Path = experiments.FOLDER
) -> tuple[list[Job], list[str]]:
    """Return the jobs of all experiments with records under `name`, and those experiments' names.

    Raises
    ------
    NoExperiment : there is no such experiment
    SqError : one cannot be composed
    """
    swept = [experiment for experiment in experiments.read(folder) if not experiment.is_bench]
    parts = [experiment.stem for experiment in swept if experiment.name == name]
    if not parts:
        names = {experiment.name for experiment in swept}
        raise NoExperiment(f"no experiment {name} in {folder}; {nearest(name, names)}")
    jobs: dict[Path, Job] = {}
    for stem in parts:
        for job in jobs_of(stem, results, folder):
            jobs.setdefault(job.file, job)
    return list(jobs.values()), parts


def jobs_of(
    stem: str, results: Path, folder: Path = experiments.FOLDER, more: Sequence[str] = ()
) -> list[Job]:
    """Return the jobs of the experiment in `stem`.yaml of `folder`, with records in `results`.

    Parameters
    ----------
    more : overrides, such as tracker=none

    Raises
    ------
    SqError : it cannot be composed
    """
    overrides = [plugins.search_path(), f"results={results}", *more]
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            config = hydra.compose(stem, overrides=overrides, return_hydra_config=True)
            return expand.expand(GlobalHydra.instance().config_loader(), config)
    except (HydraException, OmegaConfBaseException) as error:
        file = folder / f"{stem}.yaml"
        raise SqError(f"{file}: {messages.explain(error, more, file)}") from error


@dataclass(frozen=True)
class AdhocRun:
    """A run that belongs to no experiment: the key of its record, its state, title and cause."""

    key: str
    state: str
    title: str = ""
    cause: str = ""


def _print_adhoc(folder: Path, error: SqError) -> int:
    """Print the state of runs in a `folder` that has no experiment, or else the `error`."""
    try:
        if not folder.is_dir():
            raise error
        return print_adhoc(folder)
    except SqError as problem:
        say(f"sq: {problem}")
        return 1


def print_adhoc(folder: Path) -> int:
    """Print the state of all runs in `folder`, and a table of those not done; return 1 if any.

    Raises
    ------
    SqError : it holds no run, or a benchmark
    """
    record.folder(folder.name, folder.parent)
    files = sorted({*folder.glob("*.json"), *run_locks.locked_records(folder)})
    if not files:
        raise SqError(
            f"{folder} holds no record and no lock: run something with name={folder.name} first"
        )
    runs = [_adhoc_run(file) for file in track(files, "records")]
    remaining = [run for run in runs if run.state != "done"]
    if remaining:
        out.print(_adhoc_table(remaining))
    count = Counter(run.state for run in runs)
    states = ("done", "running", "failed", "damaged", "ended")
    summary = ", ".join(f"{count[state]} {state}" for state in states)
    say(
        f"{folder.name}: {quantity(runs, 'run')}: {summary}; no experiment has this name, "
        "so nothing says what is missing"
    )
    return 1 if remaining else 0


def _adhoc_run(file: Path) -> AdhocRun:
    """Return the run of record `file` with its state."""
    from pydantic_core import from_json

    holder = run_locks.last_holder(file)
    try:
        result = record.read(file, from_json)
        title = run_page.title(result) if result else ""
    except (SqError, KeyError) as error:
        return AdhocRun(file.stem, "damaged", cause=one_line(error))
    if holder and run_locks.is_alive(holder):
        return AdhocRun(file.stem, "running", title, run_locks.describe(holder))
    if result is not None:
        return AdhocRun(file.stem, result["status"], title, result.get("error", ""))
    if holder is None:
        return AdhocRun(file.stem, "ended", cause="it was just given back")
    cause = f"{run_locks.describe(holder)}, which is gone"
    return AdhocRun(file.stem, "ended", cause=cause)


def _adhoc_table(runs: list[AdhocRun]) -> Table:
    table = Table()
    for title in ("run", "state", "record", "cause"):
        table.add_column(title, overflow="fold")
    for run in runs[:MAX_ROWS]:
        table.add_row(run.title, run.state, run.key, run.cause)
    if len(runs) > MAX_ROWS:
        table.caption = f"... and {len(runs) - MAX_ROWS} more"
    return table


if __name__ == "__main__":
    sys.exit(main())
