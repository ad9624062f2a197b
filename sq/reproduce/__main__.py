"""Run every experiment that is not done, then rebuild results/: ``python -m sq.reproduce``."""

from __future__ import annotations

import argparse
import fnmatch
import signal
import sys
import time
from pathlib import Path

from rich.table import Table

from sq.config.schema import nearest
from sq.core import closed_pipe, durations, plugins
from sq.core.progress import out, say
from sq.core.wording import quantity
from sq.errors import SqError
from sq.records import experiments, record
from sq.records.experiments import Experiment
from sq.reproduce import children, tasks
from sq.reproduce.rebuild import rebuild, refresh
from sq.reproduce.tasks import ExperimentState

EPILOG = """
Settings after -- are given to every run of a sweep, as in "-- tracker=none hydra/launcher=slurm".
Only settings that do not change a result are allowed. Exit code: 0 everything is there, 1 something
is missing (left out, failed, or a dry run), 130 interrupted: the same command resumes."""
RESERVED = ("name", "results", "rerun")  # bookkeeping that this command sets itself


def program(arguments: list[str] | None = None, prog: str = "python -m sq.reproduce") -> int:
    """Run `main` as a program: a scheduler's request to stop is handled as Ctrl-C."""
    # Children are ended properly then, and records written so far stay.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return main(arguments, prog)


