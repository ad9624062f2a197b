"""Candidates of an allocation: which layers share their bits, and which bits each may have."""

from __future__ import annotations

import itertools
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
    """What holds for every choice of bits, beside limits.

    `ties`: "fed" lets layers with the same input tensor share their bits, as HAWQ-V3 does with a
    down-sampling convolution and the main branch beside it. Layers with fixed bits are not tied.
    "none" ties no layers. `inputs`: "weights" gives the inputs of a layer the bits of its weights;
    with "free" they are chosen separately.
    """

    ties: Ties
    inputs: Joint
    table: Table | None = None


class Option(NamedTuple):
    """Bits of the weights of tied layers, and of their inputs; None if those are not chosen."""

    weights: int
    inputs: int | None


def tied(layers: list[Layer], budget: Budget, rules: Rules) -> list[list[Layer]]:
    """Return the groups of layers that share their bits, in the order of their first layers."""
    groups: dict[tuple[str, bool], list[Layer]] = {}
    for layer in layers:
        # `layer.fed` is the first layer with the same input tensor, "" if that is not known.
        alone = layer.name in budget.fixed or rules.ties == "none" or not layer.fed
        key = (layer.name if alone else layer.fed, alone)
        groups.setdefault(key, []).append(layer)
    return list(groups.values())


def offered(group: list[Layer], cost: Cost, budget: Budget, rules: Rules) -> list[Option]:
    """Return the options of tied layers, the fewest bits first.

    Raises
    ------
    SqError : a layer has no sensitivities, or tied layers have no bits in common
    """
    names = [layer.name for layer in group]
    fixed_bits = budget.fixed.get(names[0])
    if fixed_bits is not None:
        return [Option(fixed_bits, None)]
    weights = _common(cost.weights, names, "weights")
    names_with_inputs = [name for name in names if name in cost.inputs]
    if not names_with_inputs:
        return [Option(bits, None) for bits in weights]
    inputs = _common(cost.inputs, names_with_inputs, "inputs")
    if rules.inputs == "free":
        return [Option(*widths) for widths in itertools.product(weights, inputs)]
    both = [bits for bits in weights if bits in inputs]
    if not both:
        raise SqError(
            f"allocation.inputs=weights: layer {names[0]} has no bits with a sensitivity of both "
            "weights and inputs"
        )
    return [Option(bits, bits) for bits in both]


def inputs_of(layer: Layer, option: Option, cost: Cost, budget: Budget) -> int:
    """Return the bits of a layer's input; 32 in full precision."""
    if option.inputs is not None and layer.name in cost.inputs:
        return option.inputs
    return budget.inputs.get(layer.name, budget.fixed.get(layer.name, FLOAT))


def cost_of(layer: Layer, option: Option, cost: Cost, budget: Budget) -> float:
    """Return the cost of an option in one layer; fixed bits without a sensitivity cost nothing."""
    weights, inputs = cost.weights.get(layer.name, {}), cost.inputs.get(layer.name, {})
    if layer.name in budget.fixed:
        input_bits = inputs_of(layer, option, cost, budget)
        return weights.get(option.weights, 0.0) + inputs.get(input_bits, 0.0)
    total = weights[option.weights]
    if inputs and option.inputs is not None:
        total += inputs[option.inputs]
    return total


def _common(rows: Rows, names: list[str], what: str) -> list[int]:
    """Return the bits that all these layers have a sensitivity of, rising."""
    for name in names:
        if not rows.get(name):
            raise SqError(
                f"the {what} of layer {name} have no sensitivity at any bits: choose another "
                "sensitivity metric"
            )
    shared = set(rows[names[0]]).intersection(*(rows[name] for name in names))
    if not shared:
        raise SqError(
            f"layers {', '.join(names)} are tied, but no bits of their {what} have a sensitivity "
            "in all of them; set ties=none"
        )
    return sorted(shared)
