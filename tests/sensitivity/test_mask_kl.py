import pytest
import torch

from sq.errors import SqError
from sq.network import geometry
from sq.sensitivity import mask_kl


def test_cost_is_the_divergence_with_what_rounds_to_zero_zero(tricky_problem):
    own, net = tricky_problem, tricky_problem.model.net
    cost = mask_kl.score(own, bits=[2, 8], input_bits=[], images=6)
    layer = net.blocks[0].first
    W = geometry.weight(layer)
    gone = (own.fit(W, 2).nearest(W) == 0).view_as(layer.weight)
    assert 0.1 < float(gone.float().mean()) < 0.9
    with torch.no_grad():
        p = net(own.batch.x).double().softmax(1)
        before = layer.weight.clone()
        layer.weight[gone] = 0
        q = net(own.batch.x).double().softmax(1)
        layer.weight.copy_(before)
    assert cost.weights["blocks.0.first"][2] == pytest.approx(
        float((p * (p / q).log()).sum(1).mean()), rel=1e-5
    )
    assert sum(row[8] for row in cost.weights.values()) < 0.1 * sum(
        row[2] for row in cost.weights.values()
    )


def test_inputs_are_refused(tricky_problem):
    with pytest.raises(SqError, match="sensitivity=mask_kl scores weights alone"):
        mask_kl.score(tricky_problem, bits=[2], input_bits=[4], images=6)
