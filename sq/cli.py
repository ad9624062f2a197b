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
    """Run one job.

    In a sweep, a failure is in the job's record and the sweep goes on. A single run that fails ends
    the program.
    """
    hydra_config = HydraConfig.get()
    plain, choices = expand.resolve(config), expand.chosen(hydra_config)
    if hydra_config.mode == RunMode.MULTIRUN:
        sweeper.task(plain, choices)
        return
    single, record = expand.Job([], plain, choices), None
    try:
        _check_single_run(hydra_config, plain["name"])
        if plain["sweep"]["dry_run"]:
            dry_run.show(*dry_run.look([single], "failed", here=True))
            return
    except SqError as error:
        failure = str(error)
    else:
        forecast = plan.single(single)
        if forecast:
            say(forecast)
        record, failure = job.attempt(single, wait=True)
    if failure or record is None:
        say(f"sq: {failure}")
        raise SystemExit(1)  # not an exception, on which Hydra would comment
    # Reports import pandas, which a run that fails does not need.
    from sq.report import table

    out.print(table.for_terminal(table.build([record])))


def _check_single_run(hydra_config: Any, name: str) -> None:
    """Refuse what only a sweep can be asked for.

    Parameters
    ----------
    hydra_config : Hydra's part of the config
    name : of the experiment
    """
    settings = expand.unambiguous(list(hydra_config.overrides.task))
    of_sweeps = [word for word in hydra_config.overrides.hydra if OF_A_SWEEP.match(word)]
    for setting, word in settings.items():
        if setting.startswith("sweep.") and setting != "sweep.dry_run":
            of_sweeps.append(word)
    if of_sweeps:
        raise SqError(f"{of_sweeps[0]}: applies to sweeps only: add -m or drop it")
    misplaced = experiments.misplaced(hydra_config, name)
    if misplaced:
        raise SqError(misplaced)


@closed_pipe.quiet
def main() -> None:
    """Run the command line.

    If it fails, print one line, or the traceback if HYDRA_FULL_ERROR=1, and exit with 1.
    """
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
        overrides: list[str] = []
        file: Path | None = None
        if not isinstance(error, SqError):
            overrides, file = _overrides_and_config(sys.argv[1:])
        say(f"sq: {messages.explain(error, overrides, file)}")
        sys.exit(1)


def _find_experiments() -> None:
    """Look for a config that is named without a folder among the experiments that come with sq."""
    options = arguments.parser().parse_args()
    if options.config_name and not options.config_dir:
        sys.argv.extend(["--config-dir", str(paths.EXPERIMENTS)])


def _overrides_and_config(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the overrides of a command line, and its config file; None for sq's own."""
    options, _ = arguments.parser().parse_known_args([*words])
    overrides = [word for word in options.overrides if not word.startswith("hydra")]
    if options.config_name is None and options.config_dir is None:
        return overrides, None
    folder = options.config_dir or loader.CONF
    return overrides, Path(folder, f"{options.config_name or 'config'}.yaml")
