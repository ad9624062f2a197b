"""Tables of latency: how long a layer takes at each bit-width, in a CSV file of `latency=onnxruntime` or of others."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sq.errors import SqError

COLUMNS = ("layer", "bits", "input_bits", "ms")


@dataclass(frozen=True)
class Table:
    """Milliseconds by layer name, bits of its weights and bits of its inputs (32 in full precision)."""

    ms: dict[tuple[str, int, int], float]
    file: str
    digest: str  # sha256 of the file, 16 hex digits

    def check(self, wanted: Iterable[tuple[str, int, int]]) -> None:
        """Raise an `SqError` unless the table has all that is wanted: layer, bits of weights, bits of inputs."""
        if missing := [key for key in wanted if key not in self.ms]:
            name, bits, inputs = missing[0]
            rest = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            if all(key[0] != name for key in self.ms):
                raise SqError(
                    f"latency table {self.file}: no line for layer {name}{rest}; add what it takes"
                )
            raise SqError(
                f"latency table {self.file}: no line for layer {name} with {bits} bits of weights and {inputs} of "
                f"inputs{rest}; add what it takes, or ask for other bits (sensitivity.bits of weights; "
                "sensitivity.input_bits or activation.bits of inputs; ends of the first and last layer)"
            )


def read(path: str) -> Table:
    """Return the table in a CSV file with the columns `layer`, `bits`, `input_bits` and `ms`, in any order.

    Raises
    ------
    SqError : the file cannot be read, lacks a column, or has a line that is not a layer, two widths
    and a time
    """
    try:
        data = Path(path).read_bytes()
        lines = list(csv.reader(data.decode("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise SqError(
            f"allocation.latency_table={path}: {cause}; a CSV file: {','.join(COLUMNS)}"
        ) from error
    head = [word.strip() for word in lines[0]] if lines else []
    if missing := [name for name in COLUMNS if name not in head]:
        raise SqError(
            f"latency table {path}: no column {', '.join(missing)}; its columns should be {','.join(COLUMNS)}"
        )
    places = [head.index(name) for name in COLUMNS]
    ms: dict[tuple[str, int, int], float] = {}
    for number, line in enumerate(lines[1:], 2):
        if any(line):
            key, value = _entry(
                [line[k].strip() if k < len(line) else "" for k in places], f"{path}, line {number}"
            )
            if key in ms:
                raise SqError(
                    f"latency table {path}, line {number}: {key[0]} at {key[1]} and {key[2]} bits came before"
                )
            ms[key] = value
    return Table(ms, path, hashlib.sha256(data).hexdigest()[:16])


def _entry(words: list[str], where: str) -> tuple[tuple[str, int, int], float]:
    name, *numbers = words
    try:
        bits, inputs, value = int(numbers[0]), int(numbers[1]), float(numbers[2])
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value) or value < 0:
        raise SqError(
            f"latency table {where}: {','.join(words)}: should be a layer, its bits, its inputs' bits, and milliseconds"
        )
    return (name, bits, inputs), value


def lines(found: Iterable[Mapping[str, Any]]) -> str:
    """Return the table, as text, of layers that were timed.

    Parameters
    ----------
    found : `layer`; `bits` of weights and `input_bits` that take equally long; `median`, `low` and
    `high` in ms
    """
    text = [",".join([*COLUMNS, "low", "high"])]
    for own in found:
        times = [f"{own[name]:.5f}" for name in ("median", "low", "high")]
        widths = [(narrow, wide) for narrow in own["bits"] for wide in own["input_bits"]]
        text += [
            ",".join([own["layer"], str(narrow), str(wide), *times]) for narrow, wide in widths
        ]
    return "\n".join(text) + "\n"
