from dataclasses import replace

import grids
import pytest
import torch
from torch.nn import functional as F

from sq.network.rounding_sites import Sites
from sq.sensitivity import grad_l1


def test_cost_is_half_a_step_times_the_l1_norm(tricky_problem):
    own, net = tricky_problem, tricky_problem.model.net
    cost = grad_l1.score(own, bits=[2, 4], input_bits=[3], images=6)
    layer = next(s for s in own.model.layers if s.name == "blocks.0.second")
    fed = {}
    handle = net.head.register_forward_pre_hook(lambda _, args: fed.update(x=args[0]))
    losses = F.cross_entropy(net(own.batch.x), own.batch.y, reduction="none")
    handle.remove()
    by_weight = torch.autograd.grad(losses.mean(), layer.module.weight, retain_graph=True)[0]
    by_input = torch.autograd.grad(losses.sum(), fed["x"])[0]
    step = Sites(own, "weights", [4]).grid(layer, 4).scale  # (2, 2, 1)
    wanted = float((step / 2 * by_weight.view(2, 2, -1).abs()).sum())
    assert cost.weights[layer.name][4] == pytest.approx(wanted, rel=1e-4)
    step = own.inputs.grid("head", 3).scale
    assert cost.inputs["head"][3] == pytest.approx(
        float(step / 2 * by_input.abs().sum(1).mean()), rel=1e-4
    )
    assert cost.unruly() == []


def test_it_bounds_what_rounding_does_to_first_order(tricky_problem):
    """Range minmax leaves no weight beyond the grid, so that |D| <= Delta / 2."""
    from sq.sensitivity import interaction

    cost = grad_l1.score(tricky_problem, bits=[2, 4], input_bits=[], images=6)

    def losses(outputs, place):
        return F.cross_entropy(outputs, tricky_problem.batch.y[place], reduction="none")

    own = Sites(tricky_problem, "weights", [2, 4])
    with_curvature, half = (
        torch.tensor(interaction.shares(own, tricky_problem.batch.x, losses, linear))
        for linear in (True, False)
    )
    first = (with_curvature - half).abs()
    assert (torch.tensor([v for row in cost.weights.values() for v in row.values()]) >= first).all()


def test_levels_that_are_not_equally_spaced_count_by_the_gap_around_each_weight(tricky_problem):
    own = replace(tricky_problem, fit=grids.fit("post", range="minmax"))
    cost = grad_l1.score(own, bits=[3, 4], input_bits=[], images=6)
    layer = next(s for s in own.model.layers if s.name == "head")
    losses = F.cross_entropy(own.model.net(own.batch.x), own.batch.y)
    by_weight = torch.autograd.grad(losses, layer.module.weight)[0]
    W = layer.module.weight.detach()
    for bits in (3, 4):
        table = grids.values(own.grid("head", W.unsqueeze(0), bits), 1, len(W))[0]
        above = (table.unsqueeze(1) <= W.unsqueeze(-1)).sum(-1).clamp(1, table.shape[1] - 1)
        gaps = table.gather(1, above) - table.gather(1, above - 1)
        assert cost.weights["head"][bits] == pytest.approx(
            float((gaps / 2 * by_weight.abs()).sum()), rel=1e-4
        )
    # The widest gap of POST is the same at any bits; those around small weights are not.
    assert cost.weights["head"][4] < 0.95 * cost.weights["head"][3]
