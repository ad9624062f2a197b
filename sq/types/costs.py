"""Plain data: what sensitivity metrics return, and what allocations take and return."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sq.core.wording import quantity
from sq.errors import SqError

if TYPE_CHECKING:
    from sq.types.problem import Layer

Rows = dict[str, dict[int, float]]  # by layer name, then bits


@dataclass(frozen=True)
class Cost:
    """How much the task suffers when a layer's weights, or its inputs, have so many bits.

    The whole network's is the sum over layers, and half of ``pairs`` over all pairs of choices
    where there are any.
    """

    weights: Rows
    # of layer inputs; {} where the metric does not score them
    inputs: Rows = field(default_factory=dict)
    # "loss" in nats an image, "kl" in nats an image, "share" of a layer's output, ...
    unit: str = ""
    # standard errors of `weights`, where these are random estimates
    errors: Rows = field(default_factory=dict)
    # (n, n) symmetric, 0 within a layer; rows and columns as in `choices`
    pairs: np.ndarray | None = None
    # (n, n): `pairs` with blocks within layers that leave no negative eigenvalue, if known
    gram: np.ndarray | None = None
    # further entries of the record
    about: dict[str, Any] = field(default_factory=dict)

    def choices(self) -> list[tuple[str, int]]:
        """Return every (layer, bits) of the weights, in the order of the rows of `pairs`."""
        return [(name, bits) for name, row in self.weights.items() for bits in row]

    def of(self, weights: Mapping[str, int], inputs: Mapping[str, int] | None = None) -> float:
        """Return the cost of the whole network with these bits, by layer name.

        Bits without a score cost nothing.
        """
        weights_cost = sum(self.weights.get(name, {}).get(b, 0.0) for name, b in weights.items())
        widths = (inputs or {}).items()
        # Added up first: records hold this sum to the last bit.
        total = weights_cost + sum(self.inputs.get(name, {}).get(b, 0.0) for name, b in widths)
        if self.pairs is not None:
            chosen = np.array(
                [weights.get(name) == bits for name, bits in self.choices()], dtype=float
            )
            total += float(chosen @ self.pairs @ chosen) / 2
        return total

    def check(self) -> None:
        """Raise an `SqError` that names the layer if a cost is not a finite number."""
        for what, name, bits, value in self._entries():
            if not math.isfinite(value):
                raise SqError(
                    f"the cost of {quantity(bits, 'bit')} in the {what} of layer {name} is "
                    f"{value}: no allocation can use it; choose another sensitivity, or more "
                    "calibration images"
                )
        if self.pairs is not None and not np.isfinite(self.pairs).all():
            first, second = (self.choices()[k][0] for k in np.argwhere(~np.isfinite(self.pairs))[0])
            raise SqError(
                f"what bits of layers {first} and {second} cost together is not a number: no "
                "allocation can use it; choose another sensitivity, or more calibration images"
            )

    def unruly(self) -> list[str]:
        """Return a line for each cost that is negative, or higher than that of fewer bits.

        Both are noise, as a rule.
        """
        lines = []
        for what, name, bits, value in self._entries():
            if value < 0:
                lines.append(f"{name}: {bits} bits of {what} cost {value:.3g}")
        for what, rows in (("weights", self.weights), ("inputs", self.inputs)):
            for name, row in rows.items():
                for fewer, more in itertools.pairwise(sorted(row)):
                    if row[more] > row[fewer]:
                        lines.append(f"{name}: {more} bits of {what} cost more than {fewer}")
        return lines

    def _entries(self) -> Iterator[tuple[str, str, int, float]]:
        for what, rows in (("weights", self.weights), ("inputs", self.inputs)):
            for name, row in rows.items():
                yield from ((what, name, bits, value) for bits, value in row.items())


@dataclass(frozen=True)
class Budget:
    """What an allocation has to keep to, whatever its own bounds are."""

    bits: float  # as asked for: of every weight, or their mean
    # layers whose weights and inputs have fixed bits
    fixed: dict[str, int] = field(default_factory=dict)
    # bits of layers' inputs where the allocation leaves them
    inputs: dict[str, int] = field(default_factory=dict)
    # "bytes" and "bops" of all that no decision changes
    rest: dict[str, int] = field(default_factory=dict)
    # layers that stay in full precision, by name: a table of latency has their time too
    kept: tuple[str, ...] = ()
    # bytes of a layer's codes and grid at some bits; None: codes alone
    size: Callable[[Layer, int], int] | None = None


@dataclass(frozen=True)
class Widths:
    """Bits by layer name: of all weights, and of those inputs that the allocation decides."""

    weights: dict[str, int]
    inputs: dict[str, int] = field(default_factory=dict)
    # for the record: seconds, gap, the front, ...
    report: dict[str, Any] = field(default_factory=dict)
