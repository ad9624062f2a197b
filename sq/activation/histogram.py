"""Histograms of tensors too many to keep: one pass for the lowest and highest value, one to count between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sq.errors import SqError
from sq.runtime.cpu_threads import suited_to

# Values binned at a time. On a CPU so few that temporaries stay in the cache and are not handed
# back to the system after each use (4 times as many took 70 times as long on one machine), and on
# one thread: most of it is counting.
CHUNK = 2**16
CHUNK_GPU = 2**24
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Histogram:
    """What was seen of one tensor's values: the exact ends, and how many lie in each of equal bins between.

    `counts` is (bins,) float64. Where all values are equal, `low` is `high`, and all are in the
    first bin.
    """

    low: float
    high: float
    counts: Tensor

    @property
    def constant(self) -> bool:
        """Return whether all values are equal."""
        return self.low == self.high

    def edges(self) -> Tensor:
        """Return where bins begin and end, (bins + 1,) float64, from `low` to `high`."""
        return torch.linspace(self.low, self.high, len(self.counts) + 1, dtype=torch.float64)

    def centres(self) -> Tensor:
        """Return the middle of each bin, (bins,) float64."""
        edges = self.edges()
        return (edges[:-1] + edges[1:]) / 2


class Histograms:
    """Histograms in the making, by name: `widen` sees all values once, then `count` sees all again.

    Counts are whole numbers in int64, so neither the order of the values nor their batches matter.
    """

    def __init__(self, bins: int):
        self.bins = bins
        self.ends: dict[str, tuple[Tensor, Tensor]] = {}
        self.counts: dict[str, Tensor] = {}
        self.known: dict[str, tuple[float, float]] = {}

    def widen(self, name: str, values: Tensor) -> None:
        """Take `values` (any shape, not empty) into the range of `name`."""
        low, high = values.detach().aminmax()
        if name in self.ends:
            low, high = (
                torch.minimum(low, self.ends[name][0]),
                torch.maximum(high, self.ends[name][1]),
            )
        self.ends[name] = low, high

    def close(self) -> None:
        """End the first pass.

        Raises
        ------
        SqError : a value was NaN or infinite; the first name that saw one is given
        """
        for name, (low, high) in self.ends.items():
            if not torch.isfinite(high.float() - low.float()):
                raise SqError(
                    f"the inputs of {name} hold NaN or infinity: check weights and images"
                )
            self.known[name] = float(low), float(high)

    def count(self, name: str, values: Tensor) -> None:
        """Count `values`, which `widen` has seen before, in the bins of `name`."""
        low, high = self.known[name]
        # A range so small that bins / range overflows keeps its ends, and loses resolution
        scale = min(self.bins / (high - low), LARGEST) if high > low else 0.0
        parts = _flat(values.detach()).split(CHUNK if values.device.type == "cpu" else CHUNK_GPU)
        with suited_to(CHUNK):
            for part in parts:
                # Another run of the same layer may round otherwise and step over an end: hence the
                # clamp
                places = (part.float() - low).mul_(scale).to(torch.int32).clamp_(0, self.bins - 1)
                # Not histc: it counts in float32, which stops at 2^24, and takes as long
                found = torch.bincount(places, minlength=self.bins)
                self.counts[name] = self.counts[name].add_(found) if name in self.counts else found

    def finish(self) -> dict[str, Histogram]:
        """Return the histogram of every name, in the order in which names were first seen."""
        return {
            name: Histogram(*ends, self.counts[name].double().cpu())
            for name, ends in self.known.items()
        }


def _flat(values: Tensor) -> Tensor:
    """Return `values` with one axis, in the order in which they lie in memory where that saves a copy."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(-1)
