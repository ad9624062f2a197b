"""Label-free scores against closed forms on linear networks, and sums over every output by a loop."""

import pytest
import torch
from sensitivity_problems import images, tricky
from torch import nn

from sq.errors import SqError
from sq.hessian import label_free_scores
from sq.network import geometry, tracing
from sq.types.problem import Model

KNOBS = {"images": 100, "draws": 100, "tolerance": 1e-9, "seed": 0}


def model_of(net, x):
    found, skipped = geometry.find(net.eval())
    return tracing.trace(Model(net, found, tuple(x.shape[1:]), "", None, skipped), x[:1])


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    return model_of(net, torch.zeros(1, 5))


def test_activation_scores_of_a_linear_network(linear):
    x = torch.randn(6, 5)
    found = label_free_scores.activation_scores(linear, x, 100, 0)
    A = linear.layers[1].module.weight.detach()  # outputs by the first layer's
    assert found["0"].tolist() == pytest.approx([float((A.T @ A).diagonal().max())] * 6)
    assert found["1"].tolist() == pytest.approx([1.0] * 6)


def test_weight_scores_of_a_linear_network(linear):
    x = torch.randn(6, 5)
    found, draws = label_free_scores.weight_scores(linear, x, **KNOBS)
    A = linear.layers[1].module.weight.detach()
    square, hidden = x.square().mean(0), linear.net[0](x).detach().square().mean(0)
    torch.testing.assert_close(found["0"], (A.T @ A).diagonal().view(1, 4, 1) * square)
    torch.testing.assert_close(found["1"], hidden.expand(1, 3, 4))
    assert draws == 3  # as many as there are outputs: exact


def by_loop(model, x):
    """Return the same, output by output and image by image; scores of layers' outputs, mean squares by weights."""
    activations, weights = {layer.name: [] for layer in model.layers}, {}
    for image in x.split(1):
        at = []
        hooks = []
        for layer in model.layers:

            def keep(module, args, y, name=layer.name, at=at):
                at.append((name, y))
                return y.clone()

            hooks.append(layer.module.register_forward_hook(keep))
        outputs = model.net(image)
        for hook in hooks:
            hook.remove()
        own = {}
        for value in outputs.flatten():
            by_weights = torch.autograd.grad(
                value, [layer.module.weight for layer in model.layers], retain_graph=True
            )
            for layer, g in zip(model.layers, by_weights, strict=True):
                weights[layer.name] = weights.get(layer.name, 0) + g.square() / len(x)
            for place, g in enumerate(
                torch.autograd.grad(value, [y for _, y in at], retain_graph=True)
            ):
                own[place] = own.get(place, 0) + (
                    g[0].square().flatten(1).mean(1) if g.ndim == 4 else g[0].square()
                )
        for layer in model.layers:
            calls = [
                float(own[place].max()) for place, (name, _) in enumerate(at) if name == layer.name
            ]
            activations[layer.name].append(max(calls))
    return activations, weights


@pytest.fixture(scope="module")
def hard():
    x = images(5)
    return model_of(tricky(5), x), x


