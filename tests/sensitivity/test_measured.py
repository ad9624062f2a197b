from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from sq.errors import SqError
from sq.network.weight_swap import original_weight
from sq.sensitivity import kl, measured


def test_cost_is_the_loss_of_the_rounded_network_less_that_of_full_precision(tricky_problem):
    own, net = tricky_problem, tricky_problem.model.net
    cost = measured.score(own, bits=[2, 3], input_bits=[], images=6, loss="cross_entropy")
    with torch.no_grad():
        for layer in own.model.layers:
            before = original_weight(layer).clone()
            W = before.reshape(layer.groups, layer.outputs, -1)
            layer.module.weight.copy_(own.fit(W, 2).nearest(W).view_as(before))
            rounded = F.cross_entropy(net(own.batch.x).double(), own.batch.y)
            layer.module.weight.copy_(before)
            full = F.cross_entropy(net(own.batch.x).double(), own.batch.y)
            assert cost.weights[layer.name][2] == pytest.approx(
                float(rounded - full), rel=1e-5, abs=1e-9
            )
    assert cost.unit == "loss"


def test_losses_that_fall_are_negative_costs_and_said(tricky_problem):
    cost = measured.score(
        tricky_problem, bits=[2, 3, 4], input_bits=[], images=6, loss="cross_entropy"
    )
    negative = [(n, b) for n, row in cost.weights.items() for b, v in row.items() if v < 0]
    assert negative, "this net has none, so the test says nothing"
    assert all(
        any(line.startswith(f"{n}: {b} bits") for line in cost.unruly()) for n, b in negative
    )


def test_without_labels_it_is_the_divergence(tricky_problem):
    own = replace(tricky_problem, batch=replace(tricky_problem.batch, y=torch.full((6,), -1)))
    found = measured.score(own, bits=[2, 4], input_bits=[4], images=6, loss="kl")
    wanted = kl.score(own, bits=[2, 4], input_bits=[4], images=6)
    assert found == wanted
    with pytest.raises(SqError, match="sensitivity=measured needs labels"):
        measured.score(own, bits=[2], input_bits=[], images=6, loss="cross_entropy")
