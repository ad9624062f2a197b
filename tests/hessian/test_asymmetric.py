"""Inputs as the quantized network feeds them: the target they make, and how they are collected."""

import copy

import numpy as np
import pytest
import torch
from cli_helpers import compose
from tolerances import assert_near, assert_within, of_gram, of_solve
from torch import nn

from sq.config.instantiate import build
from sq.errors import SqError
from sq.hessian import asymmetric, layer_statistics
from sq.network import geometry, tracing
from sq.types.images import Batch, Calibration
from sq.types.problem import Model, Problem

DEPTH = 100  # products in a sum of the layers before, at most: of what rounding does to inputs


def noisy(seed, G=2, O=3, I=5, N=400):
    random = torch.Generator().manual_seed(seed)
    W = torch.randn(G, O, I, generator=random, dtype=torch.float64)
    X = torch.randn(G, I, N, generator=random, dtype=torch.float64).relu()
    return W, X, X + 0.3 * torch.randn(G, I, N, generator=random, dtype=torch.float64)


def pair(X, Y):
    return asymmetric.Pair(2 * Y @ Y.mT / X.shape[2], 2 * X @ Y.mT / X.shape[2])


@pytest.mark.parametrize("seed", range(5))
def test_target_is_the_least_squares_solution(seed):
    W, X, Y = noisy(seed)
    found = pair(X, Y)
    target = found.target(W, found.H)
    for g in range(len(W)):
        best = np.linalg.lstsq(Y[g].T.numpy(), (W[g] @ X[g]).T.numpy(), rcond=None)[0].T
        assert_near(target[g], torch.from_numpy(best), of_solve(found.H[g]))


def test_loss_of_codes_differs_by_a_constant():
    W, X, Y = noisy(7)
    found = pair(X, Y)
    target = found.target(W, found.H)
    gaps = []
    for seed in range(4):
        Q = W + 0.2 * torch.randn(
            W.shape, generator=torch.Generator().manual_seed(seed), dtype=W.dtype
        )
        gaps.append(float((W @ X - Q @ Y).square().sum() - (target @ Y - Q @ Y).square().sum()))
    assert gaps == pytest.approx([gaps[0]] * 4)


def test_relative_error_is_that_of_the_outputs():
    W, X, Y = noisy(3)
    Q = (W * 4).round() / 4
    wanted = float((W @ X - Q @ Y).square().sum() / (W @ X).square().sum())
    assert pair(X, Y).relative_error(W, Q, 2 * X @ X.mT / X.shape[2]) == pytest.approx(wanted)


def test_same_inputs_leave_the_weight():
    W, X, _ = noisy(4)
    found = pair(X, X)
    eye = torch.eye(X.shape[1], dtype=X.dtype)
    torch.testing.assert_close(found.target(W, found.H + 0.5 * eye), W)
    with pytest.raises(torch.linalg.LinAlgError):
        found.target(W, torch.zeros_like(found.H))


