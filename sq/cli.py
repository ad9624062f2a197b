"""The command line: Hydra composes, a job runs, and errors become one clear line.

Nothing here imports torch, so help, typos and finished runs are quick.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sq.core import closed_pipe, paths, plugins
from sq.core.progress import out, say
from sq.errors import SqError
from sq.records import experiments
from sq.runs import arguments, job, loader, messages
from sq.runs.sweep import dry_run, expand, plan, sweeper

# what Hydra takes and ignores in a single run
OF_A_SWEEP = re.compile(r"[+~]*hydra[./](launcher|sweeper|sweep)\b")


def task(config: DictConfig) -> None:
    """Run one job. In a sweep its failure is in its record and the sweep goes on; alone it ends the program."""
    own = HydraConfig.get()
    plain, choices = expand.resolve(config), expand.chosen(own)
    if own.mode == RunMode.MULTIRUN:
        sweeper.task(plain, choices)
        return
    one, record = expand.Job([], plain, choices), None
    try:
        _check_alone(own, plain["name"])
        if plain["sweep"]["dry_run"]:
            dry_run.show(*dry_run.look([one], "failed", here=True))
            return
    except SqError as error:
        failure = str(error)
    else:
        if guess := plan.single(one):
            say(guess)
        record, failure = job.attempt(one, wait=True)
    if failure or record is None:
        say(f"sq: {failure}")
        raise SystemExit(1)  # not an exception, on which Hydra would comment
    from sq.report import table

    out.print(table.for_terminal(table.build([record])))


def _check_alone(own: Any, name: str) -> None:
    """Refuse what a single run, with `own` of Hydra's, cannot be asked for."""
    given = expand.unambiguous(list(own.overrides.task))
    if idle := [word for word in own.overrides.hydra if OF_A_SWEEP.match(word)]:
        raise SqError(f"{idle[0]}: of a sweep, and this is one run: add -m, or leave it out")
    if many := [
        word
        for setting, word in given.items()
        if setting.startswith("sweep.") and setting != "sweep.dry_run"
    ]:
        raise SqError(f"{many[0]}: of a sweep, and this is one run: add -m, or leave it out")
    if wrong := experiments.misplaced(own, name):
        raise SqError(wrong)


@closed_pipe.quiet
def main() -> None:
    """Run the command line; exit 1 with one line if it fails, the traceback if HYDRA_FULL_ERROR=1."""
    # so that Hydra hands errors to us instead of printing them
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        sys.argv[1:] = arguments.options_first(sys.argv[1:])
        _find_experiments()
        plugins.allow(plugins.named(sys.argv[1:]))
        with arguments.any_help(), loader.installed():
            # Not a decorator: a launcher must find `task` under its own name to send it to another
            # process.
            hydra.main(config_path=loader.CONF, config_name="config", version_base="1.3")(task)()
    except KeyboardInterrupt:
        say("sq: interrupted; the same command goes on where this one stopped")
        sys.exit(130)
    except Exception as error:
        if job.TRACEBACKS or (isinstance(error, BrokenPipeError) and closed_pipe.unread()):
            raise
        words, file = ([], None) if isinstance(error, SqError) else _command(sys.argv[1:])
        say(f"sq: {messages.explain(error, words, file)}")
        sys.exit(1)


def _find_experiments() -> None:
    """Let a command that names a config, but no folder, have one of the experiments that come with sq."""
    given = arguments.parser().parse_args()
    if given.config_name and not given.config_dir:
        sys.argv.extend(["--config-dir", str(paths.EXPERIMENTS)])


def _command(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the overrides of a command line of Hydra's, and the config it names, if that is not sq's own."""
    options, _ = arguments.parser().parse_known_args([*words])
    overrides = [word for word in options.overrides if not word.startswith("hydra")]
    if options.config_name is None and options.config_dir is None:
        return overrides, None
    return overrides, Path(
        options.config_dir or loader.CONF, f"{options.config_name or 'config'}.yaml"
    )
