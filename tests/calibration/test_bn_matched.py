"""Images that match BatchNorm statistics."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from sq.calibration import bn_matched
from sq.calibration.synthesis import inversion
from sq.errors import SqError
from sq.model import digits_resnet
from sq.network import batchnorm_folding, batchnorm_statistics
from sq.storage.store import NOWHERE, Store
from sq.types.problem import Model

SEARCH = {
    "batch": 32,
    "steps": 80,
    "lr": 0.1,
    "slope": 1.0,
    "grey": 0.0,
    "contrast": 0.25,
    "jitter": 0.0,
}
SEARCH |= {"flips": False, "tries": 1}


def draw(model, store=NOWHERE, steps=80, images=32, seed=0):
    search = partial(inversion.search, **SEARCH | {"steps": steps})
    return bn_matched.draw(
        model, None, store, images=images, seed=seed, inputs="reference", search=search
    )


@pytest.fixture(scope="module")
def made(resnet):
    return draw(resnet)


def distance(model, x):
    with torch.no_grad():
        return float(batchnorm_statistics.forward_with_distance(model.net, x)[1])


def test_far_nearer_than_noise(resnet, made):
    noise = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    assert distance(resnet, made.x) < distance(resnet, noise) / 20
    assert made.made["bn_distance"] == pytest.approx(distance(resnet, made.x), rel=1e-4)


def test_nearly_as_near_as_data(resnet, made, digits_train):
    assert distance(resnet, made.x) < 2 * distance(resnet, digits_train.x[:32])


def test_unlabelled_within_the_span_and_named(made):
    assert made.y.tolist() == [-1] * 32
    assert made.y.dtype == torch.int64
    assert -1 <= float(made.x.min()) < float(made.x.max()) <= 1
    assert made.ids[0] == "bn_matched/0/0"


def test_the_seed_decides(resnet):
    a, b, c = (draw(resnet, steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.x, b.x)
    assert (a.x - c.x).abs().mean() > 0.1


def test_kept_for_other_runs(resnet, tmp_path):
    kept = Store(str(tmp_path), 1.0)
    first, again = draw(resnet, kept, steps=2), draw(resnet, kept, steps=2)
    assert (first.made["cached"], again.made["cached"]) == (False, True)
    assert torch.equal(first.x, again.x)


def test_images_differ_from_each_other(made):
    flat = made.x.flatten(1)
    assert torch.pdist(flat).min() > 0.2 * torch.pdist(flat).mean()


def test_detectors_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    model = Model(
        net, [], (3, 16, 16), "", None, decode=lambda raw: (raw, raw), span=((0.0,), (1.0,))
    )
    found = draw(model, images=4, steps=20)
    assert found.x.shape == (4, 3, 16, 16)
    assert found.made["bn_distance"] < distance(model, torch.rand(4, 3, 16, 16))


def test_networks_without_batchnorm_are_refused_with_the_way_out():
    folded = digits_resnet.load(weights=None, expected=None)
    batchnorm_folding.fold(folded.net, torch.zeros(1, 1, 8, 8))
    plain = Model(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), [], (1, 2, 2), "", None)
    for model in (folded, plain, replace(folded, decode=lambda raw: (raw, raw))):
        with pytest.raises(
            SqError, match=r"calibration=bn_matched .* has none .* calibration=generated"
        ) as refused:
            draw(model)
        assert "\n" not in str(refused.value)
