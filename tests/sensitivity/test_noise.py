import grids
import pytest
import torch
from torch.nn import functional as F

from sq.grid.uniform_grid import UniformGrid
from sq.network.rounding_sites import Sites
from sq.network.weight_swap import original_weight, swapped_weights
from sq.sensitivity import noise

KNOBS = {"images": 6, "bins": 64, "tolerance": 1e-9, "seed": 0}


def test_noise_is_distributed_as_rounding_errors_are():
    """All values lie a quarter of a step above the grid's, or within a tenth below: so is the noise."""
    generator = torch.Generator().manual_seed(1)
    grid = UniformGrid(*(torch.tensor([[[v]]]) for v in (0.5, -8.0, 7.0)), levels=16)
    k = torch.randint(-6, 6, (1, 1, 20000), generator=generator)
    below = torch.rand(k.shape, generator=generator) < 0.3
    values = 0.5 * (k + torch.where(below, -0.1 * torch.rand(k.shape, generator=generator), 0.25))
    added = (noise.noisy(values, grid, 100, generator) - values) / 0.5
    near = (added > -0.27) & (added < -0.23)
    assert float(near.float().mean()) == pytest.approx(0.7, abs=0.02)
    assert float(((added > -0.02) & (added < 0.12)).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert (
        abs(
            float(
                torch.corrcoef(torch.stack([added, grid.nearest(values) - values]).flatten(1))[0, 1]
            )
        )
        < 0.03
    )


def test_values_beyond_the_grid_are_clipped_and_get_no_noise():
    grid = UniformGrid(*(torch.tensor([[[v]]]) for v in (1.0, -2.0, 1.0)), levels=4)
    made = noise.noisy(
        torch.tensor([[[-9.0, 3.0, 0.3, -1.2]]]), grid, 8, torch.Generator().manual_seed(0)
    )
    assert made[0, 0, :2].tolist() == [-2.0, 1.0]
    assert not torch.equal(made[0, 0, 2:], torch.tensor([0.3, -1.2]))


def test_noise_is_of_the_gap_around_each_value():
    values = grids.weights(0, 1, 2, 4000)
    grid = grids.fit("post", range="minmax")(values, 4)
    added = (noise.noisy(values, grid, 64, torch.Generator().manual_seed(0)) - values).abs()
    gap = grid.gap(values)
    assert (added <= gap / 2 * (1 + 1e-9)).all()
    inner, outer = gap < 0.2 * gap.max(), gap > 0.9 * gap.max()
    assert float(added[inner].mean()) < 0.3 * float(added[outer].mean())


def test_cost_is_the_mean_increase_of_the_loss(tricky_problem):
    own, net = tricky_problem, tricky_problem.model.net
    cost = noise.score(own, bits=[2], input_bits=[2], draws=30, **KNOBS)
    layer = next(s for s in own.model.layers if s.name == "stem")
    grid, w = Sites(own, "weights", [2]).grid(layer, 2), original_weight(layer)
    generator, found = torch.Generator().manual_seed(5), []
    with torch.no_grad():
        full = F.cross_entropy(net(own.batch.x), own.batch.y)
        for _ in range(200):
            given = noise.noisy(w.reshape(1, 4, -1), grid, 64, generator).view_as(w)
            with swapped_weights(own.model, {"stem": given}):
                found.append(F.cross_entropy(net(own.batch.x), own.batch.y) - full)
    found = torch.stack(found)
    error = (cost.errors["stem"][2] ** 2 + float(found.var()) / 200) ** 0.5
    assert abs(cost.weights["stem"][2] - float(found.mean())) < 4 * error
    assert cost.errors["stem"][2] == pytest.approx(float(found.std()) / 30**0.5, rel=0.5)
    assert (cost.about["draws_weights"], cost.about["draws_inputs"]) == (30, 30)
    assert cost.about["errors_inputs"].keys() == cost.inputs.keys()
    assert all(row[2] != 0 for row in cost.inputs.values())


def test_it_stops_where_the_error_is_small(tricky_problem):
    cost = noise.score(
        tricky_problem, bits=[2, 8], input_bits=[], draws=20, **KNOBS | {"tolerance": 0.5}
    )
    assert 4 <= cost.about["draws_weights"] < 20
