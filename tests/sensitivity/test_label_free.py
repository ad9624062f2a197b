from dataclasses import replace

import pytest
import torch
from sensitivity_problems import problem
from torch import nn

from sq.network.rounding_sites import Sites
from sq.network.weight_swap import original_weight
from sq.runtime import out_of_memory
from sq.sensitivity import label_free

KNOBS = {"bits": [2, 3], "images": 100, "together": 4, "tolerance": 1e-9, "seed": 0}


def test_linear_network_is_priced_by_the_diagonal_of_its_jacobian():
    """For f = A B x: df/dB_ij = A_:i x_j, df/dA_ij = e_i (B x)_j, df/dx = A B."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 5, bias=False)).double()
    x = torch.randn(12, 4, dtype=torch.float64)
    own = problem(net, x, torch.zeros(12).long(), bits=4)
    cost = label_free.score(own, input_bits=[4], draws=600, **KNOBS)
    A, B = net[1].weight.detach(), net[0].weight.detach()
    sites = Sites(own, "weights", [2, 3])
    first, second = sites.layers
    by_first = A.square().sum(0).unsqueeze(1) * x.square().mean(0)
    by_second = (x @ B.T).square().mean(0).expand(5, 3)
    for layer, h in ((first, by_first), (second, by_second)):
        for bits in (2, 3):
            wanted = (
                float((h * sites.error(layer, bits, original_weight(layer)).square()).sum()) / 2
            )
            assert cost.weights[layer.name][bits] == pytest.approx(wanted, rel=0.1)
            assert abs(cost.weights[layer.name][bits] - wanted) < 4 * cost.errors[layer.name][bits]
    error = own.inputs.grid("0", 4).nearest(x) - x
    wanted = float(((A @ B).square().sum(0) * error.square()).sum(1).mean()) / 2
    assert cost.inputs["0"][4] == pytest.approx(wanted, rel=0.1)
    assert cost.about["draws_weights"] == 600


def test_labels_change_nothing(tricky_problem):
    other = replace(tricky_problem, batch=replace(tricky_problem.batch, y=torch.full((6,), -1)))
    first, second = (
        label_free.score(p, input_bits=[3], draws=3, **KNOBS) for p in (tricky_problem, other)
    )
    assert first == second


def test_it_stops_when_the_error_is_small_and_seeds_differ(tricky_problem):
    loose = label_free.score(tricky_problem, input_bits=[], draws=100, **KNOBS | {"tolerance": 0.5})
    assert 4 <= loose.about["draws_weights"] < 100
    assert all(
        e <= 0.5 * loose.weights[n][b] for n, row in loose.errors.items() for b, e in row.items()
    )
    other = label_free.score(
        tricky_problem, input_bits=[], draws=100, **KNOBS | {"tolerance": 0.5, "seed": 1}
    )
    assert other.weights != loose.weights


@pytest.mark.parametrize("kind", ["weights", "inputs"])
def test_where_memory_does_not_suffice_fewer_images_go_together(tricky_problem, kind):
    def most(module, args):
        if len(args[0]) > 2:
            raise RuntimeError("can't allocate memory")

    hook = tricky_problem.model.net.register_forward_pre_hook(most)
    widths = (
        {"bits": [2, 3], "input_bits": [3]}
        if kind == "inputs"
        else {"bits": [2, 3], "input_bits": []}
    )
    with out_of_memory.remembering() as halved:
        cost = label_free.score(tricky_problem, draws=2, **KNOBS | widths)
    hook.remove()
    assert halved == {"sensitivity": 2}
    cost.check()
    assert all(row[2] > 0 for row in cost.weights.values())
