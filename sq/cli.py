"""The command line: Hydra composes, a job runs, and errors become one clear line.

Nothing here imports torch, so help, typos and finished runs are quick.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sq import config as settings
from sq import job, sweep
from sq.console import out, say
from sq.errors import SqError, one_line

CONF = str(Path(__file__).resolve().parent.parent / "conf")
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")  # what the user asked for

settings.register()


@hydra.main(config_path=CONF, config_name="config", version_base="1.3")
def task(config: DictConfig) -> dict[str, Any] | None:
    """Run one job. In a sweep its failure is in its record; alone it is raised."""
    own = HydraConfig.get()
    alone = own.mode == RunMode.RUN
    try:
        record = job.execute(sweep.resolve(config), sweep.chosen(own))
    except SqError as error:
        if alone:
            raise
        say(f"sq: {error}")
        return None
    if not alone:
        say(f"    {job.outcome(record)}")
        return {"key": record["key"], "status": record["status"]}
    if record["status"] == "failed":
        if TRACEBACKS:
            say(record["traceback"])
        raise SqError(record["error"])
    from sq.report import table

    out.print(table.for_terminal(table.build([record])))
    return None


def main() -> None:
    """Run the command line; exit 1 with one line if it fails, the traceback if HYDRA_FULL_ERROR=1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra hands errors to us instead of printing them
    try:
        task()
    except KeyboardInterrupt:
        say("sq: interrupted; the same command goes on where this one stopped")
        sys.exit(130)
    except Exception as error:
        if TRACEBACKS:
            raise
        say(f"sq: {explain(error)}")
        sys.exit(1)


def explain(error: Exception) -> str:
    """Return one line that says what was got, what is allowed and what is nearest."""
    text = str(error)
    if isinstance(error, MissingConfigException) and (found := re.search(r"Could not find '(\w+)/([^']*)'", text)):
        group, option = found.groups()
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return (
            f"{group}={option}: no such choice; {settings.nearest(option, options)} (all: {', '.join(sorted(options))})"
        )
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text):
        name = found[1] or found[2]
        return f"{name}: no such setting; {settings.nearest(name, _names())}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(f"{error} {error.__cause__ or ''}".split())
    return one_line(error)


def _names() -> list[str]:
    """Return the dotted name of every setting of the default config."""
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        composed = hydra.compose("config")
    return list(settings.leaves(sweep.resolve(composed))) + list(settings.FAMILIES)
