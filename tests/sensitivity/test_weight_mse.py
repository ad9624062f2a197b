import pytest

from sq.errors import SqError
from sq.network import geometry
from sq.sensitivity import weight_mse


def test_cost_is_the_mean_squared_rounding_error(tricky_problem):
    own = tricky_problem
    cost = weight_mse.score(own, bits=[2, 4], input_bits=[])
    W = geometry.weight(own.model.net.blocks[1].second)
    assert cost.weights["blocks.1.second"][4] == pytest.approx(
        float((own.fit(W, 4).nearest(W) - W).square().mean())
    )
    assert cost.unruly() == []


def test_inputs_are_refused(tricky_problem):
    with pytest.raises(SqError, match="sensitivity=weight_mse scores weights alone"):
        weight_mse.score(tricky_problem, bits=[2], input_bits=[4])
