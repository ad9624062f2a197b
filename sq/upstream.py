"""Inputs as the quantized network really feeds them: what asymmetric calibration solves for.

With X what full precision feeds a layer and X^ what it is fed once the layers before it (and the inputs) are
quantized, the layer should match W X by Q X^. With H = X^ X^^T and C = X X^^T that is the ordinary problem
for W* = W C H^-1: ||W X - Q X^||^2 = (W* - Q) H (W* - Q)^T + const. So no solver changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sq import gram, images, layers
from sq.console import track
from sq.errors import SqError
from sq.types import Layer


@dataclass(frozen=True)
class Pair:
    """H = 2 X^ X^^T / N and C = 2 X X^^T / N of one layer, both (G, I, I) float64."""

    H: Tensor
    C: Tensor

    def target(self, W: Tensor, damped: Tensor) -> Tensor:
        """Return W* = W + W (C - H) H^-1 (G, O, I), which is W C H^-1, and W itself wherever X^ is X.

        `damped` stands for H in the inverse: W* is then the least of ||W X - V X^||^2 plus the damping times
        ||W - V||^2.

        Raises
        ------
        torch.linalg.LinAlgError : `damped` is not positive definite
        """
        wide = W.to(self.H.dtype)
        moved = torch.cholesky_solve(torch.bmm(wide, self.C - self.H).mT, torch.linalg.cholesky(damped)).mT
        return (wide + moved).to(W.dtype)

    def relative_error(self, W: Tensor, Q: Tensor, reference: Tensor) -> float:
        """Return ||W X - Q X^||^2 / ||W X||^2, with `reference` = 2 X X^T / N."""
        W, Q = W.to(self.H.dtype), Q.to(self.H.dtype)
        whole = float((torch.bmm(W, reference) * W).sum())
        mixed, own = float((torch.bmm(W, self.C) * Q).sum()), float((torch.bmm(Q, self.H) * Q).sum())
        return max(whole - 2 * mixed + own, 0.0) / whole if whole > 0 else 0.0


def stages(every: list[Layer], count: int | None) -> list[list[Layer]]:
    """Split layers, in the order they are called, into `count` runs of nearly equal length; None: one each."""
    count = min(count or len(every), len(every))
    cuts = [round(i * len(every) / count) for i in range(count + 1)]
    return [every[a:b] for a, b in pairwise(cuts)]


def collect(
    net: nn.Module, reference: nn.Module, chosen: list[Layer], x: Tensor, batch_size: int | None
) -> dict[str, Pair]:
    """Run images `x` (B, ...) through both networks, side by side, and return the pair of each chosen layer.

    Each pass ends as soon as the last chosen layer has been fed.

    Raises
    ------
    SqError : a layer's input holds NaN or infinity, or the networks call a layer differently often
    """
    sums = {layer.name: _Sum(layer, x.device) for layer in chosen}
    fed: dict[str, list[Tensor]] = {}

    def keep(name: str, x: Tensor) -> None:
        fed.setdefault(name, []).append(x)

    def add(name: str, x: Tensor) -> None:
        if not fed.get(name):
            raise SqError(f"layer {name}: the quantized network calls it more often: use calibration.inputs=reference")
        sums[name].add(fed[name].pop(0), x)

    calls: dict[str, int] | None = None  # known after the first images
    with torch.no_grad():
        for part in track(images.split(x, batch_size), "inputs"):
            counts = _run(reference, [*sums], keep, part, calls)
            _run(net, [*sums], add, part, calls)
            calls = counts
    return {name: own.finish() for name, own in sums.items()}


def _run(
    net: nn.Module, names: list[str], see: Callable[[str, Tensor], None], x: Tensor, calls: dict[str, int] | None
) -> dict[str, int]:
    """Run `net` on `x`, showing `see` what the named layers are fed, until all were called as often as `calls` says."""
    counts = dict.fromkeys(names, 0)

    def watch(name: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            counts[name] += 1
            see(name, args[0] if args else named["input"])
            if counts == calls:
                raise _Enough

        return before

    hooks = [net.get_submodule(n).register_forward_pre_hook(watch(n), with_kwargs=True) for n in names]
    with _hooks(hooks), suppress(_Enough):
        net(x)
    return counts


class _Enough(Exception):  # no error: the rest of the network is not needed
    pass


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Sum:
    """The running sums of X^ X^^T and X X^^T of one layer."""

    def __init__(self, layer: Layer, device: torch.device):
        shape = (layer.groups, layer.inputs, layer.inputs)
        self.layer, self.positions = layer, 0
        self.H, self.C = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2))

    def add(self, x: Tensor, x_q: Tensor) -> None:
        taps = layers.taps(self.layer.module)
        pieces = min(len(x), -(-x.numel() * taps // gram.UNFOLDED))  # for they are `taps` times as many, unfolded
        for part, part_q in zip(x.chunk(pieces), x_q.chunk(pieces), strict=True):
            X, X_q = (layers.inputs(self.layer.module, p) for p in (part, part_q))
            gram.add_symmetric(self.H, X_q)
            self.C += torch.bmm(X, X_q.mT)
            self.positions += X.shape[2]

    def finish(self) -> Pair:
        if not self.positions or not (torch.isfinite(self.H).all() and torch.isfinite(self.C).all()):
            raise SqError(f"the inputs of layer {self.layer.name} hold NaN or infinity: check weights and images")
        return Pair(gram.mirrored(self.H) * (2 / self.positions), self.C * (2 / self.positions))
