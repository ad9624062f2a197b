import pytest
import torch
from sensitivity_problems import images, labels, problem

from sq.errors import SqError
from sq.sensitivity import kl


def test_cost_is_the_divergence_of_the_network_with_that_layer_rounded(tricky_problem):
    own = tricky_problem
    cost = kl.score(own, bits=[2, 4], input_bits=[3], images=5)
    net, x = own.model.net, own.batch.x[:5]
    with torch.no_grad():
        p = net(x).double().softmax(1)
        layer = net.blocks[0].second
        before = layer.weight.clone()
        W = before.view(2, 2, -1)
        layer.weight.copy_(own.fit(W, 2).nearest(W).view_as(before))
        q = net(x).double().softmax(1)
        layer.weight.copy_(before)
        handle = net.head.register_forward_pre_hook(
            lambda _, args: (own.inputs.grid("head", 3).nearest(args[0]),)
        )
        r = net(x).double().softmax(1)
        handle.remove()
    assert cost.weights["blocks.0.second"][2] == pytest.approx(
        float((p * (p / q).log()).sum(1).mean()), rel=1e-6
    )
    assert cost.inputs["head"][3] == pytest.approx(
        float((p * (p / r).log()).sum(1).mean()), rel=1e-6
    )
    assert cost.unit == "kl"


def test_outputs_of_a_detector_are_refused():
    own = problem(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1)), images(4), labels(4))
    with pytest.raises(SqError, match=r"returns \(4, 3, 7, 7\), not logits"):
        kl.score(own, bits=[2], input_bits=[], images=5)
