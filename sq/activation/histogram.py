"""Histograms of activations, in two passes: one finds the range of values, one counts in bins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sq.errors import SqError
from sq.runtime.cpu_threads import suited_to

# Values binned at a time. On a CPU these are few, so that temporaries stay in the cache and are not
# returned to the system after each use (4 times as many took 70 times as long on one machine). One
# thread is enough: most of the time is counting.
CPU_CHUNK = 2**16
GPU_CHUNK = 2**24
MAX_SCALE = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Histogram:
    """The distribution of one tensor's values: exact minimum and maximum, and counts in equal bins.

    `counts` is (bins,) float64. If all values are equal, `low` equals `high`, and all of them are
    in the first bin.
    """

    low: float
    high: float
    counts: Tensor

    @property
    def constant(self) -> bool:
        """Return whether all values are equal."""
        return self.low == self.high

    def edges(self) -> Tensor:
        """Return the edges of the bins, (bins + 1,) float64, from `low` to `high`."""
        return torch.linspace(self.low, self.high, len(self.counts) + 1, dtype=torch.float64)

    def centres(self) -> Tensor:
        """Return the centres of the bins, (bins,) float64."""
        edges = self.edges()
        return (edges[:-1] + edges[1:]) / 2


class Histograms:
    """Accumulates histograms by name: `widen` gets all values, then `count` gets all of them again.

    Counts are int64, so neither the order of the values nor their batches matter.
    """

    def __init__(self, bins: int):
        self.bins = bins
        self.limits: dict[str, tuple[Tensor, Tensor]] = {}  # so far, on the device of the values
        self.ranges: dict[str, tuple[float, float]] = {}  # final, see `close`
        self.counts: dict[str, Tensor] = {}

    def widen(self, name: str, values: Tensor) -> None:
        """Extend the range of `name` to `values` (any shape, not empty)."""
        low, high = values.detach().aminmax()
        if name in self.limits:
            lowest, highest = self.limits[name]
            low, high = torch.minimum(low, lowest), torch.maximum(high, highest)
        self.limits[name] = low, high

    def close(self) -> None:
        """End the first pass.

        Raises
        ------
        SqError : a value was NaN or infinite; the message has the first such name
        """
        for name, (low, high) in self.limits.items():
            if not torch.isfinite(high.float() - low.float()):
                raise SqError(
                    f"the inputs of {name} hold NaN or infinity: check weights and images"
                )
            self.ranges[name] = float(low), float(high)

    def count(self, name: str, values: Tensor) -> None:
        """Count `values`, which `widen` got before, in the bins of `name`."""
        low, high = self.ranges[name]
        # In a range so small that bins / range overflows, only some of the bins are used.
        bins_per_unit = min(self.bins / (high - low), MAX_SCALE) if high > low else 0.0
        chunk = CPU_CHUNK if values.device.type == "cpu" else GPU_CHUNK
        with suited_to(CPU_CHUNK):
            for part in _flat(values.detach()).split(chunk):
                # Clamped, because another pass over the same layer may round differently.
                indices = (part.float() - low).mul_(bins_per_unit).to(torch.int32)
                indices.clamp_(0, self.bins - 1)
                # Not histc: it counts in float32, which stops at 2^24, and is no faster.
                counts = torch.bincount(indices, minlength=self.bins)
                if name in self.counts:
                    self.counts[name].add_(counts)
                else:
                    self.counts[name] = counts

    def finish(self) -> dict[str, Histogram]:
        """Return the histogram of each name, in the order in which names first came."""
        histograms = {}
        for name, (low, high) in self.ranges.items():
            histograms[name] = Histogram(low, high, self.counts[name].double().cpu())
        return histograms


def _flat(values: Tensor) -> Tensor:
    """Return `values` with one axis, in the order of memory where that saves a copy."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(-1)
