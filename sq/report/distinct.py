"""What many runs share, found once: 10,000 configs have few distinct parts, and a page needs each but once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from sq.config.schema import leaves

ABSENT = object()


def distinct(values: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Return the distinct among `values`, in the order in which they come, and the place of each value among them.

    The place of `ABSENT` is -1. Values of other types are never equal: 4.0 is not 4, nor is True 1.
    One object in many places is read once, see `share`.
    """
    ids = list(map(id, values))  # `values` keeps objects alive, so that ids stay theirs
    places: dict[Hashable, int] = {}
    known: dict[int, int] = {}
    found: list[Any] = []
    for own, value in dict(zip(ids, values, strict=True)).items():
        known[own] = -1 if value is ABSENT else places.setdefault(_token(value), len(found))
        if known[own] == len(found):
            found.append(value)
    return found, [known[own] for own in ids]


def share(part: dict[str, Any], known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the first of the dicts that are equal to `part`, as text, among those seen before; `known` grows."""
    return known.setdefault(repr(part), part)


def columns(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Turn one mapping a run, nested or not, into one column a dotted name.

    Returns
    -------
    by name ``{"all": value}``, or ``{"values": the distinct ones, "of": place of each run's}``, -1
    where it has none
    """
    made = {}
    for part in dict.fromkeys(name for own in runs for name in own):
        found, of = distinct([own.get(part, ABSENT) for own in runs])
        flat = [leaves({part: value}) for value in found]
        for name in dict.fromkeys(name for own in flat for name in own):
            made[name] = _column([own.get(name, ABSENT) for own in flat], of)
    return made


def _column(values: list[Any], of: list[int]) -> dict[str, Any]:
    found, places = distinct(values)
    mine = [*places, -1]  # what is absent has place -1, the last
    own = [mine[place] for place in of]
    return {"all": found[0]} if len(found) == 1 and -1 not in own else {"values": found, "of": own}


def _token(value: Any) -> Hashable:
    return repr(value) if isinstance(value, list | dict) else (value.__class__, value)
