"""Progress bars and messages on standard error; standard output holds results only."""

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
_bar = threading.Lock()  # held while a progress bar is shown: a terminal has room for one


class Console(rich.console.Console):
    """A console that ends its program quietly once nobody reads the output any more."""

    def on_broken_pipe(self) -> NoReturn:
        """End the program."""
        closed_pipe.end()


# Text of errors and files is shown as it is: "[enforce fail at ...]" is no markup, ":cpp:" no
# emoji.
err = Console(stderr=True, highlight=False, markup=False, emoji=False)
out = Console(highlight=False, markup=False, emoji=False)
if not out.is_terminal:
    out.width = 160  # columns: for a file or a pipe, rich would cut tables to 80


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, with a progress bar named `what` if standard error is a terminal.

    No bar is shown while another loop shows one, around this loop or in another thread.
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
    """Return a progress bar that vanishes when it is done; it shows nothing without a terminal."""
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
