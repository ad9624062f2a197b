"""Small networks with prices, and every choice of bits they have: what allocations are checked against."""

import itertools

import numpy as np
from hypothesis import strategies as st
from torch import nn

from sq.types.costs import Budget, Cost
from sq.types.problem import Layer

WIDTHS = (2, 3, 4, 6, 8)


def layer(name, weights, positions=1, fed=""):
    return Layer(name, nn.Identity(), "1x1", 1, weights, 1, positions, fed or name)


def used(layers, weights, inputs, rest=None):
    """Return what these bits use, by the definitions a record's figures have."""
    total = sum(each.weights for each in layers)
    rest = rest or {}
    return {
        "bits": sum(each.weights * weights[each.name] for each in layers) / total,
        "input_bits": sum(inputs[each.name] for each in layers) / len(layers),
        "bytes": sum((each.weights * weights[each.name] + 7) // 8 for each in layers)
        + rest.get("bytes", 0),
        "bops": sum(each.macs * weights[each.name] * inputs[each.name] for each in layers)
        + rest.get("bops", 0),
    }


def price(cost, weights, inputs):
    """Return what these bits cost, written out; bits without a price cost nothing."""
    total = sum(cost.weights.get(name, {}).get(bits, 0) for name, bits in weights.items())
    total += sum(cost.inputs.get(name, {}).get(bits, 0) for name, bits in inputs.items())
    if cost.pairs is not None:
        row = {choice: k for k, choice in enumerate(cost.choices())}
        own = [row[choice] for choice in weights.items() if choice in row]
        total += sum(cost.pairs[a, b] for a, b in itertools.combinations(own, 2))
    return total


def every_choice(cost, layers, budget, ties="fed", same=False):
    """Yield (weights, inputs) by name, for every choice there is."""

    def options(each):
        if (settled := budget.fixed.get(each.name)) is not None:
            return [(settled, budget.inputs.get(each.name, settled))]
        wide = cost.inputs.get(each.name) or [budget.inputs.get(each.name, 32)]
        return [(w, i) for w in cost.weights[each.name] for i in wide if not same or w == i]

    free = [each for each in layers if each.name not in budget.fixed]
    partners = [
        (a, b) for a, b in itertools.combinations(free, 2) if ties == "fed" and a.fed == b.fed
    ]
    for chosen in itertools.product(*map(options, layers)):
        by = {each.name: option for each, option in zip(layers, chosen, strict=True)}
        alike = all(by[a.name][0] == by[b.name][0] for a, b in partners)
        if alike and all(by[a.name][1] == by[b.name][1] or not cost.inputs for a, b in partners):
            yield (
                {n: option[0] for n, option in by.items()},
                {n: option[1] for n, option in by.items()},
            )


def best(cost, layers, budget, limits, **rules):
    """Return the least cost within `limits` and the least size at it; None if nothing keeps to them."""
    found = [
        (price(cost, weights, inputs), taken["bits"])
        for weights, inputs in every_choice(cost, layers, budget, **rules)
        for taken in [used(layers, weights, inputs, budget.rest)]
        if all(taken[name] <= limit * (1 + 1e-12) for name, limit in limits.items())
    ]
    if not found:
        return None
    least = min(cost for cost, _ in found)
    return least, min(bits for cost, bits in found if cost <= least + 1e-9 * abs(least))


@st.composite
def networks(draw, most=6, mixed=False, paired=False, fixed=True):
    """Draw a network of up to `most` layers: (cost, layers, budget), some layers tied, some settled."""
    count = draw(st.integers(1, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    whole = draw(st.booleans())  # whole costs: many choices cost the same
    less = draw(st.sampled_from([0.0, 0.05]))  # some cost less than nothing, as noise makes them

    def row(widths):
        values = (
            random.exponential()
            * 4.0 ** -np.array(widths)
            * np.exp(0.3 * random.normal(size=len(widths)))
        )
        values = np.ceil(values * 60) if whole else values - less
        return dict(zip(map(int, widths), values.tolist(), strict=True))

    widths = draw(
        st.lists(st.sampled_from(WIDTHS), min_size=2, max_size=2 if mixed else 4, unique=True)
    )
    names = [f"conv{k}" for k in range(count)]
    layers = []
    for k, name in enumerate(names):
        fed = names[draw(st.integers(0, k))] if draw(st.booleans()) else name
        layers.append(layer(name, int(random.integers(1, 200)), int(random.integers(1, 50)), fed))
    settled = {name: 8 for name in names[1:] if fixed and draw(st.integers(0, 4)) == 0}
    priced = [name for name in names if name not in settled or draw(st.booleans())]
    costs = {name: row(widths) for name in priced}
    inputs = {name: row(widths) for name in priced} if mixed else {}
    order = draw(st.permutations(list(costs)))  # dicts in any order
    cost = Cost({name: costs[name] for name in order}, inputs)
    if paired and (n := len(cost.choices())):
        made = random.normal(size=(n, n)) * draw(st.sampled_from([0.01, 0.1, 1.0]))
        owner = np.array([names.index(name) for name, _ in cost.choices()])
        pairs = np.where(owner[:, None] == owner, 0, made + made.T)
        cost = Cost(cost.weights, cost.inputs, pairs=pairs)
    wide = {name: 8 if name in settled else 4 for name in names}
    return cost, layers, Budget(4.0, settled, wide, {"bytes": 100, "bops": 1000})
