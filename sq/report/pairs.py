"""Methods of an experiment against each other, image by image: what the difference between two of them is worth."""

from __future__ import annotations

import itertools
import statistics
from typing import TYPE_CHECKING, Any

from sq.evaluation import paired_tests
from sq.records.record import Record
from sq.report.labels import plain

if TYPE_CHECKING:
    import pandas

    from sq.report.table import Row

MOST = 8  # methods of one setting: more make a table that nobody reads


def table(rows: list[Row], records: list[Record]) -> pandas.DataFrame | None:
    """Return the gain in top-1 of each method over each other in the same setting, in points; None without two.

    The better one stands first, on the seeds that both have. The interval is that of
    `sq.evaluation.paired_tests.gain`, of 95 %: where 0 is in it, other images might turn the two
    round. Records from before answers were kept are left out.
    """
    import pandas

    told = {r["key"]: r for r in records if "right" in r.get("evaluation", {})}
    settings: dict[tuple, list[Row]] = {}
    for row in rows:
        if all(key in told for key in row["keys"]):
            setting = tuple(
                (name, plain(v)) for name, v in row["labels"].items() if name != "method"
            )
            settings.setdefault((*setting, _images(row, told)), []).append(row)
    lines = []
    for setting, own in settings.items():
        ordered = sorted(own, key=lambda row: -statistics.fmean(row["score"]))
        for one, other in itertools.combinations(ordered, 2) if len(own) <= MOST else ():
            if (line := _line(one, other, told)) is not None:
                lines.append(dict(setting[:-1]) | line)
    return pandas.DataFrame(lines) if lines else None


def _images(row: Row, told: dict[str, Record]) -> tuple[str, ...]:
    """Return the hashes of the images that runs were measured on: others cannot be compared."""
    return tuple(sorted({told[key]["evaluation"]["ids"] for key in row["keys"]}))


def _line(one: Row, other: Row, told: dict[str, Record]) -> dict[str, Any] | None:
    """Return one line of the table, of the seeds that both have; None if they have none."""
    ours, theirs = (
        {told[key]["config"]["seed"]: told[key]["evaluation"] for key in r["keys"]}
        for r in (one, other)
    )
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    right = [[own[seed]["right"] for seed in seeds] for own in (ours, theirs)]
    gain, low, high = (
        100 * figure for figure in paired_tests.gain(right[0], right[1], ours[seeds[0]]["images"])
    )
    names = [row["labels"]["method"] for row in (one, other)]
    if gain < 0:  # on these seeds, whatever others say
        gain, low, high, names = -gain, -high, -low, names[::-1]
    interval = {"gain": f"{gain:.2f}", "95 %": f"[{low:.2f}, {high:.2f}]", "seeds": str(len(seeds))}
    return {"method": names[0], "over": names[1], **interval}
