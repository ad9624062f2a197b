"""X X^T of a layer's inputs, summed over images: the costly part of statistics.

Three savings, none of them an approximation:

* X X^T is symmetric: only blocks on and above its diagonal are computed.
* A convolution's inputs are unfolded a few images at a time, never all.
* Where a kernel moves down by one row at a time, X X^T depends on the distance of two taps, not on
  their position, except at the borders. The input is unfolded along rows only, as U (C kx, H,
  positions of a row). For each vertical distance d one product T_d = sum_y U_y U_{y+d}^T serves all
  pairs of taps d apart. Each pair of taps misses a few rows at the top and the bottom. The products
  of these rows are summed as well and subtracted from T_d at the end. For a 3x3 kernel that is 3
  products of a third of the size, in place of 9.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from sq.network import geometry
from sq.types.problem import Layer

UNFOLDED = 2**24  # elements of unfolded input at a time: 64 MiB in float32
# Rows of a symmetric product computed together; with fewer, the time goes into starting products.
BLOCK = 512


class Gram(Protocol):
    """The running sum of X X^T over the inputs of one layer."""

    def add(self, x: Tensor, positions: int) -> int:
        """Add the inputs `x` of one call with `positions` outputs; return how many were used."""
        ...

    def finish(self) -> Tensor:
        """Return the sum, (G, I, I) float64."""
        ...


def choose(layer: Layer, x: Tensor, share: float, seed: int) -> Gram:
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
        height = x.shape[2]
        if window.stride[0] == 1 and _cost_by_distance(height, window) < _cost_directly(
            height, window
        ):
            return ByDistance(layer, x.device, window)
    return Direct(layer, x.device)


def _cost_by_distance(height: int, window: geometry.Window) -> float:
    """Return how many products of two rows `ByDistance` computes; a symmetric one counts half."""
    products = []
    for d in range(window.kernel[0]):
        inner = max(0, height - sum(window.blank) - d * window.dilation[0])
        top = _border_pairs(height, window, d, bottom=False)
        bottom = _border_pairs(height, window, d, bottom=True)
        products.append(inner + len(top) + len(bottom))
    return sum(products) - products[0] / 2


def _cost_directly(height: int, window: geometry.Window) -> float:
    """Return how many products of two rows `Direct` computes, all symmetric."""
    rows = height - (window.kernel[0] - 1) * window.dilation[0]
    return window.kernel[0] ** 2 * rows / 2


def _border_pairs(
    height: int, window: geometry.Window, distance: int, *, bottom: bool
) -> dict[int, int]:
    """Return the pairs of rows at the top, or the bottom, that some pair of taps misses.

    The taps are `distance` apart. The result maps the number of a pair, counted from the border
    inwards, to its upper row. Pairs with a blank row are left out, for their products are zero.
    """
    apart = distance * window.dilation[0]
    pairs = {}
    for number in range((window.kernel[0] - 1 - distance) * window.dilation[0]):
        row = height - apart - 1 - number if bottom else number
        if row >= window.blank[0] and row + apart < height - window.blank[1]:
            pairs[number] = row
    return pairs


def pieces(x: Tensor, elements: int) -> tuple[Tensor, ...]:
    """Return the images of `x` a few at a time, given the `elements` of all of them unfolded."""
    return x.chunk(min(len(x), -(-elements // UNFOLDED)))


def _check_positions(layer: Layer, columns: int, positions: int) -> None:
    assert columns == positions, (
        f"layer {layer.name}: {columns} columns of inputs, {positions} outputs"
    )


class Direct:
    """Unfold, multiply, add up; with `share` below 1, only positions drawn by `generator`."""

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
        """Add the inputs `x` of one call with `positions` outputs; return how many were used."""
        elements = self.layer.groups * self.layer.inputs * positions
        columns = used = 0
        for piece in pieces(x, elements):
            X = geometry.inputs(self.layer.module, piece)  # (G, I, N)
            columns += X.shape[2]
            if self.generator is not None:
                drawn = torch.rand(X.shape[2], generator=self.generator) < self.share
                X = X[:, :, drawn.to(X.device)]
            used += X.shape[2]
            add_symmetric(self.total, X)
        _check_positions(self.layer, columns, positions)
        return used

    def finish(self) -> Tensor:
        """Return the sum, (G, I, I) float64."""
        return mirrored(self.total)


class ByDistance:
    """Sum the products of rows by their vertical distance, and those that taps miss at the borders.

    `finish` assembles X X^T from these sums.
    """

    def __init__(self, layer: Layer, device: torch.device, window: geometry.Window):
        self.layer, self.window = layer, window
        (self.kernel, self.across), (self.dilation, _) = window.kernel, window.dilation
        self.channels = layer.inputs // (self.kernel * self.across)
        row_inputs = self.channels * self.across  # inputs of a position in one unfolded row

        def zeros(*leading: int) -> Tensor:
            shape = (*leading, layer.groups, row_inputs, row_inputs)
            return torch.zeros(shape, dtype=torch.float64, device=device)

        distances = range(self.kernel)
        self.whole = [zeros() for _ in distances]
        # top[d][n] sums row n times row n + d; bottom[d] is the same, counted from the last pair up
        self.top = [zeros(self._missed_rows(d)) for d in distances]
        self.bottom = [zeros(self._missed_rows(d)) for d in distances]

    def _missed_rows(self, distance: int) -> int:
        """Return how many pairs of rows two taps miss, top and bottom together."""
        return (self.kernel - 1 - distance) * self.dilation

    def add(self, x: Tensor, positions: int) -> int:
        """Add the inputs `x` of one call with `positions` outputs; return how many were used."""
        elements = self.layer.groups * self.layer.inputs // self.kernel * positions
        columns = 0
        for piece in pieces(x, elements):
            U = self._rows(piece)  # (G, C kx, H, N)
            columns += U.shape[3] * (U.shape[2] - self._missed_rows(0))
            self._add_whole(U)
            for d in range(self.kernel):
                self._add_border(self.top[d], U, d, bottom=False)
                self._add_border(self.bottom[d], U, d, bottom=True)
        _check_positions(self.layer, columns, positions)
        return positions

    def _add_whole(self, U: Tensor) -> None:
        """Add the products of all pairs of rows that are not blank."""
        inner = U[:, :, self.window.blank[0] : U.shape[2] - self.window.blank[1]]
        add_symmetric(self.whole[0], inner.flatten(2))
        for d in range(1, self.kernel):
            pairs = inner.shape[2] - d * self.dilation
            if pairs > 0:
                upper, lower = inner[:, :, :pairs], inner[:, :, -pairs:]
                self.whole[d] += torch.bmm(upper.flatten(2), lower.flatten(2).mT)

    def _add_border(self, sums: Tensor, U: Tensor, d: int, *, bottom: bool) -> None:
        """Add the products of pairs of rows, d taps apart, that some pair of taps misses."""
        for number, row in _border_pairs(U.shape[2], self.window, d, bottom=bottom).items():
            if d == 0:
                add_symmetric(sums[number], U[:, :, row])
            else:
                sums[number] += torch.bmm(U[:, :, row], U[:, :, row + d * self.dilation].mT)

    def _rows(self, x: Tensor) -> Tensor:
        """Return `x`, padded and unfolded along rows: (G, C kx, H, B * positions of a row)."""
        assert isinstance(self.layer.module, nn.Conv1d | nn.Conv2d)
        x, window = geometry.padded(self.layer.module, x)
        kernel, dilation, stride = window.kernel[1], window.dilation[1], window.stride[1]
        span = (kernel - 1) * dilation + 1
        taps = x.unfold(3, span, stride)[..., ::dilation]  # (B, G*C, H, L, kx)
        taps = taps.unflatten(1, (self.layer.groups, -1))  # (B, G, C, H, L, kx)
        return taps.permute(1, 2, 5, 3, 0, 4).flatten(1, 2).flatten(3)

    def finish(self) -> Tensor:
        """Return the sum, (G, I, I) float64."""
        G, C, K, A = self.layer.groups, self.channels, self.kernel, self.across
        total = torch.empty(G, C, K, A, C, K, A, dtype=torch.float64, device=self.whole[0].device)
        for d in range(K):
            for tap in range(K - d):
                # Of the pairs of rows d apart, these taps miss the first and the last ones.
                above = tap * self.dilation
                below = self._missed_rows(d) - above
                product = self.whole[d] - self.top[d][:above].sum(0) - self.bottom[d][:below].sum(0)
                if d == 0:
                    product = mirrored(product)  # its three terms are upper triangles
                product = product.view(G, C, A, C, A)
                total[:, :, tap, :, :, tap + d] = product
                total[:, :, tap + d, :, :, tap] = product.permute(0, 3, 4, 1, 2)
        return total.view(G, self.layer.inputs, self.layer.inputs)


def add_symmetric(total: Tensor, X: Tensor) -> None:
    """Add X X^T, for X (G, I, N), to `total` (G, I, I): only the part that `mirrored` reads.

    That is the part on and above the diagonal. The rest is not even used where it is computed,
    because matrix products of some BLAS and CPUs are not symmetric to the bit.
    """
    for start in range(0, X.shape[1], BLOCK):
        rows = X[:, start : start + BLOCK]
        total[:, start : start + BLOCK, start:] += torch.bmm(rows, X[:, start:].mT)


def mirrored(total: Tensor) -> Tensor:
    """Return the symmetric matrices whose upper triangles are those of `total` (..., I, I)."""
    return total.triu() + total.triu(1).mT
