"""From a network and its sensitivities to an integer programme, and from a choice to bits.

Tied layers share one decision: the bits of their weights and, if inputs have sensitivities, of
their inputs. The resources of a choice include layers with fixed bits. They are counted as in a
record (`sq/network/resource_counts.py`):

    bits         mean bits of a weight
    input_bits   mean bits of a layer's input, each layer counting once; 32 in full precision
    bytes        of the network as stored: the codes of each layer, rounded up to whole bytes, and
                 32 bits for each parameter of weight grids (tables of levels too) and each number
                 that is not quantized
    bops         multiply-accumulates times bits of weights times bits of inputs, for one image
    latency      milliseconds, the sum of a table's over layers, including those left in full
                 precision (32, 32)
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sq.allocation import quadratic
from sq.allocation.candidates import Option, Rules, cost_of, inputs_of, offered, tied
from sq.allocation.integer_program import Effort, Programme, Solution, ceiling
from sq.allocation.latency_table import Table
from sq.config.constraints import FLOAT
from sq.errors import SqError
from sq.network.resource_counts import bops, code_bytes
from sq.types.costs import Budget, Cost, Widths
from sq.types.problem import Layer

# Resources that are means. A limit above what the widest candidates reach is a mistake for these.
MEANS = ("bits", "input_bits")
SETTINGS = {  # by resource, the setting of its limit
    "bits": "bits",
    "input_bits": "allocation.average_input_bits",
    "bytes": "allocation.bytes",
    "bops": "allocation.bops",
    "latency": "allocation.latency",
}


@dataclass(frozen=True)
class AllocationProblem:
    """The decisions of one network: groups of tied layers, their options, and the programme.

    The programme has no limits.
    """

    layers: list[Layer]
    groups: list[list[Layer]]
    options: list[Option]  # of all groups, in the order of the programme
    programme: Programme
    cost: Cost
    budget: Budget

    def widths(self, chosen: np.ndarray) -> Widths:
        """Return the bits of a choice: of all weights, and of the inputs that are chosen."""
        weights: dict[str, int] = {}
        inputs: dict[str, int] = {}
        for index in chosen:
            option = self.options[index]
            for layer in self.groups[self.programme.groups[index]]:
                weights[layer.name] = option.weights
                inputs[layer.name] = inputs_of(layer, option, self.cost, self.budget)
        names = [layer.name for layer in self.layers]
        return Widths(
            {name: weights[name] for name in names},
            {name: inputs[name] for name in names if name in self.cost.inputs},
        )

    def units(self, resource: str) -> int:
        """Return by what the total of a resource is divided; 1 unless it is a mean."""
        if resource == "bits":
            return sum(layer.weights for layer in self.layers)
        return len(self.layers) if resource == "input_bits" else 1

    def used(self, chosen: np.ndarray) -> dict[str, float]:
        """Return how much a choice uses of each resource, in its unit."""
        amounts = {}
        for name, use in self.programme.uses.items():
            total = use[chosen].sum().item()
            amounts[name] = total / self.units(name) if name in MEANS else total
        return amounts

    def reach(self, resource: str) -> tuple[float, float]:
        """Return the least and the most that can be used of a resource, in its unit."""
        low, high = self.programme.reach(resource)
        return low / self.units(resource), high / self.units(resource)

    def range_text(self, resource: str) -> str:
        """Return what can be used of a resource, as part of a message."""
        low, high = self.reach(resource)
        if resource not in MEANS:
            return f"it can be {low:.10g} to {high:.10g}"
        widths = set()
        for option, group in zip(self.options, self.programme.groups, strict=True):
            bits = option.weights if resource == "bits" else option.inputs
            if bits is not None and not self._is_fixed(group):
                widths.add(bits)
        # Rounded inwards, so that both numbers can be reached.
        low_text = f"{math.ceil(low * 100 - 1e-6) / 100:.2f}"
        high_text = f"{math.floor(high * 100 + 1e-6) / 100:.2f}"
        candidates = ",".join(map(str, sorted(widths)))
        return f"with candidates {candidates} the mean can be {low_text} to {high_text}"

    def _is_fixed(self, group: int) -> bool:
        return self.groups[group][0].name in self.budget.fixed


def build_problem(
    cost: Cost, layers: list[Layer], budget: Budget, rules: Rules
) -> AllocationProblem:
    """Return the decisions of a network.

    Parameters
    ----------
    layers : in the network's order, by which ties between equal choices are broken
    rules : see there

    Raises
    ------
    SqError : a layer has no sensitivities, tied layers have no bits in common, the latency table
        lacks a line, or inputs are to have the bits of weights and have no sensitivities
    """
    if rules.inputs == "weights" and not cost.inputs:
        raise SqError(
            "allocation.inputs=weights: bits of inputs have no sensitivity; set "
            "sensitivity.input_bits, or inputs=free"
        )
    groups = tied(layers, budget, rules)
    options: list[Option] = []
    choices: list[tuple[list[Layer], Option]] = []  # each option with its group
    numbers: list[int] = []  # of these groups
    for number, group in enumerate(groups):
        for option in offered(group, cost, budget, rules):
            options.append(option)
            choices.append((group, option))
            numbers.append(number)
    owner = np.array(numbers)
    costs, uses = _costs_and_uses(choices, cost, budget)
    for name, amount in budget.rest.items():
        # What does not depend on the choice is counted with the first group.
        uses[name] = uses[name] + amount * (owner == 0)
    if rules.table is not None:
        latency, rest = _latencies(choices, cost, budget, rules.table)
        uses["latency"] = latency + rest * (owner == 0)
    programme = Programme(costs, owner, uses["bits"], uses)
    if cost.pairs is not None:
        programme = _add_pairs(programme, groups, options, cost)
    return AllocationProblem(layers, groups, options, programme, cost, budget)


def _costs_and_uses(
    choices: list[tuple[list[Layer], Option]], cost: Cost, budget: Budget
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the cost of each option of tied layers, and its use of each resource but latency."""
    size = budget.size or code_bytes
    costs: list[float] = []
    uses: dict[str, list[int]] = {"bits": [], "input_bits": [], "bytes": [], "bops": []}
    for tied_layers, option in choices:
        layer_costs: list[float] = []
        totals = dict.fromkeys(uses, 0)
        for layer in tied_layers:
            input_bits = inputs_of(layer, option, cost, budget)
            layer_costs.append(cost_of(layer, option, cost, budget))
            totals["bits"] += layer.weights * option.weights
            totals["input_bits"] += input_bits
            totals["bytes"] += size(layer, option.weights)
            totals["bops"] += bops(layer, option.weights, input_bits)
        # Python's `sum` compensates from 3.12 on, which adding in a loop would not.
        costs.append(sum(layer_costs))
        for name, total in totals.items():
            uses[name].append(total)
    return np.array(costs).astype(float), {name: np.array(total) for name, total in uses.items()}


