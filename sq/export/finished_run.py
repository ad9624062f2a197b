"""A finished run, for exports and latency measurements."""

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
class FinishedRun:
    """A quantized network as it was measured, and its run."""

    config: Mapping[str, Any]
    whole: Model  # in full precision, with the layers that are not quantized
    problem: Problem
    quantized: QuantizedModel
    measured: Measured  # figures of the quantized network
    measure: Callable[[nn.Module], Measured]  # of another network, on the same images

    def file(self, suffix: str) -> Path:
        """Return the path of the run's file with this `suffix`, next to its log."""
        folder = Path(self.config["outputs"]) / self.config["name"]
        return folder / f"{record.key(self.config)}.{suffix}"

    def name(self, file: Path) -> str:
        """Return the name of a file for the record: its path under `outputs`."""
        return str(file.relative_to(self.config["outputs"]))

    @contextmanager
    def written(self, file: Path) -> Iterator[Path]:
        """Yield a temporary path to write and verify; it becomes `file` only if nothing raises."""
        with files.replacing(file, f".part{file.suffix}") as part:
            yield part
