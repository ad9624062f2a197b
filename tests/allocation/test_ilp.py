"""The integer programme against every choice of small networks, HAWQ-V3's published widths, and what it refuses."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from allocation_helpers import best, every_choice, layer, networks, price, used
from cli_helpers import call, compose, records
from hypothesis import given, settings
from hypothesis import strategies as st

from sq.config.instantiate import build
from sq.errors import SqError
from sq.types.costs import Budget, Cost

KNOBS = compose("allocation=ilp", "allocation.average_bits=null")[0]["allocation"]


def allocate(cost, layers, budget, **knobs):
    return build(KNOBS | knobs, "allocation")(cost, layers, budget)


def knobs_of(limits):
    return {
        "average_bits" if n == "bits" else "average_input_bits" if n == "input_bits" else n: v
        for n, v in limits.items()
    }


def between(cost, layers, budget, names, shares, **rules):
    """Return limits that lie at `shares` of the range that choices use."""
    taken = [
        used(layers, w, i, budget.rest) for w, i in every_choice(cost, layers, budget, **rules)
    ]
    found = {}
    for name, share in zip(names, shares, strict=True):
        low, high = min(t[name] for t in taken), max(t[name] for t in taken)
        found[name] = low + share * (high - low)
    return found


def agrees(case, names, shares, ties="fed", same=False, **knobs):
    cost, layers, budget = case
    limits = between(cost, layers, budget, names, shares, ties=ties, same=same)
    oracle = best(cost, layers, budget, limits, ties=ties, same=same)
    knobs |= knobs_of(limits) | {"ties": ties, "inputs": "weights" if same else "free"}
    made = allocate(cost, layers, budget, **knobs)
    inputs = {each.name: made.inputs.get(each.name, budget.inputs[each.name]) for each in layers}
    taken = used(layers, made.weights, inputs, budget.rest)
    assert all(taken[name] <= limit * (1 + 1e-12) for name, limit in limits.items())
    assert any(
        (made.weights, inputs) == choice
        for choice in every_choice(cost, layers, budget, ties, same)
    )
    assert price(cost, made.weights, inputs) == pytest.approx(oracle[0], rel=1e-9, abs=1e-12)
    assert made.report["objective"] == pytest.approx(oracle[0], rel=1e-9, abs=1e-12)
    assert made.report["gap"] == 0
    for name, value in taken.items():
        bound = made.report["bounds"][name]
        assert bound["used"] == pytest.approx(value, rel=1e-12)
        assert bound["limit"] == limits.get(name)
    return taken, oracle


SHARE = st.floats(0, 1)


@given(networks(), SHARE, st.sampled_from(["fed", "none"]))
def test_average_bits_against_every_choice(case, share, ties):
    taken, oracle = agrees(case, ["bits"], [share], ties)
    # of what costs the same, the smallest
    assert taken["bits"] == pytest.approx(oracle[1], rel=1e-9)


@given(networks(), SHARE, SHARE, SHARE)
def test_several_bounds_against_every_choice(case, bits, size, bops):
    agrees(case, ["bits", "bytes", "bops"], [bits, size, bops])


@given(networks(most=4, mixed=True), SHARE, SHARE, SHARE, st.booleans())
def test_weights_and_inputs_together_against_every_choice(case, bits, wide, bops, same):
    agrees(case, ["bits", "input_bits", "bops"], [bits, wide, bops], same=same)


@given(networks(paired=True), SHARE, SHARE)
def test_costs_of_pairs_against_every_choice(case, bits, bops):
    agrees(case, ["bits", "bops"], [bits, bops], products=10**6)


@given(networks(most=3, mixed=True, paired=True), SHARE)
def test_costs_of_pairs_and_inputs_against_every_choice(case, bops):
    agrees(case, ["bops"], [bops], products=10**6)


@settings(max_examples=20)
@given(networks(paired=True), SHARE)
def test_search_keeps_to_the_budget_and_its_gap_is_true(case, share):
    cost, layers, budget = case
    limits = between(cost, layers, budget, ["bits"], [share])
    least, _ = best(cost, layers, budget, limits)
    made = allocate(cost, layers, budget, average_bits=limits["bits"], products=0)
    taken = used(layers, made.weights, budget.inputs)
    found = price(cost, made.weights, {})
    assert taken["bits"] <= limits["bits"] * (1 + 1e-12)
    assert made.report["objective"] == pytest.approx(found, rel=1e-9, abs=1e-12)
    assert least >= found - made.report["gap"] * abs(found) - 1e-9 * abs(found)


@settings(max_examples=10)
@given(networks(), st.lists(SHARE, min_size=2, max_size=3), st.randoms())
def test_cost_never_rises_with_the_budget_nor_changes_with_the_order_of_prices(
    case, shares, random
):
    cost, layers, budget = case
    costs = []
    for share in sorted(shares):
        limits = between(cost, layers, budget, ["bits"], [share])
        made = allocate(cost, layers, budget, average_bits=limits["bits"])
        costs.append(made.report["objective"])
        names = list(cost.weights)
        random.shuffle(names)
        shuffled = Cost({name: dict(reversed(cost.weights[name].items())) for name in names})
        assert (
            allocate(shuffled, layers, budget, average_bits=limits["bits"]).weights == made.weights
        )
    assert all(after <= before + 1e-9 * abs(before) for before, after in itertools.pairwise(costs))


# HAWQ-V3's ResNet-18 (its notebook ILP.ipynb): normalised traces, ||dW||^2 at 8 and at 4 bits,
# weights, MACs.
TRACE = """.06857826 .03162379 .03298575 .01205663 .02222431 .00596336 .06931772 .00807129 .00372905 .00530698 .00209011
.00737569 .00210454 .00151197 .00158041 .00078146 .00451841 .00098745 .00072944"""
AT_8 = """.0235 .0125 .0102 .0082 .0145 .0344 .0023 .0287 .0148 .0333 .0682 .0027 .0448 .0336 .0576
.1130 .0102 .0947 .0532"""
AT_4 = """6.7430 3.9691 3.3281 2.6796 4.7277 10.5966 .6827 9.0942 4.8857 10.7599 21.7546 .8603 14.5324 10.9651 18.7706
36.4044 3.1572 29.6994 17.4016"""
WEIGHTS = [36864] * 4 + [73728, 147456, 8192, 147456, 147456, 294912, 589824, 32768, 589824, 589824]
WEIGHTS += [1179648, 2359296, 131072, 2359296, 2359296]
TIES = {6: 4, 11: 9, 16: 14}


@pytest.fixture(scope="module")
def hawq():
    trace, at_8, at_4 = (np.array(text.split(), dtype=float) for text in (TRACE, AT_8, AT_4))
    macs = [115605504] * 19
    for k in (4, 9, 14):
        macs[k] = 57802752
    for k in (6, 11, 16):
        macs[k] = 6422528
    layers = [layer(str(k), n, macs[k] // n, str(TIES.get(k, k))) for k, n in enumerate(WEIGHTS)]
    assert [each.macs for each in layers] == macs
    rows = {str(k): {4: trace[k] * at_4[k], 8: trace[k] * at_8[k]} for k in range(19)}
    return Cost(rows, {name: {4: 0.0, 8: 0.0} for name in rows}), layers, Budget(8.0)


def narrow(made):
    return {int(name) for name, bits in made.weights.items() if bits == 4}


def test_published_widths_of_hawq_v3_by_size(hawq):
    cost, layers, budget = hawq
    made = allocate(cost, layers, budget, bytes=0.75 * sum(WEIGHTS), inputs="weights")
    assert narrow(made) == {15, 17, 18}
    assert made.report["objective"] == pytest.approx(0.07451, abs=5e-6)
    assert made.report["bounds"]["bytes"]["used"] / 2**20 == pytest.approx(7.266, abs=5e-4)
    assert made.report["ties"] == [["4", "6"], ["9", "11"], ["14", "16"]]
    assert made.inputs == made.weights


def test_published_widths_of_hawq_v3_by_bops(hawq):
    cost, layers, budget = hawq
    half = sum(each.macs for each in layers) * (4 * 4 + 8 * 8) / 2
    made = allocate(cost, layers, budget, bops=half, inputs="weights")
    assert narrow(made) == {3, 8, 12, 13, 14, 15, 16, 17, 18}
    assert made.report["objective"] == pytest.approx(0.2157, abs=5e-5)


def test_ends_of_hawq_v3(hawq):
    cost, layers, budget = hawq
    for bits, total in ((4.0, 1.3077), (8.0, 0.00426)):
        made = allocate(cost, layers, budget, average_bits=bits)
        assert made.report["objective"] == pytest.approx(total, rel=2e-3)


def large(count, seed, mixed=False):
    random = np.random.default_rng(seed)
    widths = np.array([2, 3, 4, 5, 6, 8])

    def row():  # convex and decreasing
        drops = np.sort(random.exponential(size=len(widths)))[::-1] * np.exp(2 * random.normal())
        return dict(zip(widths.tolist(), np.cumsum(drops[::-1])[::-1].tolist(), strict=True))

    layers = [
        layer(f"{k}", int(random.integers(1, 5000)) * 144, int(random.integers(1, 1000)))
        for k in range(count)
    ]
    rows = {each.name: row() for each in layers}
    return Cost(rows, {name: row() for name in rows} if mixed else {}), layers, Budget(3.0)


@pytest.mark.parametrize("seed", range(3))
def test_54_layers_of_6_widths_take_little_time(seed):
    case = large(54, seed)
    allocate(*case, average_bits=4.0)  # scipy is loaded
    started = time.process_time()
    made = allocate(*case, average_bits=3.3)
    assert made.report["gap"] == 0
    assert time.process_time() - started < 10  # 0.1 to 1.1 s were measured; machines differ


def test_many_pairs_are_searched_with_a_gap():
    cost, layers, budget = large(20, 0)
    choices = cost.choices()
    random = np.random.default_rng(1)
    size = np.array([cost.weights[name][bits] for name, bits in choices]) ** 0.5
    pairs = 0.02 * np.outer(size, size) * random.normal(size=(len(choices),) * 2)
    owner = np.array([int(name) for name, _ in choices])
    cost = replace(cost, pairs=np.where(owner[:, None] == owner, 0, pairs + pairs.T))
    made = allocate(cost, layers, budget, average_bits=3.3)
    assert made.report["method"] == "local search"
    assert made.report["objective"] == pytest.approx(cost.of(made.weights))
    alone = allocate(replace(cost, pairs=None), layers, budget, average_bits=3.3)
    assert made.report["objective"] <= cost.of(alone.weights)
    assert 0 <= made.report["gap"] < 0.1


TWO = [layer("a", 300), layer("b", 100)]
PRICES = Cost({"a": {2: 4.0, 3: 2.0, 8: 0.0}, "b": {2: 9.0, 3: 3.0, 8: 0.0}})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"average_bits": 1.5},
            r"^bits=1\.5: with candidates 2,3,8 the mean can be 2\.00 to 8\.00$",
        ),
        (
            {"average_bits": 8.5},
            r"^bits=8\.5: with candidates 2,3,8 the mean can be 2\.00 to 8\.00$",
        ),
        ({"bytes": 99}, r"^allocation\.bytes=99: it can be 100 to 400$"),
        ({"bops": 10}, r"^allocation\.bops=10: it can be 25600 to 102400$"),
        ({}, r"nothing bounds the bits; set allocation\.average_bits or"),
        (
            {"average_input_bits": 4.0},
            r"average_input_bits=4: .*no sensitivity; set sensitivity\.input_bits",
        ),
        ({"inputs": "weights"}, r"inputs=weights: .*no sensitivity; set sensitivity\.input_bits"),
        ({"latency": 1.0}, r"allocation\.latency=1: allocation\.latency_table should name"),
    ],
)
def test_what_cannot_be(knobs, message):
    with pytest.raises(SqError, match=message):
        allocate(PRICES, TWO, Budget(3.0), **knobs)


def test_more_than_enough_is_no_mistake_where_it_is_no_mean():
    made = allocate(PRICES, TWO, Budget(3.0), bytes=10**9, bops=10**12)
    assert made.weights == {"a": 8, "b": 8}


def test_range_counts_settled_layers_but_not_as_candidates():
    with pytest.raises(
        SqError, match=r"bits=3: with candidates 2,3 the mean can be 6\.50 to 6\.75$"
    ):
        allocate(Cost({"b": {2: 1.0, 3: 0.0}}), TWO, Budget(3.0, {"a": 8}), average_bits=3.0)


def test_bounds_that_exclude_each_other_are_each_given_a_range(tmp_path):
    file = tmp_path / "table.csv"  # narrow layers are slow
    file.write_text(TABLE + "c,2,32,5\nc,8,32,1\n")
    cost = Cost(PRICES.weights | {"c": {2: 1.0, 8: 0.0}})
    with pytest.raises(SqError) as caught:
        allocate(
            cost,
            [*TWO, layer("c", 600)],
            Budget(3.0),
            average_bits=2.5,
            latency=4.0,
            latency_table=str(file),
        )
    assert str(caught.value) == (
        "bits=2.5 allocation.latency=4: no choice of bits keeps to all of them together, though to each alone. "
        "bits: with candidates 2,3,8 the mean can be 2.00 to 8.00; allocation.latency: it can be 3.2 to 13.8"
    )


def test_layers_without_a_price_or_common_bits_are_named():
    with pytest.raises(SqError, match=r"weights of layer b have no sensitivity"):
        allocate(Cost({"a": {2: 1.0}}), TWO, Budget(3.0), average_bits=2.0)
    tied = [layer("a", 3), layer("b", 3, fed="a")]
    with pytest.raises(SqError, match=r"layers a, b are tied, but no bits.*ties=none"):
        allocate(Cost({"a": {2: 1.0}, "b": {3: 1.0}}), tied, Budget(3.0), average_bits=3.0)


def test_settled_layers_are_tied_to_none():
    tied = [layer("a", 3), layer("b", 3, fed="a"), layer("c", 3, fed="a")]
    cost = Cost({name: {2: 1.0, 4: 0.0} for name in "bc"})
    made = allocate(cost, tied, Budget(3.0, {"a": 8}), average_bits=16 / 3)
    assert made.weights == {"a": 8, "b": 4, "c": 4}
    assert made.report["ties"] == [["b", "c"]]


def test_equal_costs_go_to_the_smallest_and_then_to_the_first_layers():
    layers = [layer(name, 10) for name in "abcd"]
    made = allocate(
        Cost({name: {2: 1.0, 4: 0.0, 8: 0.0} for name in "abcd"}),
        layers,
        Budget(3.0),
        average_bits=3.0,
    )
    assert made.weights == {"a": 4, "b": 4, "c": 2, "d": 2}


TABLE = "layer,bits,input_bits,ms\n" + "".join(
    f"{name},{bits},32,{bits * scale}\n"
    for name, scale in (("a", 0.1), ("b", 1.0))
    for bits in (2, 3, 8)
)


def test_latency_by_table(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text(TABLE)
    made = allocate(PRICES, TWO, Budget(3.0), latency=3.8, latency_table=str(file))
    assert made.weights == {"a": 8, "b": 3}
    assert made.report["bounds"]["latency"] == {"limit": 3.8, "used": pytest.approx(3.8)}
    assert len(made.report["latency_table"]["digest"]) == 16
    with pytest.raises(SqError, match=r"allocation\.latency=2: it can be 2\.2 to 8\.8"):
        allocate(PRICES, TWO, Budget(3.0), latency=2.0, latency_table=str(file))


def test_latency_of_layers_left_in_full_precision_counts(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text(TABLE + "end,32,32,1.5\n")
    knobs = {"latency": 5.3, "latency_table": str(file)}
    made = allocate(PRICES, TWO, Budget(3.0, kept=("end",)), **knobs)
    assert made.weights == {"a": 8, "b": 3}
    assert made.report["bounds"]["latency"]["used"] == pytest.approx(5.3)
    with pytest.raises(SqError, match=r"no line for layer start; add"):
        allocate(PRICES, TWO, Budget(3.0, kept=("start",)), **knobs)


def test_latency_table_that_misses_something(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("".join(line for line in TABLE.splitlines(True) if not line.startswith("b,8")))
    with pytest.raises(
        SqError, match=r"no line for layer b with 8 bits of weights and 32 of inputs; add .*ends of"
    ):
        allocate(PRICES, TWO, Budget(3.0), latency=3.8, latency_table=str(file))
    file.write_text("".join(line for line in TABLE.splitlines(True) if not line.startswith("b")))
    with pytest.raises(SqError, match=r"no line for layer b, and 2 more; add"):
        allocate(PRICES, TWO, Budget(3.0), latency=3.8, latency_table=str(file))


def test_time_that_does_not_suffice_is_said():
    with pytest.raises(SqError, match=r"allocation\.time_limit=1e-09 seconds: no choice"):
        allocate(*large(54, 0), average_bits=3.3, time_limit=1e-9)


@pytest.mark.parametrize("ends", ["8bit", "keep"])
def test_a_run_uses_what_its_allocation_says(ends, tmp_path):
    words = [
        "allocation=ilp",
        "bits=3.3",
        "sensitivity.bits=[2,3,4,8]",
        f"ends={ends}",
        "activation=minmax",
    ]
    done = call(tmp_path, *words, "allocation.bops=200_000_000")
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path)
    bounds, results = record["allocation"]["bounds"], record["results"]
    assert {name: bound["limit"] for name, bound in bounds.items()} == {
        "bits": 3.3,
        "input_bits": None,
        "bytes": None,
        "bops": 200_000_000,
    }
    assert bounds["bits"]["used"] == pytest.approx(results["bits"])
    assert bounds["bops"]["used"] == results["bops"]
    assert results["bits"] <= 3.3
    assert results["bops"] <= 200_000_000
    assert bounds["bytes"]["used"] == results["bytes"]
    assert record["allocation"]["objective"] == pytest.approx(record["cost"]["predicted"])
    assert len({each["bits"] for each in record["layers"]}) > 1
