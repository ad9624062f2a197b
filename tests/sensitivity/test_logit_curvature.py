"""The quadratic of all pairs against passes made by hand."""

import pytest
import torch
from sensitivity_problems import images, labels, problem, tricky

from sq.activation import insertion
from sq.network.rounding_sites import Sites
from sq.network.weight_swap import swapped_weights
from sq.sensitivity import logit_curvature
from sq.types.costs import Cost


@pytest.fixture
def own():
    return problem(tricky().double(), images(5).double(), labels(5), bits=8)


def moved(own, sites):
    """Return how far each choice moves the logits, (n, B, K), by a pass of the whole network each."""
    net, x = own.model.net, own.batch.x
    with torch.no_grad():
        full, rows = net(x), []
        for layer, bits in sites.choices():
            if sites.kind == "weights":
                with swapped_weights(
                    own.model, {layer.name: sites.nearest(layer, bits, layer.module.weight)}
                ):
                    rows.append(net(x) - full)
            else:
                insertion.attach(net, {layer.name: sites.grid(layer, bits)})
                rows.append(net(x) - full)
                insertion.detach(net)
    return full, torch.stack(rows)


@pytest.mark.parametrize("kind", ["weights", "inputs"])
@pytest.mark.parametrize("temperature", [1, 4])
def test_products_are_those_of_the_curvature_written_out(own, kind, temperature):
    sites = Sites(own, kind, [2, 3])
    full, u = moved(own, sites)
    assert u.abs().amax((1, 2)).min() > 0
    p = (full / temperature).softmax(1)
    S = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    wanted = torch.einsum("ibk,bkl,jbl->ij", u, S, u) / len(p) / temperature**2
    found = logit_curvature.products(sites, own.batch.x, temperature)
    torch.testing.assert_close(found, wanted)
    assert float(torch.linalg.eigvalsh(found)[0]) > -1e-9


def test_small_moves_of_all_layers_cost_the_divergence_of_their_sum(own):
    sites = Sites(own, "weights", [8])
    full, u = moved(own, sites)
    made = logit_curvature.LogitCurvature(own.batch.x, 2)
    cost = Cost(made.rows(sites), pairs=made.pairs)
    p, q = ((logits / 2).log_softmax(1) for logits in (full, full + u.sum(0)))
    wanted = float((p.exp() * (p - q)).sum(1).mean())
    assert cost.of({layer.name: 8 for layer in sites.layers}) == pytest.approx(wanted, rel=0.05)
    assert sum(row[8] for row in cost.weights.values()) != pytest.approx(wanted, rel=0.2), (
        "no pairs to be seen"
    )


def test_temperature_lets_images_speak_that_the_network_is_sure_of(own):
    """At temperature 1 a network that is sure of everything has no curvature left; at a higher one it has."""
    with torch.no_grad():
        for layer in own.model.layers[-1:]:
            layer.module.weight *= 1e7
    sites = Sites(own, "weights", [3])
    cold, warm = (logit_curvature.products(sites, own.batch.x, t).diagonal() for t in (1.0, 1e7))
    assert (cold < 1e-3 * warm).all()
