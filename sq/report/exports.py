"""Files that runs wrote, in a table: their bytes, and what they compute beside what was measured."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from sq.records.record import Record
from sq.report.labels import APART, plain
from sq.report.table import HEADLINES

if TYPE_CHECKING:
    import pandas

    from sq.report.table import Row


def table(rows: list[Row], records: list[Record]) -> pandas.DataFrame | None:
    """Return a line for each row whose runs wrote files, means over seeds; None without any.

    Bytes are those on disk, beside the same network's in 32 bits; figures are of the file, run as
    its user would, and of the run; outputs are compared on the calibration images, in decibels, and
    top-1 answers on the evaluation images.
    """
    import pandas

    told = {r["key"]: r for r in records if "export" in r}
    lines = []
    for row in rows:
        own = [told[key] for key in row["keys"] if key in told]
        if own:
            lines.append(
                {name: plain(value) for name, value in row["labels"].items() if name not in APART}
                | _line(own)
            )
    return pandas.DataFrame(lines).fillna("-") if lines else None


def _line(own: list[Record]) -> dict[str, str]:
    figure = own[0]["results"]["headline"]
    title, form = HEADLINES[figure]
    return {
        "format": own[0]["export"]["format"],
        "bytes": _mean([r["export"]["bytes"] for r in own], ",.0f"),
        "x 32 bits": _mean([r["export"]["bytes"] / r["results"]["bytes_full"] for r in own], ".3f"),
        "figure": title,
        "file": _mean([r["export"]["figures"][figure] for r in own], form),
        "run": _mean([r["results"][figure] for r in own], form),
        "answers apart": _mean([_apart(r) for r in own], ".0f"),
        "outputs dB": _mean([r["export"].get("outputs_snr_db") for r in own], ".1f"),
        "runs": str(len(own)),
    }


def _apart(made: Record) -> float | None:
    """Return how many evaluation images have another top-1 answer by the file than by the run."""
    same = made["export"].get("agreement", {}).get("same_top1")
    return None if same is None else made["evaluation"]["images"] * (1 - same / 100)


def _mean(values: list[Any], form: str) -> str:
    return "-" if any(value is None for value in values) else f"{statistics.fmean(values):{form}}"
