"""Latency tables: the time of each layer at each bit-width, in a CSV file.

`latency=onnxruntime` writes such files; others may come from any measurement.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sq.errors import SqError

COLUMNS = ("layer", "bits", "input_bits", "ms")


@dataclass(frozen=True)
class Table:
    """Milliseconds by layer name, bits of weights, and bits of inputs (32 in full precision)."""

    ms: dict[tuple[str, int, int], float]
    file: str
    digest: str  # sha256 of the file, 16 hex digits

    def check(self, keys: Iterable[tuple[str, int, int]]) -> None:
        """Raise an `SqError` unless the table has all `keys`: layer, bits of weights, of inputs."""
        missing = [key for key in keys if key not in self.ms]
        if not missing:
            return
        name, bits, inputs = missing[0]
        rest = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        if all(key[0] != name for key in self.ms):
            raise SqError(
                f"latency table {self.file}: no line for layer {name}{rest}; add its latency"
            )
        raise SqError(
            f"latency table {self.file}: no line for layer {name} with {bits} bits of weights and "
            f"{inputs} of inputs{rest}; add its latency, or choose other bits (sensitivity.bits "
            "for weights; sensitivity.input_bits or activation.bits for inputs; ends of the first "
            "and last layer)"
        )


def read(path: str) -> Table:
    """Return the table in a CSV file, whose header has `COLUMNS` in any order.

    Raises
    ------
    SqError : the file cannot be read, a column is missing, or a line is not valid
    """
    try:
        data = Path(path).read_bytes()
        # Spreadsheets may write a byte order mark: "utf-8-sig" drops it.
        lines = list(csv.reader(data.decode("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise SqError(
            f"allocation.latency_table={path}: {cause}; expected a CSV file with the columns "
            f"{','.join(COLUMNS)}"
        ) from error
    header = [name.strip() for name in lines[0]] if lines else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise SqError(
            f"latency table {path}: no column {', '.join(missing)}; its columns should be "
            f"{','.join(COLUMNS)}"
        )
    columns = [header.index(name) for name in COLUMNS]
    ms: dict[tuple[str, int, int], float] = {}
    for number, line in enumerate(lines[1:], 2):
        if not any(line):
            continue
        line += [""] * (len(header) - len(line))  # a short line lacks its last cells
        cells = [line[column].strip() for column in columns]
        key, value = _entry(cells, f"{path}, line {number}")
        if key in ms:
            name, bits, inputs = key
            raise SqError(
                f"latency table {path}, line {number}: {name} at {bits} and {inputs} bits has a "
                "line before; remove one of them"
            )
        ms[key] = value
    return Table(ms, path, hashlib.sha256(data).hexdigest()[:16])


def _entry(cells: list[str], where: str) -> tuple[tuple[str, int, int], float]:
    """Return the key and milliseconds of a line, given its cells in the order of `COLUMNS`."""
    name, *numbers = cells
    try:
        bits, inputs, value = int(numbers[0]), int(numbers[1]), float(numbers[2])
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value) or value < 0:
        raise SqError(
            f"latency table {where}: {','.join(cells)}: should be a layer, its bits, its inputs' "
            "bits, and milliseconds"
        )
    return (name, bits, inputs), value


def to_csv(timings: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of a table of timed layers.

    Parameters
    ----------
    timings : each with `layer`; lists `bits` of weights and `input_bits` for which the time holds;
        `median`, `low` and `high` in ms
    """
    lines = [",".join([*COLUMNS, "low", "high"])]
    for timing in timings:
        times = f"{timing['median']:.5f},{timing['low']:.5f},{timing['high']:.5f}"
        for bits, input_bits in itertools.product(timing["bits"], timing["input_bits"]):
            line = f"{timing['layer']},{bits},{input_bits},{times}"
            lines.append(line)
    return "\n".join(lines) + "\n"
