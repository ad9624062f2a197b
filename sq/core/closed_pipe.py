"""Programs whose output nobody reads any more: ``sq --help | head`` ends quietly, as every Unix program does.

Not by the default action of SIGPIPE, which would also end a run whose connection to a tracker has
gone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TextIO, TypeVar

EXIT = 141  # what a shell reports of a process that SIGPIPE ended: 128 + 13

P = ParamSpec("P")
R = TypeVar("R")


def quiet(program: Callable[P, R]) -> Callable[P, R]:
    """Let `program` end without a word, with exit code `EXIT`, where the reader of its output has gone.

    A broken pipe of anything else is an error as before.
    """

    @functools.wraps(program)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            try:
                return program(*args, **kwargs)
            finally:
                # what stands in the buffer, of a help text say, would fail at the end of the
                # process
                _flush()
        except BrokenPipeError:
            if not unread():
                raise
            end()

    return wrapped


def unread() -> bool:
    """Return whether standard output or standard error is a pipe, or socket, that nobody reads any more."""
    return any(_unread(stream) for stream in (sys.stdout, sys.stderr))


def end() -> NoReturn:
    """End the process quietly: what it still writes goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _unread(stream):
            os.dup2(nowhere, stream.fileno())
    raise SystemExit(EXIT)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, AttributeError):  # closed, or None as under pythonw
            stream.flush()


def _unread(stream: TextIO | None) -> bool:
    try:
        number = stream.fileno()  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):  # None, closed, or not of a file
        return False
    # Windows, where it cannot be told whose pipe it is: an error as before
    if not hasattr(select, "poll"):
        return False
    looked = select.poll()
    looked.register(number, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in looked.poll(0))
