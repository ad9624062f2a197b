"""X X^T of a layer's inputs, summed over images: the costly part of statistics, in as few products as known.

Three savings, none of them an approximation:

* X X^T is symmetric: only blocks on and above its diagonal are computed.
* A convolution's inputs are unfolded a few images at a time, never all.
* Where a kernel moves down by one row at a time, X X^T depends on how far apart two taps are, not
on where they
  lie, up to the borders. The input is unfolded along rows only, U (C kx, H, positions of a row),
  and for each vertical distance d one product T_d = sum_y U_y U_{y+d}^T serves all pairs of taps d
  apart; each pair lacks a few rows at the top and the bottom, whose products are summed as well and
  taken off T_d in the end. For a 3x3 kernel that is 3 products of a third of the size, in place of
  9.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from sq.network import geometry
from sq.types.problem import Layer

UNFOLDED = 2**24  # elements of unfolded input at a time: 64 MiB in float32
# rows of a symmetric product computed together; smaller ones waste time in starting products
BLOCK = 512


class Gram(Protocol):
    """The running sum of X X^T over the inputs of one layer."""

    def add(self, x: Tensor, positions: int) -> int:
        """Add the inputs `x` of one call, which has `positions` outputs; return how many of them were used."""
        ...

    def finish(self) -> Tensor:
        """Return the sum, (G, I, I) float64."""
        ...


def of(layer: Layer, x: Tensor, share: float, seed: int) -> Gram:
    """Return the way to sum X X^T that takes fewer products, for inputs like `x`.

    Parameters
    ----------
    share : of the positions, in (0, 1]; below 1, the ones used are drawn
    seed : of that draw
    """
    if share < 1:
        return Direct(layer, x.device, share, Generator().manual_seed(seed))
    module = layer.module
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        x, window = geometry.padded(module, x[:1])
        if window.stride[0] == 1 and _rows_by_distance(x.shape[2], window) < _rows_directly(
            x.shape[2], window
        ):
            return ByDistance(layer, x.device, window)
    return Direct(layer, x.device)


def _rows_by_distance(height: int, window: geometry.Window) -> float:
    """Return how many products of a row's inputs `ByDistance` takes, those of symmetric products counted half."""
    counts = [0.0] * window.kernel[0]
    for d in range(window.kernel[0]):
        counts[d] = max(0, height - sum(window.blank) - d * window.dilation[0])
        counts[d] += sum(len(_lacking(height, window, d, end)) for end in (False, True))
    return sum(counts) - counts[0] / 2


def _rows_directly(height: int, window: geometry.Window) -> float:
    return window.kernel[0] ** 2 * (height - (window.kernel[0] - 1) * window.dilation[0]) / 2


def _lacking(height: int, window: geometry.Window, distance: int, end: bool) -> dict[int, int]:
    """Return the pairs of rows, `distance` taps apart, that some pair of taps lacks at the top, or the bottom (`end`).

    By the place from that end on, the upper row of each pair; blank rows are left out, for their
    products are zero.
    """
    apart = distance * window.dilation[0]
    upper = range((window.kernel[0] - 1 - distance) * window.dilation[0])
    pairs = {y: height - apart - 1 - y if end else y for y in upper}
    return {
        y: row
        for y, row in pairs.items()
        if row >= window.blank[0] and row + apart < height - window.blank[1]
    }


