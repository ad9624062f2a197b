"""Methods of an experiment compared image by image: the gain of one over another."""

from __future__ import annotations

import itertools
import statistics
from typing import TYPE_CHECKING, Any

from sq.evaluation import paired_tests
from sq.records.record import Record
from sq.report.labels import texts
from sq.report.rows import Row, frame, records_of

if TYPE_CHECKING:
    import pandas

MAX_METHODS = 8  # of one setting: the pairs of more make a table that nobody reads


def table(rows: list[Row], records: list[Record]) -> pandas.DataFrame | None:
    """Return the gain in top-1 of each method over each other in the same setting, in points.

    None without two methods. The better one comes first, on the seeds that both have. The interval
    is that of `sq.evaluation.paired_tests.gain`, of 95 %: where it holds 0, other images might
    reverse the order. Older records without predictions are left out.
    """
    comparable = {r["key"]: r for r in records if "right" in r.get("evaluation", {})}
    settings: dict[tuple, list[Row]] = {}
    for row in rows:
        runs = records_of(row, comparable)
        if len(runs) == len(row["keys"]):
            settings.setdefault((_setting(row), _images(runs)), []).append(row)
    lines = []
    for (setting, _), members in settings.items():
        if len(members) > MAX_METHODS:  # no table is better than an unreadable one
            continue
        best_first = sorted(members, key=lambda row: -statistics.fmean(row["score"]))
        for first, second in itertools.combinations(best_first, 2):
            line = _line(first, second, comparable)
            if line is not None:
                lines.append(dict(setting) | line)
    return frame(lines)


def _setting(row: Row) -> tuple[tuple[str, str], ...]:
    """Return the labels of a row but its method, as pairs of name and text."""
    return tuple(texts(row["labels"], without=("method",)).items())


def _images(runs: list[Record]) -> tuple[str, ...]:
    """Return the hashes of the images that runs were measured on: others cannot be compared."""
    return tuple(sorted({run["evaluation"]["ids"] for run in runs}))


def _line(first: Row, second: Row, records: dict[str, Record]) -> dict[str, Any] | None:
    """Return one line of the table, over the seeds that both rows have; None if they share none."""
    first_runs = _by_seed(first, records)
    second_runs = _by_seed(second, records)
    seeds = sorted(set(first_runs) & set(second_runs))
    if not seeds:
        return None
    images = first_runs[seeds[0]]["images"]  # their number, the same in all runs
    first_right = [first_runs[seed]["right"] for seed in seeds]
    second_right = [second_runs[seed]["right"] for seed in seeds]
    estimate = paired_tests.gain(first_right, second_right, images)
    gain, low, high = (100 * share for share in estimate)  # in points
    better, worse = first["labels"]["method"], second["labels"]["method"]
    if gain < 0:  # on the shared seeds the order may be the other one
        gain, low, high = -gain, -high, -low
        better, worse = worse, better
    return {
        "method": better,
        "over": worse,
        "gain": f"{gain:.2f}",
        "95 %": f"[{low:.2f}, {high:.2f}]",
        "seeds": str(len(seeds)),
    }


def _by_seed(row: Row, records: dict[str, Record]) -> dict[int, dict[str, Any]]:
    """Return the evaluation of each run of a row by its seed."""
    runs = records_of(row, records)
    return {run["config"]["seed"]: run["evaluation"] for run in runs}