def _latencies(
    choices: list[tuple[list[Layer], Option]], cost: Cost, budget: Budget, table: Table
) -> tuple[np.ndarray, float]:
    """Return the milliseconds of each option, and those of the layers left in full precision."""
    unquantized = [(name, FLOAT, FLOAT) for name in budget.kept]
    table.check(unquantized)
    keys_of_options = []  # the lines of the table that each option adds up
    for tied_layers, option in choices:
        keys = []
        for layer in tied_layers:
            input_bits = inputs_of(layer, option, cost, budget)
            keys.append((layer.name, option.weights, input_bits))
        keys_of_options.append(keys)
    table.check(itertools.chain.from_iterable(keys_of_options))
    latencies = []
    for keys in keys_of_options:
        total = sum(table.ms[key] for key in keys)
        latencies.append(total)
    rest = sum(table.ms[key] for key in unquantized)
    return np.array(latencies).astype(float), rest


def decide(problem: AllocationProblem, limits: Mapping[str, float], effort: Effort) -> Widths:
    """Return the bits of least cost within `limits`, in the unit of each resource, with a report.

    Raises
    ------
    SqError : there is no limit; a limit is below what candidates reach, or that of a mean above; no
        choice keeps all of them; or the time ran out
    """
    started = time.perf_counter()
    _check_limits(problem, limits)
    totals = {name: limit * problem.units(name) for name, limit in limits.items()}
    solution = quadratic.solve(replace(problem.programme, limits=totals), effort)
    if solution is None:
        settings, ranges = [], []
        for name, limit in limits.items():
            settings.append(f"{SETTINGS[name]}={limit:.10g}")
            ranges.append(f"{SETTINGS[name]}: {problem.range_text(name)}")
        raise SqError(
            f"{' '.join(settings)}: no choice of bits keeps to all of them together, though to "
            f"each alone. {'; '.join(ranges)}"
        )
    report = _report(problem, limits, solution)
    report["seconds"] = time.perf_counter() - started
    return replace(problem.widths(solution.chosen), report=report)


