"""Exported files in a table: their bytes, and their accuracy beside that of the run."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from sq.records.record import Record
from sq.report.labels import NOT_SHOWN, texts
from sq.report.rows import Row, frame, optional, records_of, values
from sq.report.table import HEADLINES

if TYPE_CHECKING:
    import pandas


def table(rows: list[Row], records: list[Record]) -> pandas.DataFrame | None:
    """Return a line for each row whose runs exported files, means over seeds; None without any.

    Bytes are those on disk, also as a share of the same network in 32 bits. The figure was measured
    with the file, run as its user would, and with the run's network. Outputs are compared on the
    calibration images, in decibels, and top-1 predictions on the evaluation images.
    """
    exported = {record["key"]: record for record in records if "export" in record}
    lines = []
    for row in rows:
        runs = records_of(row, exported)
        if runs:
            lines.append(texts(row["labels"], without=NOT_SHOWN) | _cells(runs))
    return frame(lines)


def _cells(runs: list[Record]) -> dict[str, str]:
    """Return the cells of the runs of one row."""
    headline = runs[0]["results"]["headline"]  # runs of one row have the same
    title, form = HEADLINES[headline]
    exports = values(runs, "export")
    shares = [run["export"]["bytes"] / run["results"]["bytes_full"] for run in runs]
    return {
        "format": exports[0]["format"],
        "bytes": _mean(values(exports, "bytes"), ",.0f"),
        "x 32 bits": _mean(shares, ".3f"),
        "figure": title,
        "file": _mean(values(exports, "figures", headline), form),
        "run": _mean(values(runs, "results", headline), form),
        "answers apart": _mean(list(map(_differing_predictions, runs)), ".0f"),
        "outputs dB": _mean(optional(exports, "outputs_snr_db"), ".1f"),
        "runs": str(len(runs)),
    }


def _differing_predictions(run: Record) -> float | None:
    """Return how many images have another top-1 prediction by the file than by the run."""
    same_percent = run["export"].get("agreement", {}).get("same_top1")
    if same_percent is None:
        return None
    return run["evaluation"]["images"] * (1 - same_percent / 100)


def _mean(numbers: list[Any], form: str) -> str:
    """Return the mean as text; "-" where a run has none."""
    if None in numbers:
        return "-"
    return f"{statistics.fmean(numbers):{form}}"
