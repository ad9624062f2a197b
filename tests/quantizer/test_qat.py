"""LSQ and ASQ: training while the network computes with quantized weights and inputs."""

from dataclasses import replace
from functools import partial

import grids
import pytest
import torch
from learned_problems import problem
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from sq.activation import insertion
from sq.errors import SqError
from sq.learning.adaptive_step import AdaptiveGrid
from sq.quantizer import qat
from sq.storage.resume import Resume
from sq.training import train as training
from sq.training.quantized_network import QuantizedNetwork
from sq.training.train import Checkpoints, TrainingImages, train
from sq.types.images import Images

RECIPE = {
    "epochs": 2,
    "batch": 8,
    "rate": 0.05,
    "momentum": 0.9,
    "decay": 0.0,
    "crop": None,
    "move": 0,
    "mirror": False,
    "distill": 0.0,
    "temperature": 1.0,
}


class Prepared:
    """Reads the images of a problem again, from where they stand in memory."""

    def __init__(self, x):
        self.x = x

    def __call__(self, image, resized):
        return self.x[image.getpixel((0, 0))]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 2),
    ).eval()


def given(bits=2, activation_bits=3, labels=True, net=None):
    """A problem with 64 training images, whose class is the sign of their mean."""
    made = problem(net or network(), bits=bits, activation_bits=activation_bits)
    x = torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(5))
    y = (x.mean((1, 2, 3)) > 0).long() if labels else torch.full((64,), -1)
    split = Images(
        [f"train/{i}" for i in range(64)], y, lambda place: Image.new("L", (1, 1), place)
    )
    return replace(made, train=split, model=replace(made.model, prepare=Prepared(x)))


def quantize(what, adaptive=False, images=None, seed=0, **recipe):
    own = partial(train, **RECIPE | recipe)
    return qat.quantize(
        what, adaptive=adaptive, images=images, checkpoint_every=3, seed=seed, train=own
    )


def nearest(what):
    """The network with each weight and input at the grid value nearest to it, by hand."""
    from sq.activation import insertion
    from sq.network import geometry

    net = network()
    for layer in what.model.layers:
        W = geometry.weight(layer.module)
        geometry.set_weight(
            net.get_submodule(layer.name),
            what.grid(layer.name, W, what.bits[layer.name]).nearest(W),
        )
    insertion.attach(net, what.activations)
    return net


@pytest.mark.parametrize("adaptive", [False, True])
def test_without_training_all_is_rounded_to_nearest(adaptive):
    what = given()
    made = quantize(what, adaptive, epochs=0)
    assert torch.equal(made.net(what.batch.x), nearest(what)(what.batch.x))


def test_adaptive_steps_start_where_fixed_ones_are_and_go_their_own_way():
    what = given()
    fixed, adaptive = (quantize(what, own, epochs=1) for own in (False, True))
    assert fixed.digest() != adaptive.digest()
    hooks = [hook for m in adaptive.net.modules() for hook in m._forward_pre_hooks.values()]
    grids = [hook.grid for hook in hooks]
    assert len(grids) == 3
    assert all(isinstance(grid, AdaptiveGrid) for grid in grids)
    betas = grids[1].adapter(torch.randn(20, 8, 4, 4))
    assert float(betas.std()) > 0, "samples differ"


@pytest.mark.parametrize("adaptive", [False, True])
def test_what_comes_out_is_what_was_trained(adaptive):
    what = given()
    own = QuantizedNetwork(what, adaptive, seed=0)
    train(own, TrainingImages(None, 0), Checkpoints(Resume(own.quantizers, None), 5), **RECIPE)
    with torch.no_grad(), own.computing():
        wanted = own.net(what.batch.x)
    made = own.finish(seconds=3.0, cpu_seconds=6.0)
    assert torch.equal(made.net(what.batch.x), wanted)
    assert sum(layer.report["solve_seconds"] for layer in made.layers.values()) == pytest.approx(
        3.0
    )
    for name, layer in made.layers.items():
        module = made.net.get_submodule(name)
        assert torch.equal(
            layer.grid.decode(layer.codes).reshape(module.weight.shape), module.weight
        )


