"""A run that is done: what an export writes, and what it is measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sq import record
from sq.evaluation import Measured
from sq.types import Problem, QuantizedModel


@dataclass(frozen=True)
class Finished:
    """A quantized network as it was measured, and the run it is of."""

    config: Mapping[str, Any]
    problem: Problem
    quantized: QuantizedModel
    found: Measured
    measure: Callable[[nn.Module], Measured]  # of another network, on the same images

    def file(self, suffix: str) -> Path:
        """Return where the run's file of this `suffix` belongs: beside its log."""
        return Path(self.config["outputs"]) / self.config["name"] / f"{record.key(self.config)}.{suffix}"
