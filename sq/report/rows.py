"""Rows of the report's table, and what several tables and figures compute from them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

# One line of the table: runs that differ in their seeds only. See `sq.report.table.rows`.
Row = dict[str, Any]


def values(records: Iterable[Mapping[str, Any]], *keys: str) -> list[Any]:
    """Return the value of each record under nested `keys`: "results", "top1"."""
    result = []
    for record in records:
        value: Any = record
        for key in keys:
            value = value[key]
        result.append(value)
    return result


def optional(records: Iterable[Mapping[str, Any]], key: str, default: Any = None) -> list[Any]:
    """Return the value of each record under `key`, `default` for those without."""
    return [record.get(key, default) for record in records]


def all_have(records: Iterable[Mapping[str, Any]], key: str) -> bool:
    """Return whether all `records` have a value under `key`."""
    return all(key in record for record in records)


def select(mapping: Mapping[Any, Any], names: Collection[Any]) -> dict[Any, Any]:
    """Return the entries of `mapping` whose key is among `names`, in the order of `mapping`."""
    return {name: value for name, value in mapping.items() if name in names}


def omit(mapping: Mapping[Any, Any], names: Collection[Any]) -> dict[Any, Any]:
    """Return the entries of `mapping` whose key is not among `names`."""
    return {name: value for name, value in mapping.items() if name not in names}


def finished(records: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the `records` of runs that are done."""
    return [record for record in records if record["status"] == "done"]


def mean(records: Iterable[Mapping[str, Any]], *keys: str) -> float:
    """Return the mean over `records` of the value under nested `keys`."""
    return statistics.fmean(values(records, *keys))


def mean_cell(numbers: list[float], form: str, unit: str = "") -> str:
    """Return "mean +- standard deviation" of `numbers`; the mean alone if there is one number."""
    average = f"{statistics.fmean(numbers):{form}}"
    if len(numbers) == 1:
        return average + unit
    return f"{average} +- {statistics.stdev(numbers):{form}}{unit}"


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Group `rows` by what `key` returns for them, in the order of first occurrence."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def records_of(row: Row, by_key: Mapping[str, Any]) -> list[Any]:
    """Return the entries of `by_key` for the runs of `row`; runs without an entry are skipped."""
    return [by_key[key] for key in row["keys"] if key in by_key]


def full_precision(rows: Iterable[Row]) -> float:
    """Return the mean score in full precision over all runs of `rows`: score plus drop."""
    scores: list[float] = []
    for row in rows:
        runs = zip(row["score"], row["drop"], strict=True)
        scores += [score + drop for score, drop in runs]
    return statistics.fmean(scores)


def frame(lines: list[dict[str, Any]]) -> pandas.DataFrame | None:
    """Return `lines` of text cells as a table, "-" where a line lacks one; None without lines."""
    import pandas

    if not lines:
        return None
    return pandas.DataFrame(lines).fillna("-")
