"""The interface of grids, the sets of values that a weight or an input may take.

A grid's values are ``scale * unit``: a scale for each channel or tensor, and units in rising order,
numbered by codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor


class Grid(Protocol):
    """The values a weight may take. Its tensors broadcast against weights (G, O, I)."""

    @property
    def levels(self) -> int:
        """Return how many values there are; codes are 0 .. levels - 1."""
        ...

    @property
    def scale(self) -> Tensor:
        """Return (G, O, 1), above 0: what units are multiplied with."""
        ...

    def nearest(self, values: Tensor) -> Tensor:
        """Return the grid value nearest to each of `values` (G, O, any)."""
        ...

    def on_numpy(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return `nearest` for one column (G, O) in NumPy; the grid is (G, 1, O), on the CPU."""
        ...

    def encode(self, values: Tensor) -> Tensor:
        """Return the code (int32) of the grid value nearest to each of `values`."""
        ...

    def units(self, codes: Tensor) -> Tensor:
        """Return the unit each code names: the grid value is the scale times it."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return the grid value each code names."""
        ...

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value, each (G, O, 1)."""
        ...

    def steps(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances of each code's value to the values below and above.

        They are infinite where there is none.
        """
        ...

    def gap(self, values: Tensor) -> Tensor:
        """Return the distance between the two grid values around each of `values`.

        Beyond the grid, it is that of the outermost two. It broadcasts against `values`: one
        number a channel where all gaps are alike.
        """
        ...

    def half_step(self) -> Tensor:
        """Return (G, O, 1): half the widest gap; an error beyond it means "outside the grid"."""
        ...

    def scaled(self, factor: Tensor) -> Grid:
        """Return the grid with its scale times `factor` (G, O, 1)."""
        ...

    def refit(self, W: Tensor, H: Tensor, codes: Tensor) -> Grid:
        """Return the grid of least loss tr((W - Q) H (W - Q)^T) for these codes.

        It keeps what a grid of its kind cannot change.
        """
        ...

    def map(self, function: Callable[[Tensor], Tensor]) -> Grid:
        """Return the same grid with `function` applied to each of its (G, O, any) tensors."""
        ...

    def parameters(self) -> int:
        """Return how many 32-bit numbers must be stored beside the codes."""
        ...
