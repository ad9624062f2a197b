"""The quadratic of all pairs against the Gauss-Newton matrix written out."""

import pytest
import torch
from sensitivity_problems import images, labels, problem, tricky
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from sq import gauss_newton
from sq.sites import Sites, weight


@pytest.fixture
def own():
    return problem(tricky().double(), images(5).double(), labels(5), bits=8)


def test_terms_are_those_of_the_matrix(own):
    sites = Sites(own, "weights", [2, 3])
    names = [layer.name for layer in sites.layers]
    start = {f"{layer.name}.weight": weight(layer) for layer in sites.layers}
    jacobian = jacrev(lambda given: functional_call(own.model.net, given, (own.batch.x,)))(start)
    J = torch.cat([jacobian[f"{n}.weight"].flatten(2) for n in names], 2)  # (B, K, weights)
    p = own.model.net(own.batch.x).softmax(1).detach()
    S = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    G = torch.einsum("bkw,bkl,blv->wv", J, S, J) / len(p)
    g = torch.einsum("bk,bkw->w", p - F.one_hot(own.batch.y, 3), J) / len(p)
    D = []
    for layer, bits in sites.choices():
        parts = {n: torch.zeros_like(start[f"{n}.weight"]) for n in names}
        parts[layer.name] = sites.error(layer, bits, weight(layer))
        D.append(torch.cat([part.flatten() for part in parts.values()]))
    D = torch.stack(D)
    linear, products = gauss_newton.terms(sites, own.batch.x, own.batch.y)
    torch.testing.assert_close(linear, D @ g)
    torch.testing.assert_close(products, D @ G @ D.T)
    assert float(torch.linalg.eigvalsh(products)[0]) > -1e-9


def test_tangent_of_inputs_is_the_derivative_along_their_errors(own):
    sites = Sites(own, "inputs", [3])
    linear, _ = gauss_newton.terms(sites, own.batch.x, own.batch.y)
    step = 1e-6

    def loss(layer, size):
        handle = layer.module.register_forward_pre_hook(
            lambda module, args, named: (
                (args[0] + size * sites.error(layer, 3, args[0]), *args[1:]) if args else args,
                {k: v + size * sites.error(layer, 3, v) for k, v in named.items()},
            ),
            with_kwargs=True,
        )
        with torch.no_grad():
            value = float(F.cross_entropy(own.model.net(own.batch.x), own.batch.y))
        handle.remove()
        return value

    for layer, slope in zip(sites.layers, linear.tolist(), strict=True):
        if layer.name in ("again", "blocks.0.second", "blocks.1.second"):
            continue  # called twice: the second call's error is then of an input that has moved
        assert slope == pytest.approx((loss(layer, step) - loss(layer, -step)) / (2 * step), rel=1e-3, abs=1e-8)
