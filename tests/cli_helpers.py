"""Ways to run sq in tests: in a process of its own, as a user does, or in this one, which spares the start-up."""

import functools
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
import processes

from sq import cli
from sq.core import plugins
from sq.records import record
from sq.runs import job
from sq.runs.sweep import expand

ROOT = Path(__file__).resolve().parent.parent
CONF, EXPERIMENTS = ROOT / "conf", ROOT / "experiments"
WEIGHTS = ROOT / "sq" / "model" / "digits_resnet.safetensors"
CHEAP = (
    "quantizer=rtn",
    "correction=none",
    "tracker=none",
    "calibration.images=32",
    "sensitivity.bits=[4]",
    "threads=1",
)
PATIENCE = 240  # seconds; a busy machine is slow, a hang is for ever


def settings(folder: Path) -> list[str]:
    """Return overrides that make a run cheap and keep all it writes in `folder`."""
    return [*CHEAP, f"results={folder / 'results'}", f"outputs={folder / 'outputs'}"]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return this process's environment without what changes sq or W&B, whose own files go to `folder`."""
    kept = {
        k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR" and not k.startswith("WANDB")
    }
    own = {
        f"WANDB_{what}_DIR": str(folder / "wandb_home" / what)
        for what in ("DATA", "CACHE", "CONFIG")
    }
    return {**kept, **own, **more}


def command(folder: Path, *words: str, sweep: bool = False) -> list[str]:
    given = {word.partition("=")[0] for word in words}
    own = [word for word in settings(folder) if word.partition("=")[0] not in given]
    return [sys.executable, str(ROOT / "run.py"), *(["-m"] if sweep else []), *own, *words]


def run(folder: Path, *words: str, sweep: bool = False, **env: str) -> subprocess.CompletedProcess:
    """Run a cheap job (or a sweep) in a process of its own, from a working directory that is not the repository."""
    cwd = folder / "cwd"
    cwd.mkdir(exist_ok=True)
    return processes.run(
        command(folder, *words, sweep=sweep),
        cwd=cwd,
        env=environment(folder, **env),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@contextmanager
def as_it_was() -> Iterator[None]:
    """Put back what a run in this process changes for all that comes after it."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    log = logging.getLogger("sq")
    level, propagate = log.level, log.propagate
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        log.setLevel(level)
        log.propagate = propagate


def call(folder: Path, *words: str, sweep: bool = False) -> subprocess.CompletedProcess:
    """Do what `run` does, in this process, where torch is loaded already."""
    out, err = io.StringIO(), io.StringIO()
    argv = command(folder, *words, sweep=sweep)[1:]
    code: Any = 0
    with ExitStack() as stack:
        stack.enter_context(as_it_was())
        stack.enter_context(patch.object(sys, "argv", argv))
        stack.enter_context(patch.object(job, "TRACEBACKS", False))
        stack.enter_context(patch.dict(os.environ))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(argv, code or 0, out.getvalue(), err.getvalue())


def compose(*overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the resolved config and the choices that a job gets for `overrides`."""
    # Settings may be looked up in variables, of which one names the test.
    variables = tuple(sorted((k, v) for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"))
    composed = _composed.__wrapped__ if plugins.allowed() else _composed
    return deepcopy(composed(overrides, variables))


@functools.lru_cache(256)
def _composed(overrides: tuple[str, ...], variables: tuple[tuple[str, str], ...]) -> Any:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
        return expand.resolve(composed), expand.chosen(composed.hydra)


def error_line(done: subprocess.CompletedProcess) -> str:
    """Return the one line that a refused command leaves on stderr, after checking that it is one."""
    assert done.returncode not in (0, None), done.stdout
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("sq: ")
    assert not lines[0].split()[1].endswith(("Error:", "Exception:")), (
        f"a bare Python exception: {lines[0]}"
    )
    assert done.stdout == ""
    return lines[0]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the bytes and the time of every record file below `folder`."""
    return {
        str(f.relative_to(folder)): (f.read_bytes(), f.stat().st_mtime_ns)
        for f in folder.rglob("*.json")
    }


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the runs that wrote to `folder`."""
    return record.read_all(folder / "results" / "runs")