@pytest.mark.parametrize("adaptive", [False, True])
def test_training_learns_what_rounding_lost(adaptive):
    what = given()
    made = quantize(what, adaptive, epochs=30, seed=1)
    x, y = what.model.prepare.x, what.train.y
    before, after = (
        float((net(x).argmax(1) == y).double().mean()) for net in (nearest(what), made.net)
    )
    assert before < 0.7
    assert after > 0.9
    curves = made.report["curves"]
    assert len(curves) == 30
    assert curves[-1]["loss"] < 0.6 * curves[0]["loss"]
    assert curves[-1]["top1"] > curves[0]["top1"]


def test_full_precision_alone_can_teach():
    what = given()
    other = replace(what, train=replace(what.train, y=1 - what.train.y))
    one, same = (quantize(own, epochs=20, distill=1.0, temperature=2.0) for own in (what, other))
    assert one.digest() == same.digest(), "labels do not matter then"
    curves = one.report["curves"]
    assert curves[-1]["loss"] < 0.4 * curves[0]["loss"]


def test_full_precision_and_its_gradients_are_left_alone():
    what = given()
    before = {name: value.clone() for name, value in what.model.net.state_dict().items()}
    quantize(what, epochs=1, distill=0.5)
    assert all(
        torch.equal(value, before[name]) for name, value in what.model.net.state_dict().items()
    )
    assert all(p.grad is None for p in what.model.net.parameters())


def test_the_same_seed_trains_the_same_network():
    one, same, other = (
        quantize(given(), True, epochs=1, move=1, mirror=True, seed=seed) for seed in (3, 3, 4)
    )
    assert all(torch.equal(v, same.net.state_dict()[n]) for n, v in one.net.state_dict().items())
    assert one.digest() != other.digest()


class Killed(BaseException):
    pass


def counting(patch, most):
    """Return the list that steps are counted in from now on; the one after `most` stops training."""
    taken, take = [], training._Sgd.step

    def until(self, *step):
        taken.append(step)
        if len(taken) > most:
            raise Killed
        return take(self, *step)

    patch.setattr(training._Sgd, "step", until)
    return taken


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("steps", [4, 8, 11])
def test_resumed_is_as_if_it_had_not_been_interrupted(adaptive, steps, tmp_path, monkeypatch):
    how = {"adaptive": adaptive, "move": 1, "mirror": True, "distill": 0.3}
    whole = quantize(replace(given(), scratch=str(tmp_path / "whole")), **how)
    left = replace(given(), scratch=str(tmp_path))
    with monkeypatch.context() as patch:
        counting(patch, steps)
        with pytest.raises(Killed):
            quantize(left, **how)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    with monkeypatch.context() as patch:
        counted = counting(patch, 1000)
        again = quantize(left, **how)
    assert len(counted) == 16 - steps // 3 * 3, "what was kept is not done again"
    state = again.net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.net.state_dict().items())
    assert again.report["curves"] == whole.report["curves"]
    assert not list(tmp_path.rglob("*.safetensors")), "the state goes when the run is over"


def test_some_of_the_images_are_drawn():
    made = quantize(given(), images=24, epochs=1)
    assert made.report["images"] == 24


def test_steps_are_slowed_and_do_not_decay():
    own = QuantizedNetwork(given(bits=4), False, 0)
    with torch.no_grad(), own.computing():
        own.net(torch.randn(5, 2, 6, 6))
    found = {id(one.parameter): (one.gradient_factor, one.decays) for one in own.groups()}
    weight, fed = own.weights["3"], own.inputs["3"]
    assert found[id(weight.value)] == (1.0, True)
    assert found[id(weight.scale)] == (weight.scale_gradient_factor, False)
    factor, decays = found[id(fed.sigma)]
    largest = max(-float(fed.low), float(fed.high))
    assert factor == pytest.approx((largest * 5 * 8 * 4 * 4) ** -0.5 / float(fed.scale) ** 2)
    assert not decays
    assert id(own.net[3].weight) not in found, "another takes its place"
    assert id(own.net[1].weight) in found


@pytest.mark.parametrize(
    ("what", "recipe", "message"),
    [
        (lambda: replace(given(), train=None), {}, "no training images"),
        (lambda: given(labels=False), {}, "training takes images with class labels"),
        (given, {"batch": 65}, "64 training images are fewer than a batch of 65"),
        (
            given,
            {"rate": 1e30},
            "the loss is (nan|inf) at step .* of epoch .*: lower quantizer.train.rate",
        ),
        (
            lambda: given(activation_bits=None),
            {"adaptive": True},
            "adaptive steps need quantized inputs",
        ),
    ],
)
def test_bad_input_is_one_line(what, recipe, message):
    with pytest.raises(SqError, match=message) as caught:
        quantize(what(), **recipe)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["uniform", "post"])
