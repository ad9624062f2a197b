"""An experiment in a process of its own, so that a crash of one does not end the others."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path

from sq.core.progress import bar
from sq.errors import SqError

LOOK = 1.0  # seconds between two looks at what is done
# seconds in which a child ends by itself after Ctrl-C, which the terminal sends to it as well
GRACE = 3.0
# seconds in which it ends when it is asked to; then it is killed, which leaves no record half-
# written
PATIENCE = 30.0


def run(command: list[str], log: Path, records: list[Path], what: str) -> str:
    """Run `command`, all it says going to `log`; return "" if it succeeds, else the line that says why not.

    Parameters
    ----------
    records : the files it should write, to show how far along it is
    what : its name on the progress bar

    Raises
    ------
    SqError : the log cannot be written
    KeyboardInterrupt : once the process has ended
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = log.open("w")
    except OSError as error:
        raise SqError(f"cannot write {log}: {error.strerror}; correct outputs=") from error
    before = [_stamp(file) for file in records]
    with stream, bar() as progress:
        shown = progress.add_task(what, total=len(records))
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK)
                written = sum(
                    _stamp(file) != old for file, old in zip(records, before, strict=True)
                )
                progress.update(shown, completed=written)
        except BaseException:
            _end(child)
            raise
    return "" if child.returncode == 0 else _cause(log, child.returncode)


def _end(child: subprocess.Popen) -> None:
    """Wait for `child` to end, asking with more and more force; a second Ctrl-C does not leave it behind."""
    for ask, seconds in (
        (0, GRACE),
        (signal.SIGINT, PATIENCE),
        (signal.SIGTERM, GRACE),
        (signal.SIGKILL, PATIENCE),
    ):
        until = time.monotonic() + seconds
        if ask:
            child.send_signal(ask)
        while child.poll() is None and time.monotonic() < until:
            with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                child.wait(max(until - time.monotonic(), 0.0))


def _cause(log: Path, code: int) -> str:
    """Return the first line of `log` that tells of a failure, or else the last one, or the exit code."""
    if code < 0:
        return f"it was ended by signal {-code}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("failed: ", "sq: ", "launcher: "))] or lines[
        -1:
    ]
    return told[0] if told else f"exit code {code}"


def _stamp(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