@closed_pipe.quiet
def main(arguments: list[str] | None = None, prog: str = "python -m sq.reproduce") -> int:
    """Parse the command line, run what is missing, rebuild; return the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    overrides = []
    if "--" in arguments:
        separator = arguments.index("--")
        overrides = arguments[separator + 1 :]
        arguments = arguments[:separator]
    options = parser(prog).parse_args(arguments)
    try:
        return reproduce(options, overrides)
    except SqError as error:
        say(f"sq: {error}")
        return 1
    except KeyboardInterrupt:
        say("sq: interrupted; the same command resumes where this one stopped")
        return 130


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line, without what follows ``--``."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [NAME ...] [options] [-- OVERRIDE ...]",
        description="Run every experiment that is not done, in order of cost, "
        "then rebuild all of results/.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="experiments, with all their parts (default: all)"
    )
    parser.add_argument(
        "--without", action="append", default=[], metavar="GLOB", help="leave out, such as 'coco*'"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be run, and do nothing"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where records are (default: results)"
    )
    parser.add_argument(
        "--experiments",
        type=Path,
        default=experiments.FOLDER,
        help="the folder of experiments (default: sq's own)",
    )
    return parser


def reproduce(options: argparse.Namespace, overrides: list[str]) -> int:
    """Run what is missing, and rebuild; return the exit code.

    Raises
    ------
    SqError : names, overrides or experiments that make no sense; nothing was run then
    """
    _check(overrides)
    plugins.allow(plugins.named(overrides))
    all_experiments = experiments.read(options.experiments.resolve())
    chosen = select(all_experiments, options.names, options.without)
    states = tasks.survey(chosen, options.results, overrides)
    incomplete = [state for state in states if state.missing]
    to_run = [state for state in incomplete if not state.lacks]
    left_out = [state for state in incomplete if state.lacks]
    # They cannot run here: the others do, and the exit code tells.
    for state in left_out:
        say(f"left out: {state.experiment.stem}: {'; '.join(state.lacks)}")
    if to_run:
        out.print(listing(to_run))
    say(forecast(states, to_run, left_out))
    if options.dry_run:
        return 1 if incomplete else 0
    missing = {state.experiment: len(state.missing) for state in states}
    for number, state in enumerate(to_run, 1):
        say(f"[{number}/{len(to_run)}] {_run_line(state)}")
        # A failure ends this experiment only.
        missing[state.experiment] = _run(state, options.results, overrides)
    is_complete = _finish(states, missing, options)
    # With some experiments only, records of the others would look like unknown ones.
    if chosen == all_experiments:
        _report_other_records(states)
    return 0 if is_complete else 1


def select(
    all_experiments: list[Experiment], names: list[str], without: list[str]
) -> list[Experiment]:
    """Return the experiments of these `names`, less those that match a pattern of `without`.

    A name is that of a file, or of a question with all its parts.

    Raises
    ------
    SqError : a name or a pattern that fits none
    """
    valid_names = set()
    for experiment in all_experiments:
        valid_names |= {experiment.stem, experiment.name}
    for name in names:
        if name not in valid_names:
            raise SqError(f"{name}: no such experiment; {nearest(name, valid_names)}")
    stems = [experiment.stem for experiment in all_experiments]
    for pattern in without:
        if not fnmatch.filter(stems, pattern):
            raise SqError(
                f"--without {pattern}: fits no experiment; {nearest(pattern, valid_names)}"
            )
    chosen = []
    for experiment in all_experiments:
        is_named = not names or experiment.stem in names or experiment.name in names
        if is_named and not any(fnmatch.filter([experiment.stem], glob) for glob in without):
            chosen.append(experiment)
    if not chosen:
        raise SqError("no experiment is left to reproduce: name fewer with --without")
    return chosen


def listing(to_run: list[ExperimentState]) -> Table:
    """Return a table of what is to be run, in order, with the questions it answers."""
    table = Table()
    for title in ("", "experiment", "missing", "about", "question"):
        is_text = title in ("experiment", "question")
        table.add_column(title, overflow="fold", justify="left" if is_text else "right")
    for number, state in enumerate(to_run, 1):
        table.add_row(
            str(number),
            state.experiment.stem,
            f"{len(state.missing)} of {len(state.records)}",
            durations.words(state.seconds),
            state.experiment.question,
        )
    return table


def forecast(
    states: list[ExperimentState], to_run: list[ExperimentState], left_out: list[ExperimentState]
) -> str:
    """Return one line: how many experiments are complete, to be run and left out, and the time."""
    complete = len(states) - len(to_run) - len(left_out)
    parts = [quantity(states, "experiment"), f"{complete} complete"]
    if left_out:
        parts.append(f"{len(left_out)} left out")
    if not to_run:
        return f"{', '.join(parts)}: nothing to run"
    parts.append(f"{len(to_run)} to run")
    seconds = [state.seconds for state in to_run if state.seconds is not None]
    runs = quantity(sum(len(state.missing) for state in to_run), "run")
    line = f"{', '.join(parts)}: {runs}, about {durations.words(sum(seconds))}"
    unknown = len(to_run) - len(seconds)
    return f"{line} and {unknown} of unknown cost" if unknown else line


def _check(overrides: list[str]) -> None:
    """Refuse overrides that would change what the experiments compute."""
    allowed = sorted({*record.BOOKKEEPING, "hydra"} - {*RESERVED})
    for override in overrides:
        name, equals, _ = override.partition("=")
        # "hydra/launcher" and "hydra.verbose" are both settings of hydra.
        first_part = name.replace("/", ".").partition(".")[0]
        if not equals or first_part not in allowed:
            raise SqError(
                f"{override}: after -- only settings that shape no result, NAME=VALUE: "
                f"{', '.join(allowed)}"
            )


def _run_line(state: ExperimentState) -> str:
    """Return the line that announces an experiment."""
    what = "benchmark" if state.experiment.is_bench else quantity(state.missing, "run")
    return f"{state.experiment.stem}: {what}, about {durations.words(state.seconds)}"


def _run(state: ExperimentState, results: Path, overrides: list[str]) -> int:
    """Run what is missing of an experiment; return how many of its records are missing then."""
    name = state.experiment.stem
    log = _outputs(overrides) / "reproduce" / f"{name}.log"
    start = time.monotonic()
    cause = children.run(state.command, log, state.missing, name)
    missing = len(tasks.missing_records(state, results))
    if cause or missing:
        finished = f"{len(state.missing) - missing} of {len(state.missing)} done"
        seconds = durations.words(time.monotonic() - start)
        say(f"    {finished} in {seconds}; {cause or 'no failure was reported'} (all of it: {log})")
    return missing


def _outputs(overrides: list[str]) -> Path:
    """Return the folder of logs."""
    for override in overrides:
        if override.startswith("outputs="):
            return Path(override.partition("=")[2])
    return Path("outputs")


def _finish(
    states: list[ExperimentState], missing: dict[Experiment, int], options: argparse.Namespace
) -> bool:
    """Rebuild tables and figures, print the state of all; return whether everything is there.

    Parameters
    ----------
    missing : how many records of each experiment are missing
    """
    names = {experiment.name for experiment in missing}
    incomplete = {experiment.name for experiment, count in missing.items() if count}
    changed, faults = rebuild(sorted(names), options.results, options.experiments)
    # The README of the checkout that results/ is in; there may be none.
    page = options.results.resolve().parent / "README.md"
    if refresh(page, sorted(names - incomplete), options.results):
        changed.append(page)
    for fault in faults:
        say(f"not rebuilt: {fault}")
    complete = 0
    for state in states:
        name, count = state.experiment.stem, missing[state.experiment]
        if count:
            say(f"not complete: {name}: {count} of {len(state.records)} missing")
        else:
            complete += 1
    say(
        f"{complete} of {len(states)} experiments complete; "
        f"tables and figures changed: {len(changed)}"
    )
    return complete == len(states) and not faults


def _report_other_records(states: list[ExperimentState]) -> None:
    """Print how many records in the folders of sweeps belong to none of their runs."""
    files: set[Path] = set()
    for state in states:
        if not state.experiment.is_bench:
            files.update(state.records)
    for line in record.beside(files):
        say(line)


if __name__ == "__main__":
    sys.exit(program())
