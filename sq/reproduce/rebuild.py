"""Tables and figures of results/, from records alone; and those tables again where the README shows them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sq.core.progress import track
from sq.errors import SqError


def rebuild(names: list[str], results: Path, questions: Path) -> tuple[list[Path], list[str]]:
    """Build the report of each folder in `names` that holds records, then the index of all.

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
    before = {
        file: _digest(file)
        for file in results.rglob("*")
        if file.is_file() and file.suffix != ".json"
    }
    for name in track(names, "tables and figures"):
        if not any((results / name).glob("*.json")):
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
    """Put the tables of `names` between their marks in `page`, where it has such marks; return whether it changed."""
    from sq.report.__main__ import insert

    if not page.is_file():
        return False
    before = page.read_text()
    for name in re.findall(r"^<!-- table: (\S+) -->$", before, re.MULTILINE):
        table = results / name / "table.md"
        if name in names and table.is_file():
            insert(page, name, table.read_text())
    return page.read_text() != before


def _build(name: str, results: Path, questions: Path) -> list[Path]:
    from sq.bench import report as bench
    from sq.report.__main__ import report

    record = results / name / "bench.json"
    return bench.build(record) if record.is_file() else report(name, results, questions)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
