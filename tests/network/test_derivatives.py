"""Gradients and Hessian-vector products of all layers at once, against automatic and finite differences."""

import pytest
import torch
from sensitivity_problems import images, labels, problem, tricky
from tolerances import assert_near, of_layers
from torch.func import functional_call
from torch.nn import functional as F

from sq.network.derivatives import differentiable, sum_over_batches
from sq.network.rounding_sites import Sites
from sq.network.weight_swap import original_weight


@pytest.fixture
def own():
    return problem(tricky().double(), images(4).double(), labels(4), bits=8)


def loss_of(own):
    """Return the loss as a function of the weights of all layers, flattened into one vector, and that vector."""
    names = [f"{layer.name}.weight" for layer in own.model.layers]
    shapes = [original_weight(layer).shape for layer in own.model.layers]
    start = torch.cat([original_weight(layer).flatten() for layer in own.model.layers])

    def loss(flat):
        parts = flat.split([s.numel() for s in shapes])
        given = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        outputs = functional_call(own.model.net, given, (own.batch.x,))
        return F.cross_entropy(outputs, own.batch.y, reduction="sum")

    return loss, start


def test_gradient_and_product_against_the_whole_hessian(own):
    loss, start = loss_of(own)
    hessian = torch.autograd.functional.hessian(loss, start)
    with differentiable(Sites(own, "weights", [2])) as run:
        found = run(own.batch.x)
        gradients = found.gradients(
            F.cross_entropy(found.outputs, own.batch.y, reduction="sum"), create_graph=True
        )
        directions = found.rounding_errors(2)
        products = found.hessian_product(gradients, directions)
        alone = found.curvatures(gradients, directions)
    flat = torch.cat([d.flatten() for d in directions])
    wanted = torch.autograd.functional.jacobian(loss, start)
    gradient, product = (of_layers(own.model.net, torch.float64, passes) for passes in (2, 4))
    assert_near(torch.cat([g.detach().flatten() for g in gradients]), wanted, gradient)
    assert_near(torch.cat([p.flatten() for p in products]), hessian @ flat, product)
    start_of = 0
    for d, own_product in zip(directions, alone, strict=True):
        block = hessian[start_of : start_of + d.numel(), start_of : start_of + d.numel()]
        assert_near(own_product.flatten(), d.flatten() * (block @ d.flatten()), product)
        start_of += d.numel()


def test_gradient_by_inputs_is_of_what_each_layer_is_fed(own):
    """Moving what one call is fed moves the loss as its gradient says."""
    sites = Sites(own, "inputs", [4])
    with differentiable(sites) as run:
        found = run(own.batch.x)
        gradients = found.gradients(F.cross_entropy(found.outputs, own.batch.y, reduction="sum"))
    names = [layer.name for layer in found.layers]
    assert sorted(names) == sorted(
        [layer.name for layer in sites.layers] + ["again", "blocks.0.second", "blocks.1.second"]
    )
    random = torch.Generator().manual_seed(0)
    for place, (at, gradient) in enumerate(zip(found.tensors, gradients, strict=True)):
        direction = torch.randn(at.shape, generator=random, dtype=at.dtype)

        def moved(step, place=place, direction=direction):
            calls = iter(range(len(names)))

            def feed(module, args, named):
                if next(calls) != place:
                    return None
                if args:
                    return (args[0] + step * direction,), named
                return args, {"input": named["input"] + step * direction}

            handles = [
                m.register_forward_pre_hook(feed, with_kwargs=True) for m in sites.modules.values()
            ]
            with torch.no_grad():
                value = F.cross_entropy(own.model.net(own.batch.x), own.batch.y, reduction="sum")
            for handle in handles:
                handle.remove()
            return value

        # A central difference is off by step^2 times the third derivative, and by rounding over the
        # step.
        step = torch.finfo(at.dtype).eps ** (1 / 3)
        slope = float(moved(step) - moved(-step)) / (2 * step)
        rounding = of_layers(own.model.net, at.dtype) * float(moved(0)) / step
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6, abs=rounding)


def test_rounded_sites_are_where_derivatives_are_taken(own):
    sites = Sites(own, "weights", [3])
    loss, _ = loss_of(own)
    there = torch.cat(
        [sites.nearest(layer, 3, original_weight(layer)).flatten() for layer in sites.layers]
    )
    with differentiable(sites, 3) as run:
        found = run(own.batch.x)
        gradients = found.gradients(F.cross_entropy(found.outputs, own.batch.y, reduction="sum"))
    wanted = torch.autograd.functional.jacobian(loss, there)
    assert_near(
        torch.cat([g.flatten() for g in gradients]),
        wanted,
        of_layers(own.model.net, torch.float64, passes=2),
    )


def test_rounded_inputs_are_fed_and_remembered(own):
    from sq.activation import insertion

    sites = Sites(own, "inputs", [3])
    with differentiable(sites, 3) as run:
        found = run(own.batch.x)
    insertion.attach(own.model.net, {layer.name: sites.grid(layer, 3) for layer in sites.layers})
    with torch.no_grad():
        wanted = own.model.net(own.batch.x)
    insertion.detach(own.model.net)
    assert_near(found.outputs.detach(), wanted, of_layers(own.model.net, torch.float64))
    assert all(float(d.abs().max()) > 0 for d in found.errors_applied)


def test_parts_add_up_and_network_is_left_alone(own):
    net = own.model.net
    before = {n: (t, t.clone(), t.requires_grad) for n, t in net.state_dict(keep_vars=True).items()}

    def of(part, place):
        found = run(part)
        y = own.batch.y[place]
        return found.gradients(F.cross_entropy(found.outputs, y, reduction="sum"))

    with differentiable(Sites(own, "weights", [2])) as run:
        once = of(own.batch.x, slice(0, 4))
        parts = [of(own.batch.x[i : i + 1], slice(i, i + 1)) for i in range(4)]
        together = sum_over_batches(own.batch.x, of)
    for a, b, c in zip(once, together, zip(*parts, strict=True), strict=True):
        assert_near(b, a, of_layers(net, torch.float64, passes=2))
        assert_near(sum(c), a, of_layers(net, torch.float64, passes=2))
    for name, tensor in net.state_dict(keep_vars=True).items():
        own_tensor, value, wanted = before[name]
        assert tensor is own_tensor
        assert torch.equal(tensor, value)
        assert tensor.requires_grad == wanted
        assert tensor.grad is None
    assert not any(m._forward_pre_hooks or "weight" in m.__dict__ for m in net.modules())
