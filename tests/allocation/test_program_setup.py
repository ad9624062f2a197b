"""What an allocation may choose from, and pairs of layers that are tied or settled."""

import numpy as np
import pytest
from allocation_helpers import layer

from sq.allocation.candidates import Option, Rules, offered, tied
from sq.allocation.program_setup import build_problem
from sq.errors import SqError
from sq.types.costs import Budget, Cost

LAYERS = [layer("a", 10), layer("b", 10), layer("c", 10, fed="b"), layer("d", 10, fed="b")]
FREE = Rules("fed", "free")


def names(groups):
    return [[each.name for each in group] for group in groups]


def test_ties():
    assert names(tied(LAYERS, Budget(4.0), FREE)) == [["a"], ["b", "c", "d"]]
    assert names(tied(LAYERS, Budget(4.0, {"c": 8}), FREE)) == [["a"], ["b", "d"], ["c"]]
    assert names(tied(LAYERS, Budget(4.0), Rules("none", "free"))) == [["a"], ["b"], ["c"], ["d"]]


def test_untraced_layers_are_tied_to_none():
    from dataclasses import replace

    assert names(tied([replace(each, fed="") for each in LAYERS], Budget(4.0), FREE)) == [
        ["a"],
        ["b"],
        ["c"],
        ["d"],
    ]


def test_options_are_what_all_tied_layers_have():
    cost = Cost({"b": {8: 0.0, 2: 1.0, 3: 0.5}, "c": {2: 1.0, 8: 0.0}}, {"b": {4: 0.1, 8: 0.0}})
    pair = LAYERS[1:3]
    assert offered(pair, cost, Budget(4.0), FREE) == [
        Option(2, 4),
        Option(2, 8),
        Option(8, 4),
        Option(8, 8),
    ]
    assert offered(pair, cost, Budget(4.0), Rules("fed", "weights")) == [Option(8, 8)]
    with pytest.raises(SqError, match=r"layer a has no bits with a sensitivity of both"):
        offered(
            LAYERS[:1], Cost({"a": {2: 1.0}}, {"a": {4: 1.0}}), Budget(4.0), Rules("fed", "weights")
        )


def test_costs_of_tied_and_settled_pairs_are_those_of_the_network():
    cost = Cost({each.name: {2: 1.0, 8: 0.5} for each in LAYERS})
    random = np.random.default_rng(0)
    owner = np.array([name for name, _ in cost.choices()])
    vectors = random.normal(size=(8, 5))
    gram = vectors @ vectors.T
    cost = Cost(cost.weights, pairs=np.where(owner[:, None] == owner, 0, gram), gram=gram)
    problem = build_problem(cost, LAYERS, Budget(4.0, {"a": 8}), FREE)
    for chosen in ([0, 1], [0, 2]):
        weights = problem.widths(np.array(chosen)).weights
        assert problem.programme.cost(np.array(chosen)) == pytest.approx(cost.of(weights))
    programme = problem.programme
    assert not programme.pairs.diagonal().any()
    home = np.zeros(len(programme.pairs), dtype=int)
    home[programme.states] = programme.groups
    apart = home[:, None] != home
    np.testing.assert_allclose(programme.gram[apart], programme.pairs[apart])
    assert np.linalg.eigvalsh(programme.gram)[0] > -1e-12
    tied = vectors[[2, 4, 6]].sum(0)  # b, c and d at 2 bits
    assert programme.gram[1, 1] == pytest.approx(tied @ tied)


def test_costs_of_pairs_that_are_not_numbers_are_named():
    cost = Cost({"a": {2: 1.0}, "b": {2: 1.0}}, pairs=np.array([[0, np.nan], [np.nan, 0]]))
    with pytest.raises(SqError, match=r"layers a and b cost together is not a number"):
        cost.check()


def test_bytes_are_those_of_codes_and_of_grids_where_their_size_is_known():
    cost = Cost({each.name: {2: 1.0, 8: 0.5} for each in LAYERS})
    alone = build_problem(cost, LAYERS, Budget(4.0, rest={"bytes": 100}), Rules("none", "free"))
    known = Budget(4.0, rest={"bytes": 100}, size=lambda layer, bits: 1000 * layer.weights + bits)
    whole = build_problem(cost, LAYERS, known, Rules("none", "free"))
    chosen = np.array([0, 3, 4, 7])  # 2, 8, 2 and 8 bits
    codes = sum(
        -(-each.weights * bits // 8) for each, bits in zip(LAYERS, (2, 8, 2, 8), strict=True)
    )
    assert alone.used(chosen)["bytes"] == codes + 100
    assert whole.used(chosen)["bytes"] == sum(1000 * each.weights for each in LAYERS) + 20 + 100
