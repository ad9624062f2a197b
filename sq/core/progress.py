"""What a person sees while sq works: progress on standard error, so that standard output holds results only."""

import threading
from collections.abc import Iterable, Iterator
from typing import NoReturn, TypeVar

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sq.core import closed_pipe

T = TypeVar("T")
_bar = threading.Lock()  # held while a progress bar is there


class Console(rich.console.Console):
    """A console whose program ends quietly where nobody reads it any more."""

    def on_broken_pipe(self) -> NoReturn:
        """End the program."""
        closed_pipe.end()


# What is shown is text of errors and files: "[enforce fail at ...]" is no markup, ":cpp:" no
# picture.
err = Console(stderr=True, highlight=False, markup=False, emoji=False)
out = Console(highlight=False, markup=False, emoji=False)
if not out.is_terminal:
    out.width = 160  # a file or a pipe has no width: do not cut tables to 80 columns


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing how far along it is while there is a terminal to show it on.

    While another such loop goes on, around this one or in another thread, nothing is shown: there
    is one place for it.
    """
    if not _bar.acquire(blocking=False):
        yield from items
        return
    try:
        yield from _shown(items, what, total)
    finally:
        _bar.release()


def _shown(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    with bar() as progress:
        yield from progress.track(items, total=total, description=what)


def bar() -> Progress:
    """Return a bar that shows how far along something is, then is gone; nothing where there is no terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def say(text: str) -> None:
    """Print one line for a person to standard error, as it is."""
    err.print(text, soft_wrap=True)