def _check_limits(problem: AllocationProblem, limits: Mapping[str, float]) -> None:
    """Raise an `SqError` if there is no limit, or one cannot be kept."""
    if not limits:
        raise SqError(
            "allocation: nothing bounds the bits; set allocation.average_bits or "
            f"{', '.join(SETTINGS.values())}"
        )
    for name, limit in limits.items():
        low, high = problem.reach(name)
        if ceiling(limit) < low or (name in MEANS and limit > ceiling(high)):
            raise SqError(f"{SETTINGS[name]}={limit:.10g}: {problem.range_text(name)}")


def _report(
    problem: AllocationProblem, limits: Mapping[str, float], solution: Solution
) -> dict[str, Any]:
    """Return what a record says of a solution, but for the seconds it took."""
    bounds = {}
    for name, used in problem.used(solution.chosen).items():
        bounds[name] = {"limit": limits.get(name), "used": used}
    ties = []
    for group in problem.groups:
        if len(group) > 1:
            names = [layer.name for layer in group]
            ties.append(names)
    return {
        "method": solution.method,
        "objective": solution.cost,
        "gap": solution.gap,
        "bounds": bounds,
        "ties": ties,
    }


def _add_pairs(
    programme: Programme, groups: list[list[Layer]], options: list[Option], cost: Cost
) -> Programme:
    """Return `programme` with the costs of pairs.

    A state is a group with the bits of its weights, whatever those of its inputs are. The costs of
    pairs of tied layers become part of the cost of their option. Fixed bits without a sensitivity
    have no pairs.
    """
    assert cost.pairs is not None
    row_of = {choice: row for row, choice in enumerate(cost.choices())}  # by (layer, bits)
    choices = []  # of each option: (group, bits of weights)
    for group, option in zip(programme.groups, options, strict=True):
        choices.append((int(group), option.weights))
    state_of = {choice: state for state, choice in enumerate(dict.fromkeys(choices))}
    member = np.zeros((len(state_of), len(row_of)))  # 1 where a state has this choice of a layer
    for (group, bits), state in state_of.items():
        for layer in groups[group]:
            if (layer.name, bits) in row_of:
                member[state, row_of[layer.name, bits]] = 1
    pairs = _symmetric(member @ cost.pairs @ member.T)
    states = np.array([state_of[choice] for choice in choices])
    costs = programme.costs + pairs.diagonal()[states] / 2
    group_of = np.array([group for group, _ in state_of])
    pairs[group_of[:, None] == group_of] = 0
    gram = None
    if cost.gram is not None:
        gram = _symmetric(member @ cost.gram @ member.T)
    return replace(programme, costs=costs, states=states, pairs=pairs, gram=gram)


def _symmetric(product: np.ndarray) -> np.ndarray:
    """Return the symmetric matrix with the upper triangle of `product`, without rounding errors."""
    return np.triu(product) + np.triu(product, 1).T
