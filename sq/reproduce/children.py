"""Run an experiment in its own process, so that a crash of one does not end the others."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path

from sq.core.progress import bar
from sq.errors import SqError

POLL_SECONDS = 1.0  # between two looks at the records
# A child may end by itself after Ctrl-C, which the terminal sends to it as well.
GRACE_SECONDS = 3.0
# For a child to end after SIGINT. Then it is killed; no record is left half-written.
PATIENCE_SECONDS = 30.0
FAILURES = ("failed: ", "sq: ", "launcher: ")  # lines of a log that begin so are failures


def run(command: list[str], log: Path, records: list[Path], what: str) -> str:
    """Run `command` with its output in `log`; return "" if it succeeds, else the cause of failure.

    Parameters
    ----------
    records : the files it should write, to show its progress
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
    before = [_modified(file) for file in records]
    with stream, bar() as progress:
        task = progress.add_task(what, total=len(records))
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_SECONDS)
                written = 0
                for file, time_before in zip(records, before, strict=True):
                    written += _modified(file) != time_before
                progress.update(task, completed=written)
        except BaseException:
            _end(child)
            raise
    return "" if child.returncode == 0 else _cause(log, child.returncode)


def _end(child: subprocess.Popen) -> None:
    """Wait for `child` to end, with stronger and stronger signals; no Ctrl-C leaves it behind."""
    for request, seconds in (
        (None, GRACE_SECONDS),
        (signal.SIGINT, PATIENCE_SECONDS),
        (signal.SIGTERM, GRACE_SECONDS),
        (signal.SIGKILL, PATIENCE_SECONDS),
    ):
        until = time.monotonic() + seconds
        if request is not None:
            child.send_signal(request)
        while child.poll() is None and time.monotonic() < until:
            with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                child.wait(max(until - time.monotonic(), 0.0))


def _cause(log: Path, code: int) -> str:
    """Return the first line of `log` on a failure, else its last line, or the exit code."""
    if code < 0:
        return f"it was ended by signal {-code}"
    lines = []
    for line in log.read_text(errors="replace").splitlines():
        text = line.strip()
        if text.startswith(FAILURES):
            return text
        if text:
            lines.append(text)
    return lines[-1] if lines else f"exit code {code}"


def _modified(file: Path) -> int:
    """Return when `file` was modified, in nanoseconds; 0 if there is none."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
