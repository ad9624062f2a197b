"""How the runs of an experiment, or in a folder of results/, stand: ``python -m sq status NAME``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sq.config.schema import nearest
from sq.core import closed_pipe, plugins
from sq.core.progress import out, say
from sq.core.wording import quantity
from sq.errors import SqError
from sq.records import experiments, record
from sq.runs import messages
from sq.runs.sweep import expand, plan
from sq.runs.sweep.expand import Job
from sq.runs.sweep.plan import Run


class NoQuestion(SqError):
    """A name that no file of experiments/ has."""


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = argparse.ArgumentParser(prog=prog, description="How the runs of an experiment stand.")
    parser.add_argument("name", help="the experiment: what its records are kept under in results/")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where records are (default: results)"
    )
    parser.add_argument(
        "--experiments", type=Path, default=experiments.FOLDER, help="where the questions are"
    )
    return parser


@closed_pipe.quiet
def main(words: list[str] | None = None, prog: str = "python -m sq status") -> int:
    """Parse the command line, tell how runs stand; return 0 if all are done, else 1."""
    options = parser(prog).parse_args(words)
    try:
        jobs, parts = expected(options.name, options.results, options.experiments.absolute())
        known = plan.Known(jobs)
        runs = [_named(known.state(job)) for job in jobs]
    except NoQuestion as error:
        return _unasked(options.results / options.name, error)
    except SqError as error:
        say(f"sq: {error}")
        return 1
    left = [run for run in runs if run.state != "done"]
    if shown := [run for run in runs if run.state != "done" or run.cause]:
        out.print(
            plan.listing(shown, left, f"python -m sq.report {options.name} lists all that failed")
        )
    count = Counter(run.state for run in runs)
    told = ", ".join(
        f"{count[state]} {state}" for state in ("done", "running", "failed", "damaged", "missing")
    )
    if repeats := sum(run.state == "done" and bool(run.cause) for run in runs):
        told += f", {repeats} of the done could not be repeated"
    guess = known.estimate([run.job for run in left])
    time = (
        f"; the rest takes {guess.words(len(left))}" if left and guess.unknown < len(left) else ""
    )
    say(f"{options.name}: {quantity(runs, 'run')} of {', '.join(parts)}: {told}{time}")
    for line in record.beside({job.file for job in jobs}):
        say(line)
    return 1 if left else 0


def _unasked(folder: Path, error: SqError) -> int:
    """Tell of records that are kept in `folder` without a question, or else that there is an `error`."""
    from sq.runs import adhoc_status

    try:
        if not folder.is_dir():
            raise error
        return adhoc_status.tell(folder)
    except SqError as other:
        say(f"sq: {other}")
        return 1


def _named(run: Run) -> Run:
    """Return `run`, "missing" in place of "new": a sweep is about to do it, a status finds it not done."""
    return replace(run, state="missing") if run.state == "new" else run


def expected(
    name: str, results: Path, folder: Path = experiments.FOLDER
) -> tuple[list[Job], list[str]]:
    """Return the jobs of all experiments that keep their records under `name`, and the names of those experiments.

    Raises
    ------
    NoQuestion : there is no such experiment
    SqError : one cannot be composed
    """
    found = [one for one in experiments.read(folder) if not one.is_bench]
    parts = [one.stem for one in found if one.name == name]
    if not parts:
        raise NoQuestion(
            f"no experiment {name} in {folder}; {nearest(name, {one.name for one in found})}"
        )
    jobs: dict[Path, Job] = {}
    for stem in parts:
        for job in jobs_of(stem, results, folder):
            jobs.setdefault(job.file, job)
    return list(jobs.values()), parts


def jobs_of(
    stem: str, results: Path, folder: Path = experiments.FOLDER, more: Sequence[str] = ()
) -> list[Job]:
    """Return the jobs of the experiment in file `stem`.yaml of `folder`, with records under `results`.

    Parameters
    ----------
    more : overrides, such as tracker=none

    Raises
    ------
    SqError : it cannot be composed
    """
    words = [plugins.search_path(), f"results={results}", *more]
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            own = hydra.compose(stem, overrides=words, return_hydra_config=True)
            return expand.expand(GlobalHydra.instance().config_loader(), own)
    except (HydraException, OmegaConfBaseException) as error:
        raise SqError(
            f"{folder / stem}.yaml: {messages.explain(error, more, folder / f'{stem}.yaml')}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