def pieces(x: Tensor, elements: int) -> tuple[Tensor, ...]:
    """Return the images of `x` a few at a time, for they make `elements` unfolded in all."""
    return x.chunk(min(len(x), -(-elements // UNFOLDED)))


class Direct:
    """Unfold, multiply, add up; with a `share` of the positions below 1, drawn by `generator`."""

    def __init__(
        self,
        layer: Layer,
        device: torch.device,
        share: float = 1.0,
        generator: Generator | None = None,
    ):
        self.layer, self.share, self.generator = layer, share, generator
        self.total = torch.zeros(
            layer.groups, layer.inputs, layer.inputs, dtype=torch.float64, device=device
        )

    def add(self, x: Tensor, positions: int) -> int:
        """Add the inputs `x` of one call, which has `positions` outputs; return how many of them were used."""
        elements = self.layer.groups * self.layer.inputs * positions
        seen = used = 0
        for part in pieces(x, elements):
            X = geometry.inputs(self.layer.module, part)
            seen += X.shape[2]
            if self.generator is not None:
                drawn = torch.rand(X.shape[2], generator=self.generator) < self.share
                X = X[:, :, drawn.to(X.device)]
            used += X.shape[2]
            add_symmetric(self.total, X)
        assert seen == positions, (
            f"layer {self.layer.name}: {seen} columns of inputs, {positions} outputs"
        )
        return used

    def finish(self) -> Tensor:
        """Return the sum, (G, I, I) float64."""
        return mirrored(self.total)


class ByDistance:
    """Sum the products of rows by their vertical distance, and what borders lack of them; assemble in the end."""

    def __init__(self, layer: Layer, device: torch.device, window: geometry.Window):
        self.layer, self.window = layer, window
        (self.kernel, self.across), (self.dilation, _) = window.kernel, window.dilation
        self.channels = layer.inputs // (self.kernel * self.across)
        wide = self.channels * self.across  # of a row, unfolded
        shape = (layer.groups, wide, wide)
        self.whole = [
            torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(self.kernel)
        ]
        # top[d][y]: row y times row y + d; bottom[d][y]: the same, counted from the last pair
        # upwards
        self.top, self.bottom = (
            [
                torch.zeros((self._lacked(d), *shape), dtype=torch.float64, device=device)
                for d in range(self.kernel)
            ]
            for _ in range(2)
        )

    def _lacked(self, distance: int) -> int:
        return (self.kernel - 1 - distance) * self.dilation

    def add(self, x: Tensor, positions: int) -> int:
        """Add the inputs `x` of one call, which has `positions` outputs; return how many of them were used."""
        elements = self.layer.groups * self.layer.inputs // self.kernel * positions
        seen = 0
        for part in pieces(x, elements):
            U = self._rows(part)
            height = U.shape[2]
            seen += U.shape[3] * (height - self._lacked(0))
            inner = U[:, :, self.window.blank[0] : height - self.window.blank[1]]
            add_symmetric(self.whole[0], inner.flatten(2))
            for d in range(1, self.kernel):
                if (pairs := inner.shape[2] - d * self.dilation) > 0:
                    self.whole[d] += torch.bmm(
                        inner[:, :, :pairs].flatten(2), inner[:, :, -pairs:].flatten(2).mT
                    )
            for d in range(self.kernel):
                for sums, end in ((self.top[d], False), (self.bottom[d], True)):
                    for y, row in _lacking(height, self.window, d, end).items():
                        if d == 0:
                            add_symmetric(sums[y], U[:, :, row])
                        else:
                            sums[y] += torch.bmm(U[:, :, row], U[:, :, row + d * self.dilation].mT)
        assert seen == positions, (
            f"layer {self.layer.name}: {seen} columns of inputs, {positions} outputs"
        )
        return positions

    def _rows(self, x: Tensor) -> Tensor:
        """Return `x`, padded and unfolded along rows: (G, C kx, H, B * positions of a row)."""
        assert isinstance(self.layer.module, nn.Conv1d | nn.Conv2d)
        x, window = geometry.padded(self.layer.module, x)
        kernel, dilation, stride = window.kernel[1], window.dilation[1], window.stride[1]
        # (B, G*C, H, L, kx)
        taps = x.unfold(3, (kernel - 1) * dilation + 1, stride)[..., ::dilation]
        return (
            taps.unflatten(1, (self.layer.groups, -1))
            .permute(1, 2, 5, 3, 0, 4)
            .flatten(1, 2)
            .flatten(3)
        )

    def finish(self) -> Tensor:
        """Return the sum, (G, I, I) float64."""
        G, C, K, A = self.layer.groups, self.channels, self.kernel, self.across
        total = torch.empty(G, C, K, A, C, K, A, dtype=torch.float64, device=self.whole[0].device)
        for d in range(K):
            for tap in range(K - d):
                above, below = tap * self.dilation, self._lacked(d) - tap * self.dilation
                product = self.whole[d] - self.top[d][:above].sum(0) - self.bottom[d][:below].sum(0)
                if d == 0:
                    product = mirrored(product)  # its three terms hold the upper triangle only
                product = product.view(G, C, A, C, A)
                total[:, :, tap, :, :, tap + d] = product
                total[:, :, tap + d, :, :, tap] = product.permute(0, 3, 4, 1, 2)
        return total.view(G, self.layer.inputs, self.layer.inputs)


def add_symmetric(total: Tensor, X: Tensor) -> None:
    """Add X X^T to `total` (G, I, I), on and above its diagonal only (see `mirrored`), for X (G, I, N).

    What it leaves below the diagonal is not used: matrix products of some BLAS and CPUs are not
    symmetric to the bit.
    """
    for start in range(0, X.shape[1], BLOCK):
        rows = X[:, start : start + BLOCK]
        total[:, start : start + BLOCK, start:] += torch.bmm(rows, X[:, start:].mT)


def mirrored(total: Tensor) -> Tensor:
    """Return the symmetric matrices whose upper triangles are those of `total` (..., I, I)."""
    return total.triu() + total.triu(1).mT