def test_network_that_works_in_place_and_calls_layers_twice(hard):
    model, x = hard
    before = [parameter.clone() for parameter in model.net.parameters()]
    activations, weights = by_loop(model, x)
    found = label_free_scores.activation_scores(model, x, 100, 0)
    for name, wanted in activations.items():
        assert min(wanted) > 0, "a dead layer shows nothing"
        assert found[name].tolist() == pytest.approx(wanted, rel=1e-4), name
    given, _ = label_free_scores.weight_scores(model, x, **KNOBS)
    for layer in model.layers:
        wanted = weights[layer.name].reshape(layer.groups, layer.outputs, layer.inputs)
        torch.testing.assert_close(given[layer.name], wanted, rtol=1e-4, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(before, model.net.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.net.parameters())
    assert not any(module._forward_hooks for module in model.net.modules())


class Wide(nn.Module):
    """Raw predictions (B, 6, 4) of every place, by way of layers on three axes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2)
        self.mix = nn.Linear(4, 4)

    def forward(self, x):
        return self.mix(self.conv(x).relu().flatten(2).mT)


def test_raw_predictions_and_linear_layers_over_tokens():
    torch.manual_seed(1)
    x = torch.randn(3, 2, 3, 4)
    model = model_of(Wide(), x)
    found = label_free_scores.activation_scores(model, x, 24, 0)
    assert found["mix"].tolist() == pytest.approx([1.0] * 3)
    A = model.net.mix.weight.detach()
    live = (model.net.conv(x) > 0).flatten(2)  # (B, 4, 6)
    wanted = ((A.T @ A).diagonal().view(1, 4, 1) * live).mean(2).amax(1)
    assert found["conv"].tolist() == pytest.approx(wanted.tolist())


def test_random_vectors_are_unbiased_by_weights(hard):
    model, x = hard
    exact, _ = label_free_scores.weight_scores(model, x, **KNOBS)
    several = [
        label_free_scores.weight_scores(model, x, **KNOBS | {"draws": 2, "seed": seed})
        for seed in range(100)
    ]
    assert {draws for _, draws in several} == {2}
    for name, wanted in exact.items():
        drawn = torch.stack([own[name].sum((0, 2)) for own, _ in several]).double()
        error = drawn.std(0) / len(drawn) ** 0.5
        assert (error > 0).any()
        assert ((drawn.mean(0) - wanted.sum((0, 2))).abs() <= 4.5 * error + 1e-9).all(), name


def test_random_vectors_are_unbiased_by_outputs():
    torch.manual_seed(2)
    # One channel: no largest is taken, which would be above the mean of the estimates.
    net = nn.Sequential(nn.Conv2d(2, 1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 5))
    x = torch.randn(3, 2, 3, 3)
    model = model_of(net, x)
    exact = label_free_scores.activation_scores(model, x, 5, 0)["0"]
    drawn = torch.stack(
        [label_free_scores.activation_scores(model, x, 4, seed)["0"] for seed in range(400)]
    ).double()
    error = drawn.std(0) / len(drawn) ** 0.5
    assert (error > 0).all()
    assert ((drawn.mean(0) - exact).abs() <= 4.5 * error).all()
    assert (drawn.std(0) / drawn.mean(0) < 0.71).all()  # at most (2 / draws)^1/2 of it


@pytest.mark.parametrize("draws", [2, 100])
def test_what_goes_together_changes_nothing(hard, monkeypatch, draws):
    model, x = hard
    once = label_free_scores.activation_scores(model, x, draws, 7)
    several = label_free_scores.weight_scores(model, x, **KNOBS | {"draws": draws})[0]
    monkeypatch.setattr(
        label_free_scores.batching,
        "images_per_pass",
        lambda *_: 2 * label_free_scores.SECOND_ORDER_MEMORY,
    )
    monkeypatch.setattr("sq.network.per_sample_gradients.GRADIENT_ELEMENTS", 1)
    for name, own in label_free_scores.activation_scores(model, x, draws, 7).items():
        torch.testing.assert_close(own, once[name], rtol=1e-5, atol=0)
    for name, own in label_free_scores.weight_scores(model, x, **KNOBS | {"draws": draws})[
        0
    ].items():
        torch.testing.assert_close(own, several[name], rtol=1e-4, atol=1e-8)
    other = label_free_scores.activation_scores(model, x, draws, 8)
    assert torch.equal(other["stem"], once["stem"]) == (draws == 100)


def test_it_stops_once_settled(hard):
    model, x = hard
    loose = label_free_scores.weight_scores(
        model, x.repeat(20, 1, 1, 1), images=100, draws=2, tolerance=1e-9, seed=0
    )[1]
    assert loose == 2
    wide = model_of(nn.Sequential(nn.Flatten(), nn.Linear(98, 300)), x)
    settled = [
        label_free_scores.weight_scores(wide, x, images=5, draws=250, tolerance=t, seed=0)[1]
        for t in (10.0, 0.5, 0.2)
    ]
    assert settled[0] == label_free_scores.monte_carlo.MIN_DRAWS
    assert settled[0] < settled[1] < settled[2] < 250


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x), x


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: label_free_scores.activation_scores(m, x, 4, 0),
        lambda m, x: label_free_scores.weight_scores(m, x, **KNOBS),
    ],
)
def test_network_that_returns_no_tensor_is_refused(call):
    x = torch.randn(3, 2)
    with pytest.raises(
        SqError,
        match=r"^Two returns a tuple for one image; .* logits \(images, classes\) or raw pred",
    ):
        call(model_of(Two(), x), x)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(x) + self.table(torch.ones(1, 2))


def test_layer_that_sees_no_images_is_named():
    x = torch.randn(3, 2)
    with pytest.raises(SqError, match=r"^layer table returns \(1, 2\) for 3 images"):
        label_free_scores.activation_scores(model_of(Pooled(), x), x, 4, 0)
