"""Schedules of learned rounding: the regulariser's exponent and the share of full precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# How the share of full precision in layer inputs changes with time t from 0 to 1. With "bernoulli"
# and "fixed", each element is drawn to be quantized or not; otherwise all elements are mixed alike.
PrecisionSchedule = Literal["none", "linear", "cosine", "log", "bernoulli", "fixed"]

BYTES_PER_DRAW = 8  # random bytes in one int64
BYTE_VALUES = 256


def beta(t: float, first: float, last: float, warm_up: float) -> float:
    """Return the exponent at time `t` in [0, 1]: `first` until `warm_up`, then linear to `last`.

    Source
    ------
    Nagel et al. 2020 (AdaRound), arXiv 2004.10568, section 3.3; linear as in the code of BRECQ and
    EPTQ.
    """
    if t <= warm_up:
        return first
    return last + (first - last) * (1 - t) / (1 - warm_up)


def full_precision_share(schedule: PrecisionSchedule, t: float, share: float) -> float:
    """Return the share of full precision at time `t` in [0, 1].

    Parameters
    ----------
    schedule : "none" is 0 and "fixed" is `share` throughout. The others fall from 1 to 0: "linear"
        and "bernoulli" as 1 - t, "cosine" as cos(pi t / 2), "log" as -log10(0.9 t + 0.1)

    Source
    ------
    Gordon et al. 2023 (EPTQ), arXiv 2309.11531: gradual activation quantization; "fixed" is Wei et
    al. 2022 (QDrop), arXiv 2203.05740.
    """
    if schedule == "none":
        return 0.0
    if schedule == "fixed":
        return share
    if schedule == "cosine":
        value = math.cos(math.pi * t / 2)
    elif schedule == "log":
        value = -math.log10(0.9 * t + 0.1)
    else:
        value = 1 - t
    return min(1.0, max(0.0, value))


@dataclass
class PrecisionMix:
    """How much of an input is quantized: a share of each element, or random elements."""

    share: float  # of full precision
    drawn: bool  # each element is either quantized or not
    generator: torch.Generator

    def quantized(self, x: Tensor) -> float | Tensor:
        """Return the quantized share of `x`: one number, or a mask of 0 and 1 of its shape."""
        if not self.drawn or self.share in (0.0, 1.0):
            return 1.0 - self.share
        # Random bytes, eight at a time, take a tenth of the time of random floats. The share is met
        # to within 1/512.
        draws = torch.empty(-(-x.numel() // BYTES_PER_DRAW), dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None, generator=self.generator)
        random_bytes = draws.view(torch.uint8)[: x.numel()]
        mask = torch.empty_like(x)
        _in_memory_order(mask).copy_(random_bytes >= round(self.share * BYTE_VALUES))
        return mask


def mix(
    schedule: PrecisionSchedule, t: float, share: float, generator: torch.Generator
) -> PrecisionMix:
    """Return what is quantized at time `t`; see `full_precision_share`."""
    drawn = schedule in ("bernoulli", "fixed")
    return PrecisionMix(full_precision_share(schedule, t, share), drawn, generator)


def _in_memory_order(x: Tensor) -> Tensor:
    """Return the elements of a dense tensor in the order of its memory, as a view."""
    return x.as_strided((x.numel(),), (1,))