class Twice(nn.Module):
    """A strided, grouped convolution after another layer, called twice, and in-place operations around it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        y = self.first(x).relu_()
        y = self.middle(y).add_(y.mul_(0.3))  # what a layer was fed changes once it has been called
        y = self.middle(y).relu_()
        return self.last(y.mul_(0.5).flatten(2).transpose(1, 2)).mean(1)


def model_of(net, shape):
    found, skipped = geometry.find(net)
    return tracing.trace(Model(net, found, shape, "", None, skipped), torch.randn(1, *shape))


def fed(net, name, x):
    seen = []
    hook = net.get_submodule(name).register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone())
    )
    with torch.no_grad():
        net(x)
    hook.remove()
    return [geometry.inputs(net.get_submodule(name), own) for own in seen]


@pytest.mark.parametrize("name", ["first", "middle", "last"])
def test_pairs_are_those_of_unfolded_inputs(name):
    torch.manual_seed(0)
    reference = Twice().double().eval()
    net = copy.deepcopy(reference)
    geometry.set_weight(net.first, geometry.weight(reference.first).mul(4).round().div(4))
    x = torch.randn(7, 2, 6, 5, dtype=torch.float64)
    (layer,) = [own for own in model_of(reference.float(), (2, 6, 5)).layers if own.name == name]
    reference.double()
    found = asymmetric.collect(net, reference, layer, x)
    X, Y = (torch.cat(fed(own, name, x), 2) for own in (reference, net))
    torch.testing.assert_close(found.H, 2 * Y @ Y.mT / X.shape[2])
    torch.testing.assert_close(found.C, 2 * X @ Y.mT / X.shape[2])
    if name == "first":
        assert torch.equal(X, Y)


def test_several_batches_stop_early_and_give_the_same(monkeypatch):
    torch.manual_seed(1)
    reference = Twice().eval()
    net = copy.deepcopy(reference)
    geometry.set_weight(net.first, geometry.weight(reference.first).mul(4).round().div(4))
    layer = model_of(reference, (2, 6, 5)).layers[1]
    x = torch.randn(9, 2, 6, 5)
    whole = asymmetric.collect(net, reference, layer, x)
    calls = []
    net.last.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("sq.runtime.batching.ELEMENTS", 4 * 60)
    known = asymmetric.constant_calls(reference, [layer], x)
    assert known == {layer.name: 2}
    parts = asymmetric.collect(net, reference, layer, x, known[layer.name])
    # C is of the same size
    bound = 2 * of_gram(whole.H, whole.H, len(x) * 30, torch.float32, DEPTH)
    assert_within(parts.H, whole.H, bound)
    assert_within(parts.C, whole.C, bound)
    assert len(calls) == 1, (
        "once it is known how often the layer is called, the rest of the network is not run"
    )


class Looping(nn.Module):
    """Calls its layers as often as the first value of the images says, and once more for those after it."""

    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        for _ in range(int(x[0, 0])):
            x = self.shared(x)
        return self.head(x)


@pytest.mark.parametrize("numbers", [(1, 3, 2), (3, 1, 1), (0, 2, 1), (2, 2, 2)])
def test_layers_called_more_often_for_some_images_have_the_inputs_of_all_calls(
    numbers, monkeypatch
):
    torch.manual_seed(3)
    monkeypatch.setattr("sq.runtime.batching.ELEMENTS", 2 * 4)  # parts of two images
    reference = Looping().double().eval()
    net = copy.deepcopy(reference)
    net.shared.weight.data = net.shared.weight.data.mul(8).round().div(8)
    x = torch.randn(2 * len(numbers), 4, dtype=torch.float64)
    x[::2, 0] = torch.tensor(numbers)
    every, _ = geometry.find(reference)
    calls = asymmetric.constant_calls(reference, every, x)
    assert calls == {"head": 1} | ({"shared": 2} if set(numbers) == {2} else {})
    for layer in every:
        found = asymmetric.collect(net, reference, layer, x, calls.get(layer.name))
        X, Y = (
            torch.cat([own for part in x.split(2) for own in fed(n, layer.name, part)], 2)
            for n in (reference, net)
        )
        assert X.shape[2] == 2 * (sum(numbers) if layer.name == "shared" else 3)
        torch.testing.assert_close(found.H, 2 * Y @ Y.mT / X.shape[2])
        torch.testing.assert_close(found.C, 2 * X @ Y.mT / X.shape[2])


@pytest.mark.parametrize("numbers", [(1, 3, 2), (2, 2, 2)])
def test_layers_are_solved_for_all_their_calls(numbers, monkeypatch):
    torch.manual_seed(4)
    x = torch.randn(6, 4)
    x[::2, 0] = torch.tensor(numbers)
    net = Looping().eval()
    monkeypatch.setattr("sq.runtime.batching.ELEMENTS", 2 * 4)  # parts of two images
    found, skipped = geometry.find(net)
    model = tracing.trace(Model(net, found, (4,), "", None, skipped), x)
    batch = Calibration(x, torch.zeros(6), [str(i) for i in range(6)], inputs="quantized")
    collected = layer_statistics.collect(model, batch, batch_size=None, positions=1.0, seed=0)
    config = compose("quantizer=gptq", "bits=3")[0]
    quantize, fit = build(config["quantizer"], "quantizer"), build(config["grid"], "grid")
    made = quantize(
        Problem(model, batch, collected, fit, {layer.name: 3 for layer in model.layers})
    )
    X = torch.cat([own[0] for part in x.split(2) for own in fed(net, "shared", part)], 1).double()
    assert X.shape[1] == 2 * sum(numbers)
    W, Q = (own.shared.weight.detach().double() for own in (net, made.net))
    error = float(((W - Q) @ X).square().sum() / (W @ X).square().sum())
    assert made.layers["shared"].report["relative_error"] == pytest.approx(error, rel=1e-3)


class Changing(nn.Module):
    """Calls a layer twice; what it was fed first is changed in place before the second call."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)

    def forward(self, x):
        x = x.clone()
        x += self.shared(x)
        return self.shared(x)


