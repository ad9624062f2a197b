"""A run that is done: what an export writes and a latency times, and what they are measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sq.core import files
from sq.evaluation.evaluate import Measured
from sq.records import record
from sq.types.problem import Model, Problem, QuantizedModel


@dataclass(frozen=True)
class Finished:
    """A quantized network as it was measured, and the run it is of."""

    config: Mapping[str, Any]
    whole: Model  # in full precision, with the layers that are left so
    problem: Problem
    quantized: QuantizedModel
    found: Measured
    measure: Callable[[nn.Module], Measured]  # of another network, on the same images

    def file(self, suffix: str) -> Path:
        """Return where the run's file of this `suffix` belongs: beside its log."""
        return (
            Path(self.config["outputs"])
            / self.config["name"]
            / f"{record.key(self.config)}.{suffix}"
        )

    def name(self, file: Path) -> str:
        """Return the name of a file as the record has it: under `outputs`."""
        return str(file.relative_to(self.config["outputs"]))

    @contextmanager
    def written(self, file: Path) -> Iterator[Path]:
        """Give a place to write and verify a file at, which takes the name of `file` only if nothing goes wrong."""
        with files.replacing(file, f".part{file.suffix}") as part:
            yield part