@pytest.mark.parametrize("adaptive", [False, True, "static"])
def test_scales_stay_above_zero_whatever_the_rate(adaptive, kind, capsys):
    made = quantize(replace(given(bits=3), fit=grids.fit(kind)), adaptive, epochs=3, rate=2.0)
    assert all(bool((layer.grid.scale > 0).all()) for layer in made.layers.values())
    fed = insertion.attached(made.net)
    assert len(fed) == 3
    assert all(float(grid.scale) > 0 for grid in fed.values())
    assert "ended at their lower limit, 0.001 of the first" in capsys.readouterr().err


def test_usual_rates_are_not_told_of(capsys):
    quantize(given(), epochs=1, rate=0.01)
    assert "lower limit" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["uniform", "post"])
def test_what_diverged_is_not_kept(kind, tmp_path):
    what = replace(given(bits=3), fit=grids.fit(kind), scratch=str(tmp_path))
    with pytest.raises(SqError, match=r"training: .* of epoch .*: lower quantizer\.train\.rate"):
        quantize(what, epochs=9, rate=1e30)
    for file in tmp_path.rglob("*.safetensors"):
        assert all(bool(torch.isfinite(value).all()) for value in load_file(file).values())


def dropping():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 2)
    ).eval()


def test_what_the_network_draws_follows_from_the_step(tmp_path, monkeypatch):
    one = quantize(given(net=dropping()), epochs=2)
    torch.manual_seed(99)
    assert quantize(given(net=dropping()), epochs=2).digest() == one.digest()
    before = torch.random.get_rng_state()
    again = interrupted(
        replace(given(net=dropping()), scratch=str(tmp_path)), 8, monkeypatch, epochs=2
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.report["steps_before_interruption"] > 0
    assert again.digest() == one.digest()
    assert again.report["curves"] == one.report["curves"]


def interrupted(what, steps, monkeypatch, other=None, **how):
    """Stop training after so many steps, take it up, of the `other` problem if there is one; return what that made."""
    with monkeypatch.context() as patch:
        counting(patch, steps)
        with pytest.raises(Killed):
            quantize(what, **how)
    return quantize(other or what, **how)


def test_other_training_data_do_not_take_up_what_was_left(tmp_path, monkeypatch):
    what = replace(given(), scratch=str(tmp_path))
    same = interrupted(what, 8, monkeypatch)
    assert same.report["steps_before_interruption"] == 6
    others = (
        replace(what.train, y=1 - what.train.y),
        replace(what.train, ids=[f"x{i}" for i in range(64)]),
    )
    for split in others:
        made = interrupted(what, 8, monkeypatch, replace(what, train=split))
        assert made.report["steps_before_interruption"] == 0


def test_how_far_steps_adapt_is_told():
    made = quantize(given(), True, epochs=3)
    static = quantize(given(), "static", epochs=3)
    assert list(made.report["betas"]) == list(static.report["betas"]) == ["0", "3", "5"]
    assert all(spread > 0 for _, spread in made.report["betas"].values())
    for mean, spread in static.report["betas"].values():
        assert spread == pytest.approx(0, abs=1e-6)
        assert abs(mean - 1) > 1e-4
    assert "betas" not in quantize(given(), epochs=1).report


def test_static_steps_learn_a_number_alone():
    own = QuantizedNetwork(given(), "static", 0)
    with torch.no_grad(), own.computing():
        own.net(torch.randn(5, 2, 6, 6))
    trained = {id(one.parameter) for one in own.groups()}
    for fed in own.inputs.values():
        learned = [name for name, p in fed.adapter.named_parameters() if id(p) in trained]
        assert learned == ["last.bias"]
        assert not fed.adapter.last.weight.any()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x), x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda own: replace(own, train=replace(own.train, y=own.train.y + 4)),
            "have a class 5, the network has 2",
        ),
        (lambda own: replace(own, model=replace(own.model, net=Pair())), "Pair returns no logits"),
        (
            lambda own: replace(own, model=replace(own.model, net=network()[:3])),
            "Sequential returns no logits",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(change, message, monkeypatch):
    monkeypatch.setattr(training, "choose", lambda *_: pytest.fail("begun"))
    with pytest.raises(SqError, match=message) as caught:
        quantize(change(given()))
    assert len(str(caught.value).splitlines()) == 1
