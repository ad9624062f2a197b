"""Put the arguments of a command in an order that Hydra's parser can read."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from sq.errors import SqError


@contextmanager
def any_help() -> Iterator[None]:
    """Let Hydra create its parser within the block, on Python 3.14 as well.

    There argparse formats the help of an option when the option is added. It refuses that of
    Hydra's ``--shell-completion``, an object that becomes text only when it is shown.
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
    """An argument that is distinguished from an equal one by its identity."""

    __slots__ = ()


def options_first(arguments: list[str]) -> list[str]:
    """Return `arguments` with the options before the overrides, each in their own order.

    Hydra reads its arguments with argparse, which expects all overrides in one place: it refuses
    those after an option such as ``-m``.

    Raises
    ------
    SqError : there is an option that Hydra does not have, or one without its value
    """
    reader = parser()

    def refuse(message: str) -> NoReturn:
        raise SqError(f"{message}; python run.py --hydra-help lists the options")

    reader.error = refuse  # type: ignore[method-assign]
    distinct: list[str] = [_Argument(argument) for argument in arguments]
    parsed, unknown = reader.parse_known_intermixed_args(distinct)
    if unknown:
        options = [argument for argument in unknown if argument.startswith("-")]
        refuse(f"{(options or unknown)[0]}: no such option")
    overrides = {id(override) for override in parsed.overrides}
    # stable: options have the key False, and come first
    ordered = sorted(distinct, key=lambda argument: id(argument) in overrides)
    return [str(argument) for argument in ordered]
