from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sensitivity_problems import problem
from torch import nn
from torch.nn import functional as F

from sq.activation import insertion
from sq.errors import SqError
from sq.network.rounding_sites import Sites, all_rounded
from sq.network.weight_swap import original_weight, swapped_weights
from sq.sensitivity import interaction

SCORE = partial(interaction.score, images=100, temperature=4, linear=True)


class Sum(nn.Module):
    """f = A x + B x + C x: with a squared error, quadratic in all three layers together."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 3) for _ in range(3))

    def forward(self, x):
        return self.a(x) + self.b(x) + self.c(x)


@contextmanager
def rounded(own, sites, bits):
    """Round layers to `bits` by name, None leaving them, by weights lent or grids attached."""
    if sites.kind == "weights":
        given = {
            s.name: sites.nearest(s, bits[s.name], original_weight(s))
            for s in sites.layers
            if bits[s.name]
        }
        with swapped_weights(own.model, given):
            yield
    else:
        insertion.attach(
            own.model.net,
            {s.name: sites.grid(s, bits[s.name]) for s in sites.layers if bits[s.name]},
        )
        yield
        insertion.detach(own.model.net)


@pytest.fixture
def quadratic():
    torch.manual_seed(0)
    x = torch.randn(10, 4, dtype=torch.float64)
    return problem(Sum().double(), x, torch.zeros(10).long(), bits=4), torch.randn(
        10, 3, dtype=torch.float64
    )


@pytest.mark.parametrize("kind", ["weights", "inputs"])
def test_signed_shares_add_up_to_the_change_of_a_quadratic_loss(quadratic, kind):
    own, target = quadratic
    x = own.batch.x

    def losses(outputs, place):
        return (outputs - target[place]).square().sum(1)

    sites = Sites(own, kind, [2, 3, 4])
    found = sites.rows(interaction.shares(sites, x, losses))
    every = slice(0, 10)
    assert any(value < 0 for row in found.values() for value in row.values()), "no sign to be lost"
    for bits in sites.bits:
        with torch.no_grad():
            before = losses(own.model.net(x), every).mean()
            with all_rounded(sites, bits):
                change = float(losses(own.model.net(x), every).mean() - before)
        assert sum(row[bits] for row in found.values()) == pytest.approx(change, rel=1e-9)
        # What has no cross terms does not.
        alone = 0.0
        for layer in sites.layers:
            one = replace(own, model=replace(own.model, layers=[layer]))
            alone += interaction.shares(Sites(one, kind, [bits]), x, losses)[0]
        assert alone != pytest.approx(change, rel=0.01)


@pytest.mark.parametrize("kind", ["weights", "inputs"])
def test_shares_are_beside_settled_layers_at_their_own_bits(quadratic, kind):
    own, target = quadratic
    own, x = replace(own, fixed={"b": 8}), own.batch.x
    sites = Sites(own, kind, [2])

    def losses(outputs, place):
        return (outputs - target[place]).square().sum(1)

    with torch.no_grad():
        before = losses(own.model.net(x), slice(0, 10)).mean()
        with rounded(own, sites, {"a": 2, "b": 8, "c": 2}):
            change = float(losses(own.model.net(x), slice(0, 10)).mean() - before)
    found = sites.rows(interaction.shares(sites, x, losses))
    assert found["a"][2] + found["b"][8] + found["c"][2] == pytest.approx(change, rel=1e-9)
    slopes = sites.rows(interaction.slopes(sites, x, losses))
    assert {name: list(row) for name, row in slopes.items()} == {"a": [2], "b": [8], "c": [2]}
    assert abs(slopes["b"][8]) < 0.1 * abs(slopes["a"][2])


def test_gradient_at_the_rounded_point_has_cross_terms_in_full(quadratic):
    own, target = quadratic
    x = own.batch.x

    def losses(outputs, place):
        return (outputs - target[place]).square().sum(1)

    sites = Sites(own, "weights", [2])
    found = interaction.slopes(sites, x, losses)
    moved = {
        layer.name: sites.nearest(layer, 2, original_weight(layer)).requires_grad_()
        for layer in sites.layers
    }
    with swapped_weights(own.model, moved):
        gradients = torch.autograd.grad(
            losses(own.model.net(x), slice(0, 10)).mean(), list(moved.values())
        )
    wanted = [
        float((g * sites.error(s, 2, original_weight(s))).sum())
        for g, s in zip(gradients, sites.layers, strict=True)
    ]
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("variant", ["share", "gradient"])
def test_cost_is_the_size_of_the_share_and_signs_are_kept(tricky_problem, variant):
    cost = SCORE(tricky_problem, bits=[2, 4], input_bits=[3], variant=variant)
    signed = cost.about["signed_weights"]
    assert cost.weights == {n: {b: abs(v) for b, v in row.items()} for n, row in signed.items()}
    assert min(v for row in signed.values() for v in row.values()) < 0
    assert list(cost.inputs) == list(cost.weights)
    assert cost.unit == "loss"


@pytest.mark.parametrize("fixed", [{}, {"stem": 8, "head": 8}])
@pytest.mark.parametrize("kind", ["weights", "inputs"])
def test_both_ways_are_the_mean_of_two_measured_increases(tricky_problem, kind, fixed):
    own = replace(tricky_problem, fixed=fixed)
    net, x = own.model.net, own.batch.x
    cost = SCORE(own, bits=[2, 4], input_bits=[2, 4], variant="both_ways")
    sites = Sites(own, kind, [2, 4])

    def loss(bits):
        with torch.no_grad(), rounded(own, sites, bits):
            outputs = net(x)
        return float(F.cross_entropy(outputs.double(), own.batch.y))

    full = {s.name: None for s in sites.layers}
    low = dict.fromkeys(full, 2) | fixed
    for layer in sites.layers:
        own_row, most = getattr(cost, kind)[layer.name], fixed.get(layer.name, 4)
        wanted = (
            loss(full | {layer.name: most})
            - loss(full)
            + loss(low | {layer.name: most})
            - loss(low | {layer.name: None})
        )
        assert own_row[most] == pytest.approx(wanted / 2, rel=1e-4, abs=1e-7)


def test_pairs_make_the_quadratic_of_any_choice(tricky_problem):
    own = tricky_problem
    sites = Sites(own, "weights", [2, 4])
    cost = SCORE(own, bits=[2, 4], input_bits=[4], variant="pairs")
    widths = {layer.name: 2 + 2 * (i % 2) for i, layer in enumerate(sites.layers)}
    with torch.no_grad():
        outputs = own.model.net(own.batch.x).double()
        u = torch.zeros_like(outputs)
        for layer in sites.layers:
            with swapped_weights(
                own.model,
                {layer.name: sites.nearest(layer, widths[layer.name], original_weight(layer))},
            ):
                u += (own.model.net(own.batch.x).double() - outputs) / 4
    p = (outputs / 4).softmax(1)
    curved = ((p * u.square()).sum(1) - (p * u).sum(1).square()).mean()
    assert cost.of(widths) == pytest.approx(float(curved / 2), rel=1e-4)
    assert (cost.pairs == cost.pairs.T).all()
    assert not cost.pairs[:2, :2].any()
    assert np.linalg.eigvalsh(cost.gram)[0] > -1e-12 * np.linalg.eigvalsh(cost.gram)[-1]
    owner = np.array([name for name, _ in cost.choices()])
    assert (np.where(owner[:, None] == owner, 0, cost.gram) == cost.pairs).all()
    assert cost.gram.diagonal() / 2 == pytest.approx(
        [v for row in cost.weights.values() for v in row.values()]
    )
    assert list(cost.inputs) == list(cost.weights)


def test_unlabelled_images_are_refused_but_for_pairs(tricky_problem):
    own = replace(tricky_problem, batch=replace(tricky_problem.batch, y=torch.full((6,), -1)))
    for variant in ("share", "gradient", "both_ways"):
        with pytest.raises(
            SqError, match=f"interaction sensitivity.variant={variant} needs labels, and 6 of 6"
        ):
            SCORE(own, bits=[2], input_bits=[], variant=variant)
    assert SCORE(own, bits=[2], input_bits=[], variant="pairs").weights
