"""What an allocation may decide: which layers share their bits, and which bits each may have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sq.allocation.latency_table import Table
from sq.config.constraints import FLOAT
from sq.errors import SqError
from sq.types.costs import Budget, Cost, Rows
from sq.types.problem import Layer

Ties = Literal["fed", "none"]
Joint = Literal["free", "weights"]


@dataclass(frozen=True)
class Rules:
    """What holds in every choice, beside limits.

    `ties`: "fed" has layers that are fed the same tensor share their bits, as HAWQ-V3 does with a
    down-sampling convolution and the main branch beside it; those with settled bits are tied to
    none. `inputs`: "weights" gives the inputs of a layer the bits of its weights, "free" bits of
    their own.
    """

    ties: Ties
    inputs: Joint
    table: Table | None = None


class Option(NamedTuple):
    """Bits of the weights of tied layers, and of those of their inputs that are priced; None if none are."""

    weights: int
    inputs: int | None


def tied(layers: list[Layer], budget: Budget, rules: Rules) -> list[list[Layer]]:
    """Return the groups of layers that share their bits, in the order of their first."""
    groups: dict[tuple[str, bool], list[Layer]] = {}
    for layer in layers:
        alone = layer.name in budget.fixed or rules.ties == "none" or not layer.fed
        groups.setdefault((layer.name if alone else layer.fed, alone), []).append(layer)
    return list(groups.values())


def offered(group: list[Layer], cost: Cost, budget: Budget, rules: Rules) -> list[Option]:
    """Return what tied layers may have, the fewest bits first.

    Raises
    ------
    SqError : a layer has no price, or tied layers have no bits in common
    """
    names = [layer.name for layer in group]
    if (settled := budget.fixed.get(names[0])) is not None:
        return [Option(settled, None)]
    weights = _common(cost.weights, names, "weights")
    if not (priced := [name for name in names if name in cost.inputs]):
        return [Option(bits, None) for bits in weights]
    inputs = _common(cost.inputs, priced, "inputs")
    if rules.inputs == "free":
        return [Option(bits, wide) for bits in weights for wide in inputs]
    if not (both := [bits for bits in weights if bits in inputs]):
        raise SqError(
            f"allocation.inputs=weights: no bits of layer {names[0]} are priced for both weights and inputs"
        )
    return [Option(bits, bits) for bits in both]


def inputs_of(layer: Layer, option: Option, cost: Cost, budget: Budget) -> int:
    """Return the bits of what a layer is fed; 32 in full precision."""
    if option.inputs is not None and layer.name in cost.inputs:
        return option.inputs
    return budget.inputs.get(layer.name, budget.fixed.get(layer.name, FLOAT))


def price(layer: Layer, option: Option, cost: Cost, budget: Budget) -> float:
    """Return what an option costs in one layer; settled bits that have no price cost nothing."""
    weights, inputs = cost.weights.get(layer.name, {}), cost.inputs.get(layer.name, {})
    if layer.name in budget.fixed:
        wide = inputs_of(layer, option, cost, budget)
        return weights.get(option.weights, 0.0) + inputs.get(wide, 0.0)
    return weights[option.weights] + (
        inputs[option.inputs] if inputs and option.inputs is not None else 0.0
    )


def _common(rows: Rows, names: Iterable[str], what: str) -> list[int]:
    names = list(names)
    if missing := [name for name in names if not rows.get(name)]:
        raise SqError(
            f"no bits of the {what} of layer {missing[0]} have a price: choose another sensitivity"
        )
    shared = set.intersection(*(set(rows[name]) for name in names))
    if not shared:
        raise SqError(
            f"layers {', '.join(names)} are tied, but no bits of their {what} are priced for all; set ties=none"
        )
    return sorted(shared)
