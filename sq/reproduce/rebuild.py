"""Rebuild the tables and figures of results/ from records, and the tables that the README shows."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sq.core.progress import track
from sq.errors import SqError


def rebuild(names: list[str], results: Path, questions: Path) -> tuple[list[Path], list[str]]:
    """Build the report of each folder in `names` that holds records, then the index.

    Parameters
    ----------
    questions : the folder of experiments

    Returns
    -------
    the files changed, and a line for each report that could not be built
    """
    from sq.report.__main__ import index

    faults: list[str] = []
    built: list[Path] = []
    # By content, since a rebuilt file has another time even if nothing changed.
    before: dict[Path, str] = {}
    for file in results.rglob("*"):
        if file.is_file() and file.suffix != ".json":
            before[file] = _digest(file)
    for name in track(names, "tables and figures"):
        if not any((results / name).glob("*.json")):  # nothing was run yet
            continue
        try:
            built += _build(name, results, questions)
        except SqError as error:
            faults.append(f"{name}: {error}")
    if built:
        try:
            built.append(index(results, questions))
        except SqError as error:
            faults.append(f"index: {error}")
    return [file for file in built if before.get(file) != _digest(file)], faults


def refresh(page: Path, names: list[str], results: Path) -> bool:
    """Put the tables of `names` between their marks in `page`; return whether the page changed."""
    from sq.report.__main__ import insert

    if not page.is_file():
        return False
    before = page.read_text()
    for name in re.findall(r"^<!-- table: (\S+) -->$", before, re.MULTILINE):
        table = results / name / "table.md"
        if name in names and table.is_file():  # without a finished run there is no table
            insert(page, name, table.read_text())
    return page.read_text() != before


def _build(name: str, results: Path, questions: Path) -> list[Path]:
    """Build the report of an experiment or a benchmark; return the files."""
    from sq.bench import report as bench
    from sq.report.__main__ import report

    benchmark = results / name / "bench.json"
    if benchmark.is_file():
        return bench.build(benchmark)
    return report(name, results, questions)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
