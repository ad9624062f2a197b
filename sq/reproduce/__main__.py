"""Run every experiment that is not done, in order of cost, then rebuild all of results/: ``python -m sq.reproduce``."""

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
from sq.reproduce.tasks import Task

EPILOG = """
Words after -- are given to every run of a sweep, as in "-- tracker=none hydra/launcher=slurm"; they may say how runs
are done and kept, not what they compute. Exit code: 0 everything is there, 1 something is not (left out, failed, or a
dry run), 130 interrupted: the same command goes on."""
OWN = ("name", "results", "rerun")  # bookkeeping that is not the user's here


def program(words: list[str] | None = None, prog: str = "python -m sq.reproduce") -> int:
    """Do what `main` does in a process of its own: a scheduler's request to stop is taken as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return main(words, prog)


@closed_pipe.quiet
def main(words: list[str] | None = None, prog: str = "python -m sq.reproduce") -> int:
    """Parse the command line, run what is missing, rebuild; return the exit code."""
    words = sys.argv[1:] if words is None else words
    cut = words.index("--") if "--" in words else len(words)
    options = parser(prog).parse_args(words[:cut])
    try:
        return reproduce(options, words[cut + 1 :])
    except SqError as error:
        say(f"sq: {error}")
        return 1
    except KeyboardInterrupt:
        say("sq: interrupted; the same command goes on where this one stopped")
        return 130


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line, without what follows ``--``."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [NAME ...] [options] [-- OVERRIDE ...]",
        description="Run every experiment that is not done, in order of cost, then rebuild all of results/.",
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


def reproduce(options: argparse.Namespace, words: list[str]) -> int:
    """Do what the command line says; return the exit code.

    Raises
    ------
    SqError : names or words that make no sense, or experiments that do not; nothing was run then
    """
    _check(words)
    plugins.allow(plugins.named(words))
    found = experiments.read(options.experiments.resolve())
    chosen = select(found, options.names, options.without)
    every = tasks.survey(chosen, options.results, words)
    todo = [task for task in every if task.missing and not task.lacks]
    barred = [task for task in every if task.missing and task.lacks]
    for task in barred:
        say(f"left out: {task.experiment.stem}: {'; '.join(task.lacks)}")
    if todo:
        out.print(listing(todo))
    say(forecast(every, todo, barred))
    if options.dry_run:
        return 1 if todo or barred else 0
    left = {task.experiment: len(task.missing) for task in every}
    for number, task in enumerate(todo, 1):
        say(f"[{number}/{len(todo)}] {_line(task)}")
        left[task.experiment] = _run(task, options.results, words)
    whole = _finish(every, left, options)
    if chosen == found:  # else records of parts that were not asked for would look like strangers
        for line in record.beside(
            {file for task in every if not task.experiment.is_bench for file in task.records}
        ):
            say(line)
    return 0 if whole else 1


def select(found: list[Experiment], names: list[str], without: list[str]) -> list[Experiment]:
    """Return the experiments that `names` name, by file or with all parts of a question, less those like `without`.

    Raises
    ------
    SqError : a name or a pattern that fits none
    """
    known = {one.stem for one in found} | {one.name for one in found}
    if unknown := [name for name in names if name not in known]:
        raise SqError(f"{unknown[0]}: no such experiment; {nearest(unknown[0], known)}")
    if idle := [
        glob for glob in without if not any(fnmatch.fnmatch(one.stem, glob) for one in found)
    ]:
        raise SqError(f"--without {idle[0]}: fits no experiment; {nearest(idle[0], known)}")
    wanted = [one for one in found if not names or one.stem in names or one.name in names]
    left = [one for one in wanted if not any(fnmatch.fnmatch(one.stem, glob) for glob in without)]
    if not left:
        raise SqError("no experiment is left to reproduce: name fewer with --without")
    return left


def listing(todo: list[Task]) -> Table:
    """Return a table of what is to be run, in order, with the questions it answers."""
    shown = Table()
    for title in ("", "experiment", "missing", "about", "question"):
        shown.add_column(
            title, overflow="fold", justify="right" if title in ("", "missing", "about") else "left"
        )
    for number, task in enumerate(todo, 1):
        one, of = task.experiment, f"{len(task.missing)} of {len(task.records)}"
        shown.add_row(str(number), one.stem, of, durations.words(task.seconds), one.question)
    return shown


def forecast(every: list[Task], todo: list[Task], barred: list[Task]) -> str:
    """Return one line: how many experiments there are, how they stand, and what the ones `todo` should take."""
    parts = [quantity(every, "experiment"), f"{len(every) - len(todo) - len(barred)} complete"]
    parts += [f"{len(barred)} left out"] if barred else []
    if not todo:
        return f"{', '.join(parts)}: nothing to run"
    seconds = [task.seconds for task in todo if task.seconds is not None]
    unknown = f" and {len(todo) - len(seconds)} of unknown cost" if len(seconds) < len(todo) else ""
    runs = quantity(sum(len(task.missing) for task in todo), "run")
    return f"{', '.join(parts)}, {len(todo)} to run: {runs}, about {durations.words(sum(seconds))}{unknown}"


def _check(words: list[str]) -> None:
    """Refuse words that would make other runs of the experiments than those their files describe."""
    allowed = sorted({*record.BOOKKEEPING, "hydra"} - {*OWN})
    for word in words:
        setting, equals, _ = word.partition("=")
        if not equals or setting.replace("/", ".").partition(".")[0] not in allowed:
            raise SqError(
                f"{word}: after -- only settings that shape no result, NAME=VALUE: {', '.join(allowed)}"
            )


def _line(task: Task) -> str:
    what = "benchmark" if task.experiment.is_bench else quantity(task.missing, "run")
    return f"{task.experiment.stem}: {what}, about {durations.words(task.seconds)}"


def _run(task: Task, results: Path, words: list[str]) -> int:
    """Run what is missing of `task`; return how many of its records are missing then."""
    outputs = next(
        (Path(w.partition("=")[2]) for w in words if w.startswith("outputs=")), Path("outputs")
    )
    log = outputs / "reproduce" / f"{task.experiment.stem}.log"
    start = time.monotonic()
    cause = children.run(task.command, log, task.missing, task.experiment.stem)
    left = len(tasks.left(task, results))
    if cause or left:
        done = f"{len(task.missing) - left} of {len(task.missing)} done in {durations.words(time.monotonic() - start)}"
        say(f"    {done}; {cause or 'no failure was told'} (all of it: {log})")
    return left


def _finish(every: list[Task], left: dict[Experiment, int], options: argparse.Namespace) -> bool:
    """Rebuild tables and figures, say how everything stands; return whether everything is there.

    Parameters
    ----------
    left : how many records of each experiment are missing
    """
    names = sorted({one.name for one in left})
    results = options.results
    changed, faults = rebuild(names, results, options.experiments)
    whole = [
        name for name in names if not any(count for one, count in left.items() if one.name == name)
    ]
    page = results.resolve().parent / "README.md"
    if refresh(page, whole, results):
        changed.append(page)
    for fault in faults:
        say(f"not rebuilt: {fault}")
    short = [task for task in every if left[task.experiment]]
    for task in short:
        say(
            f"not complete: {task.experiment.stem}: {left[task.experiment]} of {len(task.records)} missing"
        )
    say(
        f"{len(every) - len(short)} of {len(every)} experiments complete; tables and figures changed: {len(changed)}"
    )
    return not short and not faults


if __name__ == "__main__":
    sys.exit(program())
