"""The arguments of a command, in the order that Hydra's parser can read."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from sq.errors import SqError


@contextmanager
def any_help() -> Iterator[None]:
    """Let Hydra make its parser while this lasts, on Python 3.14 as well.

    There argparse formats the help of an option when the option is added, and refuses that of
    Hydra's ``--shell-completion``, which is an object that becomes text when it is shown.
    """
    container: Any = argparse._ActionsContainer
    check = getattr(container, "_check_help", None)
    if check is None:
        yield
        return

    def check_text(self: Any, action: argparse.Action) -> None:
        if isinstance(action.help, str):
            check(self, action)

    container._check_help = check_text
    try:
        yield
    finally:
        container._check_help = check


def parser() -> argparse.ArgumentParser:
    """Return Hydra's parser of the arguments of a command."""
    with any_help():
        return get_args_parser()


class _Argument(str):
    """An argument that is told from another that reads the same, by what object it is."""

    __slots__ = ()


def options_first(arguments: list[str]) -> list[str]:
    """Return `arguments` with the options before the overrides, each in their own order.

    Hydra reads its arguments with argparse, which takes overrides from one place only: with an
    option such as ``-m`` between them it refuses all that come after it.

    Raises
    ------
    SqError : there is an option that Hydra does not have, or one without its value
    """
    reader = parser()

    def refuse(message: str) -> NoReturn:
        raise SqError(f"{message}; python run.py --hydra-help lists the options")

    reader.error = refuse  # type: ignore[method-assign]
    words: list[str] = [_Argument(argument) for argument in arguments]
    known, unknown = reader.parse_known_intermixed_args(words)
    if unknown:
        refuse(
            f"{next((word for word in unknown if word.startswith('-')), unknown[0])}: no such option"
        )
    overrides = {id(word) for word in known.overrides}
    # stable: options are False, and come first
    ordered = sorted(words, key=lambda word: id(word) in overrides)
    return [str(word) for word in ordered]
