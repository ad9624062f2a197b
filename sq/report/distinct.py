"""Find equal values among many runs, so that a page holds each distinct value once.

10,000 configs have few distinct parts; work that is done per distinct part stays cheap.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from sq.config.schema import leaves
from sq.report.rows import optional

ABSENT = object()  # a run without a value, as opposed to None


def distinct(values: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Return the distinct `values` in order of first occurrence, and each value's index in them.

    The index of `ABSENT` is -1. Values of different types are never equal: 4.0 is not 4, and True
    is not 1. An object that occurs many times is compared once, see `share`.
    """
    # `values` keeps its objects alive, so an id names one object throughout.
    ids = list(map(id, values))
    index_of_token: dict[Hashable, int] = {}
    index_of_id: dict[int, int] = {}
    unique: list[Any] = []
    for identity, value in dict(zip(ids, values, strict=True)).items():
        if value is ABSENT:
            index_of_id[identity] = -1
            continue
        index = index_of_token.setdefault(_token(value), len(unique))
        if index == len(unique):
            unique.append(value)
        index_of_id[identity] = index
    return unique, [index_of_id[identity] for identity in ids]


def share(part: dict[str, Any], seen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the first dict among those `seen` whose text equals that of `part`; `seen` grows."""
    return seen.setdefault(repr(part), part)


def ordered_names(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of all `mappings`, each once, in order of first occurrence."""
    names: dict[str, None] = {}
    for mapping in mappings:
        names.update(dict.fromkeys(mapping))
    return list(names)


def columns(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Turn one mapping a run, nested or not, into one column a dotted name.

    Returns
    -------
    by name ``{"all": value}`` if all runs have the same value, else ``{"values": distinct values,
    "of": index of each run's value}``, -1 where a run has none
    """
    table = {}
    for part in ordered_names(runs):
        parts, part_of_run = distinct(optional(runs, part, ABSENT))
        flat = [leaves({part: value}) for value in parts]
        for name in ordered_names(flat):
            table[name] = _column(optional(flat, name, ABSENT), part_of_run)
    return table


def _column(values: list[Any], part_of_run: list[int]) -> dict[str, Any]:
    """Return the column of a setting from its value in each distinct part, see `columns`."""
    unique, indices = distinct(values)
    indices.append(-1)  # of runs without the part: `part_of_run` is -1, the last index
    index_of_run = [indices[part] for part in part_of_run]
    if len(unique) == 1 and -1 not in index_of_run:
        return {"all": unique[0]}
    return {"values": unique, "of": index_of_run}


def _token(value: Any) -> Hashable:
    """Return what is equal for equal values of one type."""
    if isinstance(value, list | dict):  # not hashable
        return repr(value)
    return (value.__class__, value)
