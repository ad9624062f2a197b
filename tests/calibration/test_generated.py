"""Images of given classes, made by the network alone."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from sq.calibration import generated
from sq.calibration.synthesis import image_request, inversion
from sq.errors import SqError
from sq.network import batchnorm_statistics
from sq.storage.store import NOWHERE, Store
from sq.types.problem import Model


@pytest.fixture(autouse=True)
def _few_steps_suffice(monkeypatch):
    monkeypatch.setattr(image_request, "MAX_REFUSED_SHARE", 1.0)


SEARCH = {
    "batch": 20,
    "steps": 60,
    "lr": 0.1,
    "slope": 1.0,
    "grey": 0.0,
    "contrast": 0.25,
    "jitter": 0.0,
}
SEARCH |= {"flips": False, "tries": 4}
KNOBS = {
    "images": 50,
    "seed": 0,
    "inputs": "quantized",
    "confidence": 0.8,
    "tv": 0.0,
    "l2": 0.0,
    "bn_weight": 0.0,
}


def draw(model, store=NOWHERE, steps=60, tries=4, **knobs):
    search = partial(inversion.search, **SEARCH | {"steps": steps, "tries": tries})
    return generated.draw(model, None, store, search=search, **KNOBS | knobs)


@pytest.fixture(scope="module")
def made(resnet):
    return draw(resnet)


def probabilities(model, batch):
    with torch.no_grad():
        return model.net(batch.x).softmax(1)


def test_the_network_sees_the_classes_asked_for(resnet, made):
    found = probabilities(resnet, made)
    agreement = (found.argmax(1) == made.y).double().mean()
    assert agreement >= 0.98
    assert made.made["agreement"] == pytest.approx(float(agreement))


def test_every_class_as_often(made):
    assert made.y.bincount().tolist() == [5] * 10
    assert made.y[:10].sort().values.tolist() == list(range(10))
    assert made.y[:10].tolist() != made.y[10:20].tolist()


def test_the_network_is_not_over_confident(resnet, made):
    own = probabilities(resnet, made).gather(1, made.y[:, None])
    assert float(own.mean()) == pytest.approx(0.8, abs=0.05)
    assert float(own.median()) == pytest.approx(0.8, abs=0.01)
    assert float(own.max()) < 0.99
    assert made.made["confidence"] == pytest.approx(float(own.mean()), abs=1e-5)
    assert made.made["loss"] == pytest.approx(float(-own.log().mean()), abs=1e-5)
    sure = draw(resnet, confidence=0.999, images=20)
    assert float(probabilities(resnet, sure).gather(1, sure.y[:, None]).median()) > 0.9


def test_nor_is_it_where_images_are_moved_meanwhile(resnet):
    search = partial(
        inversion.search, **SEARCH | {"jitter": 0.125, "flips": True, "batch": 30, "tries": 1}
    )
    moved = generated.draw(resnet, None, search=search, **KNOBS | {"images": 30})
    own = probabilities(resnet, moved).gather(1, moved.y[:, None])
    assert float(own.median()) == pytest.approx(0.8, abs=0.02)


def test_values_are_those_of_images(made):
    assert made.x.shape == (50, 1, 8, 8)
    assert made.x.dtype == torch.float32
    assert -1 <= float(made.x.min()) < -0.9
    assert 0.9 < float(made.x.max()) <= 1


@pytest.mark.one_arithmetic("a search of many steps: its loss and gradient are tested alone")
def test_the_seed_decides_and_global_random_state_does_not(resnet, made):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = draw(resnet)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.x, made.x)
    assert torch.equal(again.y, made.y)
    assert again.made["digest"] == made.made["digest"]
    other = draw(resnet, seed=1, steps=1)
    first = draw(resnet, steps=1)
    assert not torch.equal(other.y, first.y)
    assert (other.x - first.x).abs().mean() > 0.1
    assert not set(other.ids) & set(made.ids)


@pytest.mark.one_arithmetic("a search of many steps: its loss and gradient are tested alone")
def test_images_that_miss_their_class_are_begun_anew(resnet, made):
    once = draw(resnet, tries=1)
    assert once.made["agreement"] < made.made["agreement"]
    reached = probabilities(resnet, once).argmax(1) == once.y
    assert torch.equal(once.x[reached], made.x[reached])
    assert not any(
        torch.equal(a, b) for a, b in zip(once.x[~reached], made.x[~reached], strict=True)
    )


def test_batches_stand_for_themselves(resnet):
    few, more = (draw(resnet, steps=2, tries=1, images=images) for images in (20, 40))
    assert torch.equal(few.x, more.x[:20])
    assert not torch.equal(more.x[:20], more.x[20:])


def test_ids_say_what_they_are(made):
    assert made.ids[:2] == ["generated/0/0", "generated/0/1"]
    assert len(set(made.ids)) == 50
    assert (made.inputs, made.left_out) == ("quantized", ())


def test_the_network_is_left_as_it_was(resnet, made):
    assert all(p.grad is None for p in resnet.net.parameters())
    assert not any(module._forward_pre_hooks for module in resnet.net.modules())


def test_kept_for_other_runs(resnet, tmp_path, monkeypatch):
    kept = Store(str(tmp_path), 1.0, {"name": "digits"})
    first = draw(resnet, kept, steps=2)
    monkeypatch.setattr(inversion, "FourierImages", lambda *_, **__: pytest.fail("made again"))
    again = draw(resnet, kept, steps=2)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert (first.made["cached"], again.made["cached"]) == (False, True)
    assert {**first.made, "cached": True} == again.made, "what it took is told again"
    assert again.made["seconds"] > 0
    assert draw(resnet, kept, steps=2, inputs="reference").made["cached"], (
        "which does not shape an image"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 1},
        {"images": 30},
        {"confidence": 0.5},
        {"tv": 1.0},
        {"l2": 1.0},
        {"bn_weight": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_shapes_images_makes_other_ones(resnet, tmp_path, change):
    kept = Store(str(tmp_path), 1.0)
    first = draw(resnet, kept, steps=2)
    other = draw(resnet, kept, **{"steps": 2} | change)
    assert not other.made["cached"]
    assert other.made["digest"] != first.made["digest"]


def test_another_network_or_origin_makes_other_ones(resnet, tmp_path):
    draw(resnet, Store(str(tmp_path), 1.0, {"a": 1}), steps=1)
    assert not draw(resnet, Store(str(tmp_path), 1.0, {"a": 2}), steps=1).made["cached"]
    wider = replace(resnet, span=((-2.0,), (2.0,)))
    assert not draw(wider, Store(str(tmp_path), 1.0, {"a": 1}), steps=1).made["cached"]


@pytest.mark.one_arithmetic("a search of many steps: its loss and gradient are tested alone")
def test_weights_do_what_they_are_for(resnet):
    few = {"images": 20, "steps": 30, "tries": 1}
    plain, smooth, faint = (
        draw(resnet, **few),
        draw(resnet, tv=10.0, **few),
        draw(resnet, l2=10.0, **few),
    )
    assert (
        generated.total_variation(smooth.x).mean() < 0.8 * generated.total_variation(plain.x).mean()
    )
    assert faint.x.square().mean() < 0.8 * plain.x.square().mean()


@pytest.mark.one_arithmetic("a search of many steps: its loss and gradient are tested alone")
def test_both_together_keeps_classes_and_matches_statistics(resnet, made):
    both = draw(resnet, bn_weight=50.0, images=20)
    assert both.made["agreement"] >= 0.9
    with torch.no_grad():
        near, far = (
            float(batchnorm_statistics.forward_with_distance(resnet.net, own.x[:20])[1])
            for own in (both, made)
        )
    assert near < far / 3


def test_total_variation_of_known_images():
    # every horizontal neighbour differs by 1
    stripes = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 1, 4, 4)
    ramp = 0.5 * torch.arange(4.0).view(1, 1, 4, 1).expand(1, 2, 4, 6)
    assert generated.total_variation(stripes).tolist() == [1.0]
    assert generated.total_variation(ramp).tolist() == [0.5]
    assert generated.total_variation(torch.full((3, 2, 5, 4), 7.0)).tolist() == [0.0] * 3


def test_log_odds_are_those_of_the_probability_and_keep_their_gradient():
    logits = torch.tensor(
        [[9.0, -9.0, 0.0], [0.5, 0.2, -1.0]], dtype=torch.float64, requires_grad=True
    )
    y = torch.tensor([0, 2])
    own = generated.log_odds(logits, y)
    assert own.tolist() == pytest.approx(torch.logit(logits.softmax(1)[[0, 1], y]).tolist())
    (gradient,) = torch.autograd.grad(own.sum(), logits)
    assert gradient[[0, 1], y].tolist() == [1.0, 1.0], "though p is 0.9999 of the one"
    assert gradient.sum(1).tolist() == pytest.approx([0.0, 0.0])


def test_the_loss_is_its_formula():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x, y = (
        torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0, 1]),
    )
    own = generated.Labelled(net, 0.7, 2.0, 3.0, 0.0).loss(x, y).detach()
    expected = 0.0
    for image, label in zip(x.double(), y, strict=True):
        p = net.double()(image[None]).softmax(1)[0, label]
        tv = (image[0, 1] - image[0, 0]).abs().mean() + (
            image[0, :, 1] - image[0, :, 0]
        ).abs().mean()
        expected += (
            (math.log(0.7 / 0.3) - torch.logit(p)).abs() + 2 * tv + 3 * image.square().mean()
        )
    assert float(own) == pytest.approx(float(expected.detach()), rel=1e-5)


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


def test_no_operation_is_relied_on():
    torch.manual_seed(0)
    found = draw(Model(plain(), [], (3, 8, 8), "", None), images=10)
    assert found.y.bincount().tolist() == [2] * 5
    assert found.made["agreement"] == 1.0
    assert -2 <= float(found.x.min()) < float(found.x.max()) <= 2


def test_statistics_that_are_not_there():
    with pytest.raises(
        SqError, match=r"calibration\.bn_weight.*Sequential has none.*calibration=subset"
    ) as refused:
        draw(Model(plain(), [], (3, 8, 8), "", None), bn_weight=1.0)
    assert "\n" not in str(refused.value)


def test_detectors_are_refused_with_the_way_out(resnet):
    for model in (
        replace(resnet, decode=lambda raw: (raw, raw)),
        Model(nn.Conv2d(3, 4, 3).eval(), [], (3, 8, 8), "", None),
    ):
        with pytest.raises(
            SqError, match=r"calibration=generated .* choose calibration=bn_matched"
        ) as refused:
            draw(model)
        assert "\n" not in str(refused.value)


def test_images_that_blow_up_are_refused():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return (x.flatten(1)[:, :5] * self.weight) / (x.sum() - x.sum())

    with pytest.raises(SqError, match=r"calibration\.search\.lr=0\.1: the images hold NaN"):
        draw(Model(Broken().eval(), [], (3, 8, 8), "", None), images=5, steps=2)
