"""Singular and plural in messages."""

from __future__ import annotations

from collections.abc import Sized


def quantity(number: int | Sized, noun: str) -> str:
    """Return a number, or the size of a collection, with its noun: "1 run", "12,000 runs".

    Parameters
    ----------
    noun : in the singular; of several words, the last one takes the plural
    """
    size = number if isinstance(number, int) else len(number)
    return f"{size:,} {noun if size == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the plural of a regular `noun`."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"
