"""What changes while roundings are learned: the regulariser's exponent, and how much of an input is quantized yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# How much of an input stays in full precision at time t, from 0 to 1, and whether that is drawn for
# each element.
Keep = Literal["none", "linear", "cosine", "log", "bernoulli", "fixed"]


def beta(t: float, first: float, last: float, warm_up: float) -> float:
    """Return the exponent at time `t` in [0, 1]: `first` until `warm_up`, then linearly to `last` at 1.

    Source
    ------
    Nagel et al. 2020 (AdaRound), arXiv 2004.10568, section 3.3; the linear way as the code of BRECQ
    and EPTQ has it.
    """
    return first if t <= warm_up else last + (first - last) * (1 - t) / (1 - warm_up)


def kept(how: Keep, t: float, share: float) -> float:
    """Return the share p of full precision that is left at time `t` in [0, 1].

    Parameters
    ----------
    how : "none" leaves none; "fixed" leaves `share` throughout; "linear" and "bernoulli" 1 - t,
    "cosine" cos(pi t / 2)
        and "log" -log10(0.9 t + 0.1) all go from 1 to 0

    Source
    ------
    Gordon et al. 2023 (EPTQ), arXiv 2309.11531: gradual activation quantization; "fixed" is Wei et
    al. 2022 (QDrop), arXiv 2203.05740.
    """
    if how in ("none", "fixed"):
        return share if how == "fixed" else 0.0
    ways = {"cosine": math.cos(math.pi * t / 2), "log": -math.log10(0.9 * t + 0.1)}
    return min(1.0, max(0.0, ways.get(how, 1 - t)))


@dataclass
class Mix:
    """What of a tensor is quantized: 1 - `share` of every element, or of all elements that many, drawn at random."""

    share: float  # of full precision
    drawn: bool
    generator: torch.Generator

    def quantized(self, like: Tensor) -> float | Tensor:
        """Return m: one number, or 0 and 1 of the shape of `like`."""
        if not self.drawn or self.share in (0.0, 1.0):
            return 1.0 - self.share
        # Bytes, eight at a time: a tenth of the time of drawing floats, and shares are met to
        # within 1/512.
        drawn = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device)
        drawn.random_(-(2**63), None, generator=self.generator)
        bytes_ = drawn.view(torch.uint8)[: like.numel()] >= round(self.share * 256)
        made = torch.empty_like(like)
        _flat(made).copy_(bytes_)
        return made


def mix(how: Keep, t: float, share: float, generator: torch.Generator) -> Mix:
    """Return what is quantized at time `t`; see `kept`."""
    return Mix(kept(how, t, share), how in ("bernoulli", "fixed"), generator)


def _flat(x: Tensor) -> Tensor:
    """Return the elements of a dense tensor as they lie in memory, a view."""
    return x.as_strided((x.numel(),), (1,))
