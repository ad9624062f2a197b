"""End a program quietly when the reader of its output has gone, as in ``sq --help | head``.

The default action of SIGPIPE would do so too, but would also end a run that loses its connection to
a tracker.
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
    """Decorate `program`: without a reader of its output it ends silently, with exit code `EXIT`.

    Any other broken pipe stays an error.
    """

    @functools.wraps(program)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            try:
                return program(*args, **kwargs)
            finally:
                # Text left in the buffer, such as a help text, would fail only as the process ends.
                _flush()
        except BrokenPipeError:
            if not unread():
                raise
            end()

    return wrapped


def unread() -> bool:
    """Tell whether standard output or error is a pipe or socket that nobody reads any more."""
    return any(_is_unread(stream) for stream in (sys.stdout, sys.stderr))


def end() -> NoReturn:
    """End the process silently: anything it still writes is discarded."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _is_unread(stream):
            os.dup2(null, stream.fileno())
    raise SystemExit(EXIT)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, AttributeError):  # closed, or None as under pythonw
            stream.flush()


def _is_unread(stream: TextIO | None) -> bool:
    try:
        descriptor = stream.fileno()  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):  # None, closed, or not of a file
        return False
    # On Windows one cannot tell whose pipe is broken: the error stays an error.
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