def test_inputs_changed_in_place_between_calls_are_those_of_each_call(monkeypatch):
    torch.manual_seed(2)
    net, x = Changing().eval(), torch.randn(6, 4)
    (layer,) = model_of(net, (4,)).layers
    monkeypatch.setattr("sq.runtime.batching.ELEMENTS", 2 * 4)
    found = asymmetric.collect(net, net, layer, x)
    X = torch.cat(fed(net, "shared", x), 2).double()
    wanted = 2 * X @ X.mT / X.shape[2]
    assert_within(found.H, wanted, of_gram(wanted, wanted, X.shape[2], torch.float32, DEPTH))


GEOMETRIES = {
    "strided, grouped": nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2),
    "dilated": nn.Conv2d(4, 2, (3, 2), padding=2, dilation=(2, 1)),
    "depthwise, reflected": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4),
    "1-D": nn.Conv1d(4, 2, 3, stride=2, padding=1),
    "linear": nn.Linear(4, 3),
}


def rows(module, x, index):
    """Return input `index` of each group at every position, (G, B, positions): the module with all weight on it."""
    only, O = copy.deepcopy(module), len(module.weight)
    groups = getattr(module, "groups", 1)
    with torch.no_grad():
        only.bias.zero_()
        only.weight.zero_()
        only.weight.view(groups, O // groups, -1)[:, 0, index] = 1
        y = only(x)
    y = (
        y.flatten(1, -2).unsqueeze(1).transpose(1, -1)
        if isinstance(module, nn.Linear)
        else y.flatten(2)
    )
    return y[:, :: O // groups].transpose(0, 1)


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_pairs_of_each_geometry_by_one_weight_at_a_time(kind):
    module = copy.deepcopy(GEOMETRIES[kind]).double()
    (found,), _ = geometry.find(nn.Sequential(module))
    shape = {nn.Linear: (5, 3, 2, 4), nn.Conv1d: (5, 4, 9)}.get(type(module), (5, 4, 8, 7))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Halved(nn.Sequential):
        def forward(self, x):
            return super().forward(0.5 * x + 0.1 * x.roll(1, 0))

    got = asymmetric.collect(Halved(module), nn.Sequential(module), found, x)
    every = range(found.inputs)
    X, Y = (
        torch.stack([rows(module, own, i).flatten(1) for i in every], 1)
        for own in (x, 0.5 * x + 0.1 * x.roll(1, 0))
    )
    torch.testing.assert_close(got.H, 2 * Y @ Y.mT / Y.shape[2])
    torch.testing.assert_close(got.C, 2 * X @ Y.mT / Y.shape[2])


def test_networks_that_call_a_layer_differently_often():
    reference = Twice().eval()
    net = copy.deepcopy(reference)
    net.forward = lambda x: net.middle(net.first(x))
    layer = model_of(reference, (2, 6, 5)).layers[1]
    with pytest.raises(
        SqError,
        match=r"layer middle is called differently once .*: use calibration\.inputs=reference",
    ):
        asymmetric.collect(net, reference, layer, torch.randn(3, 2, 6, 5))
    assert not any(own.get_submodule("middle")._forward_pre_hooks for own in (net, reference))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_name_the_layer(value):
    reference = Twice().eval()
    net = copy.deepcopy(reference)
    with torch.no_grad():
        net.first.bias[0] = value
    layer = model_of(reference, (2, 6, 5)).layers[1]
    with pytest.raises(SqError, match="inputs of layer middle hold NaN or infinity"):
        asymmetric.collect(net, reference, layer, torch.randn(3, 2, 6, 5))


def test_networks_that_are_alike_make_the_ordinary_problem():
    torch.manual_seed(0)
    net = Twice().eval()
    model, x = model_of(net, (2, 6, 5)), torch.randn(9, 2, 6, 5)
    ordinary = layer_statistics.collect(
        model, Batch(x, torch.zeros(9), [""] * 9), batch_size=None, positions=1.0, seed=0
    )
    for layer in model.layers:
        found = asymmetric.collect(copy.deepcopy(net), net, layer, x)
        wanted = ordinary.layers[layer.name]
        bound = of_gram(wanted.hessian, wanted.hessian, wanted.positions, torch.float32, DEPTH)
        assert_within(found.C, found.H, bound)
        assert_within(found.H, wanted.hessian, bound)
