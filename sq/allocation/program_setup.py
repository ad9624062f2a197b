"""From a network and its prices to an integer programme, and back: bits of each layer under a budget.

Layers that are tied share one decision: bits of their weights and, where inputs are priced, of
their inputs. Resources that a choice uses, layers with settled bits included, are counted as a
record counts them (`sq/network/resource_counts.py`):

    bits         mean bits of a weight
    input_bits   mean bits of a layer's input, each layer counting once; 32 in full precision
    bytes        of the network as stored: codes, each layer's rounded up to whole bytes, and in 32
    bits the parameters
                 of weights' grids (tables of levels too) and what stays as it is
    bops         multiply-accumulates times bits of weights times bits of inputs, for one image
    latency      milliseconds, the sum of a table's over layers, those left in full precision (32,
    32) included
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sq.allocation import quadratic
from sq.allocation.candidates import Option, Rules, inputs_of, offered, price, tied
from sq.allocation.integer_program import Effort, Programme, ceiling
from sq.config.constraints import FLOAT
from sq.errors import SqError
from sq.network.resource_counts import bops, code_bytes
from sq.types.costs import Budget, Cost, Widths
from sq.types.problem import Layer

MEANS = ("bits", "input_bits")  # a limit above what the widest candidates reach is a mistake
NAMES = {  # of limits, as the user gives them
    "bits": "bits",
    "input_bits": "allocation.average_input_bits",
    "bytes": "allocation.bytes",
    "bops": "allocation.bops",
    "latency": "allocation.latency",
}


@dataclass(frozen=True)
class Mixture:
    """The decisions of one network: groups of tied layers, the options of each, and their programme without limits."""

    layers: list[Layer]
    groups: list[list[Layer]]
    options: list[Option]  # in the order of the programme
    programme: Programme
    cost: Cost
    budget: Budget

    def widths(self, chosen: np.ndarray) -> Widths:
        """Return the bits that a choice gives: of all weights, and of the inputs that are priced."""
        weights: dict[str, int] = {}
        inputs: dict[str, int] = {}
        for k in chosen:
            for layer in self.groups[self.programme.groups[k]]:
                weights[layer.name] = self.options[k].weights
                inputs[layer.name] = inputs_of(layer, self.options[k], self.cost, self.budget)
        order = [layer.name for layer in self.layers]
        return Widths(
            {name: weights[name] for name in order},
            {n: inputs[n] for n in order if n in self.cost.inputs},
        )

    def units(self, resource: str) -> int:
        """Return what a total of a resource is divided by."""
        return {
            "bits": sum(layer.weights for layer in self.layers),
            "input_bits": len(self.layers),
        }.get(resource, 1)

    def used(self, chosen: np.ndarray) -> dict[str, float]:
        """Return how much a choice uses of each resource, in its unit."""
        totals = {name: use[chosen].sum().item() for name, use in self.programme.uses.items()}
        return {
            name: total / self.units(name) if name in MEANS else total
            for name, total in totals.items()
        }

    def reach(self, resource: str) -> tuple[float, float]:
        """Return the least and the most that can be used of a resource, in its unit."""
        low, high = self.programme.reach(resource)
        return low / self.units(resource), high / self.units(resource)

    def said(self, resource: str) -> str:
        """Return what can be used of a resource, in words."""
        low, high = self.reach(resource)
        if resource not in MEANS:
            return f"it can be {low:.10g} to {high:.10g}"
        free = [
            o
            for o, k in zip(self.options, self.programme.groups, strict=True)
            if not self._settled(k)
        ]
        widths = sorted(
            {
                bits
                for o in free
                if (bits := o.weights if resource == "bits" else o.inputs) is not None
            }
        )
        span = (
            f"{math.ceil(low * 100 - 1e-6) / 100:.2f} to {math.floor(high * 100 + 1e-6) / 100:.2f}"
        )
        return f"with candidates {','.join(map(str, widths))} the mean can be {span}"

    def _settled(self, group: int) -> bool:
        return self.groups[group][0].name in self.budget.fixed


def mix(cost: Cost, layers: list[Layer], budget: Budget, rules: Rules) -> Mixture:
    """Return the decisions of a network.

    Parameters
    ----------
    layers : in the network's order, which settles what is equal otherwise
    rules : see there

    Raises
    ------
    SqError : a layer has no price, tied layers have no bits in common, the latency table misses
    something, or inputs
        are to have the bits of weights and have no price
    """
    if rules.inputs == "weights" and not cost.inputs:
        raise SqError(
            "allocation.inputs=weights: bits of inputs have no price; set sensitivity.input_bits, or free"
        )
    groups = tied(layers, budget, rules)
    choices = [
        (k, option)
        for k, group in enumerate(groups)
        for option in offered(group, cost, budget, rules)
    ]
    owner = np.array([k for k, _ in choices])

    def total(of: Callable[[Layer, Option, int], float]) -> np.ndarray:
        """Return the sum over tied layers, given each, its option and the bits of its inputs, for all options."""
        return np.array(
            [
                sum(of(layer, o, inputs_of(layer, o, cost, budget)) for layer in groups[k])
                for k, o in choices
            ]
        )

    uses = {
        "bits": total(lambda layer, o, _: layer.weights * o.weights),
        "input_bits": total(lambda _, __, wide: wide),
        "bytes": total(lambda layer, o, _: (budget.size or code_bytes)(layer, o.weights)),
        "bops": total(lambda layer, o, wide: bops(layer, o.weights, wide)),
    }
    for name, more in budget.rest.items():
        # the first layer answers for what no decision changes
        uses[name] = uses[name] + more * (owner == 0)
    if (table := rules.table) is not None:
        kept = [(name, FLOAT, FLOAT) for name in budget.kept]
        table.check(kept)
        table.check(
            (y.name, o.weights, inputs_of(y, o, cost, budget))
            for k, o in choices
            for y in groups[k]
        )
        uses["latency"] = total(
            lambda layer, o, wide: table.ms[layer.name, o.weights, wide]
        ).astype(float)
        uses["latency"] += sum(table.ms[key] for key in kept) * (owner == 0)
    prices = total(lambda layer, o, _: price(layer, o, cost, budget)).astype(float)
    programme = Programme(prices, owner, uses["bits"], uses)
    options = [option for _, option in choices]
    if cost.pairs is not None:
        programme = _paired(programme, groups, options, cost)
    return Mixture(layers, groups, options, programme, cost, budget)


def decide(mixture: Mixture, limits: Mapping[str, float], effort: Effort) -> Widths:
    """Return the bits of least cost within `limits`, in the units of each resource, and how they were found.

    Raises
    ------
    SqError : there is no limit; one is below what candidates reach, or a mean above it; no choice
    keeps to all of them;
        or the time ran out
    """
    started = time.perf_counter()
    if not limits:
        raise SqError(
            f"allocation: nothing bounds the bits; set allocation.average_bits or {', '.join(NAMES.values())}"
        )
    for name, limit in limits.items():
        low, high = mixture.reach(name)
        if ceiling(limit) < low or (name in MEANS and limit > ceiling(high)):
            raise SqError(f"{NAMES[name]}={limit:.10g}: {mixture.said(name)}")
    totals = {name: limit * mixture.units(name) for name, limit in limits.items()}
    found = quadratic.solve(replace(mixture.programme, limits=totals), effort)
    if found is None:
        asked = " ".join(f"{NAMES[name]}={limit:.10g}" for name, limit in limits.items())
        apart = "; ".join(f"{NAMES[name]}: {mixture.said(name)}" for name in limits)
        raise SqError(
            f"{asked}: no choice of bits keeps to all of them together, though to each alone. {apart}"
        )
    made = mixture.widths(found.chosen)
    report = {
        "method": found.method,
        "objective": found.cost,
        "gap": found.gap,
        "bounds": {
            n: {"limit": limits.get(n), "used": used}
            for n, used in mixture.used(found.chosen).items()
        },
        "ties": [[layer.name for layer in group] for group in mixture.groups if len(group) > 1],
        "seconds": time.perf_counter() - started,
    }
    return replace(made, report=report)


def _paired(
    programme: Programme, groups: list[list[Layer]], options: list[Option], cost: Cost
) -> Programme:
    """Return `programme` with the costs of pairs: a state is a group with bits of its weights, whatever its inputs'.

    What tied layers cost together becomes part of what their option costs. Settled bits without a
    price have no pairs.
    """
    assert cost.pairs is not None
    row = {choice: k for k, choice in enumerate(cost.choices())}
    keys = [(int(k), option.weights) for k, option in zip(programme.groups, options, strict=True)]
    place = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    member = np.zeros((len(place), len(row)))
    for (group, bits), k in place.items():
        for layer in groups[group]:
            if (layer.name, bits) in row:
                member[k, row[layer.name, bits]] = 1
    pairs = _symmetric(member @ cost.pairs @ member.T)
    states = np.array([place[key] for key in keys])
    costs = programme.costs + pairs.diagonal()[states] / 2
    owner = np.array([key[0] for key in place])
    pairs[owner[:, None] == owner] = 0
    gram = None if cost.gram is None else _symmetric(member @ cost.gram @ member.T)
    return replace(programme, costs=costs, states=states, pairs=pairs, gram=gram)


def _symmetric(product: np.ndarray) -> np.ndarray:
    """Return the symmetric matrix with the upper triangle of `product`, which is symmetric up to rounding."""
    return np.triu(product) + np.triu(product, 1).T
