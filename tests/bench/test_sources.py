"""Where layers come from: real ones, the shapes of an architecture, or made up."""

import pytest
import torch
from torch import nn

from sq.bench import features, settings
from sq.config.instantiate import build
from sq.errors import SqError
from sq.hessian import layer_statistics
from sq.network import geometry

CPU = torch.device("cpu")
KNOBS = {
    "positions": 4.0,
    "side": 8,
    "decay": 1.0,
    "smoothness": 1.0,
    "shift": 0.5,
    "heterogeneity": 0.5,
}


def cases(name, *overrides, seed=0):
    own = settings.load(name, list(overrides))
    return build(own.source, "source")(seed, CPU)


def draw(module, seed=0, **changes):
    return features.maps(module, torch.Generator().manual_seed(seed), **{**KNOBS, **changes})


def test_every_layer_of_resnet50_is_there_once():
    found = cases("resnet50")
    assert sum(case.count for case in found) == 54
    shapes = [(c.layer.kind, c.layer.groups, c.layer.outputs, c.layer.inputs) for c in found]
    assert len(set(shapes)) == len(shapes) == 21
    count = dict(zip(shapes, (case.count for case in found), strict=True))
    assert count["7x7", 1, 64, 147] == count["linear", 1, 1000, 2048] == 1
    assert count["3x3", 1, 512, 4608] == 3
    assert max(case.layer.inputs for case in found) == 4608
    assert all(case.layer.module.weight.is_meta for case in found)


@pytest.mark.parametrize("name", ["conv1", "layer1.0.conv2", "layer1.0.conv1"])
def test_made_up_layers(name):
    (case,) = cases("resnet50", f"source.layers=[{name}]")
    W, H = case.make()
    layer = case.layer
    assert W.shape == (layer.groups, layer.outputs, layer.inputs)
    assert H.shape == (layer.groups, layer.inputs, layer.inputs)
    assert (W.dtype, H.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(H, H.mT)
    assert torch.linalg.eigvalsh(H)[0, 0] > -1e-6 * H.diagonal(dim1=1, dim2=2).mean()
    assert 0.5 < W.std() * layer.inputs**0.5 < 2
    assert layer.module.weight.is_meta, "weights are freed"
    again, same = case.make()
    assert torch.equal(W, again)
    assert torch.equal(H, same)


def test_a_layer_does_not_depend_on_the_others_but_on_the_seed():
    alone = cases("resnet50", "source.layers=[conv1]")[0].make()
    (among, _) = cases("resnet50", "source.layers=[conv1,layer1.0.conv1]")
    assert all(torch.equal(a, b) for a, b in zip(alone, among.make(), strict=True))
    other = cases("resnet50", "source.layers=[conv1]", seed=1)[0].make()
    assert not torch.equal(alone[0], other[0])
    assert not torch.equal(alone[1], other[1])


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_grouped_layers_have_inputs_too(groups):
    module = nn.Conv2d(8, 16, 3, stride=2, groups=groups, padding=1)
    x = draw(module)
    assert x.shape[1:] == (8, 8, 8)
    X = geometry.inputs(module, x)
    assert X.shape[:2] == (groups, 72 // groups)
    assert X.shape[2] >= 4 * 72 // groups


def test_linear_layers():
    x = draw(nn.Linear(20, 3))
    assert x.shape[1] == 20
    assert len(x) >= 80


def test_rectified_channels_differ_by_heterogeneity():
    module = nn.Conv2d(64, 8, 1)

    def spread(heterogeneity):
        x = draw(module, positions=50.0, shift=0.0, heterogeneity=heterogeneity)
        assert x.min() == 0
        return x.square().mean((0, 2, 3)).sqrt().log().std()

    assert spread(0.0) < 0.15
    assert spread(1.0) == pytest.approx(1.0, abs=0.3)


def test_spectrum_decays_and_neighbours_are_alike():
    module = nn.Conv2d(32, 8, 1)

    def top(decay):
        x = (
            draw(module, positions=50.0, decay=decay, shift=0.0, heterogeneity=0.0)
            .transpose(0, 1)
            .flatten(1)
        )
        eigenvalues = torch.linalg.eigvalsh(x.cov())
        return eigenvalues[-1] / eigenvalues.sum()

    assert top(0.0) < 0.15 < top(1.0) < top(2.0)

    def alike(smoothness):
        x = draw(module, positions=50.0, smoothness=smoothness, shift=0.0, heterogeneity=0.0)
        a, b = x[..., :-1].flatten(), x[..., 1:].flatten()
        return torch.stack([a, b]).corrcoef()[0, 1]

    assert abs(alike(0.0)) < 0.1
    assert 0.4 < alike(1.0) < alike(2.0)


def test_weights_have_heavy_tails():
    def kurtosis(tail):
        W = features.heavy_tailed(
            torch.Size([400, 400]), torch.Generator().manual_seed(0), tail=tail
        )
        return (W**4).mean() / (W**2).mean() ** 2

    assert kurtosis(5) > 1.5 * kurtosis(100) > 4


def test_bad_knobs_and_layers():
    for name, value in (
        ("side", 0),
        ("decay", -1.0),
        ("smoothness", -1.0),
        ("heterogeneity", -0.1),
        ("shift", -1.0),
    ):
        with pytest.raises(SqError, match=r"source\.inputs"):
            draw(nn.Conv2d(2, 2, 1), **{name: value})
    with pytest.raises(SqError, match="side=2: too few pixels"):
        draw(nn.Conv2d(2, 2, 5), side=2)
    with pytest.raises(SqError, match="made up for a Conv1d"):
        draw(nn.Conv1d(2, 2, 1))


def test_network_gives_real_layers(resnet, digits):
    from sq.calibration import subset

    found = cases("digits", "source.layers=[stem.0,head]", 'source.calibration="subset images=32"')
    assert [case.layer.name for case in found] == ["stem.0", "head"]
    batch = subset.draw(resnet, digits, images=32, seed=0, inputs="reference")
    wanted = layer_statistics.collect(resnet, batch, positions=1.0, seed=0, batch_size=256)
    for case in found:
        W, H = case.make()
        assert case.count == 1
        assert torch.equal(W, geometry.weight(resnet.net.get_submodule(case.layer.name)))
        assert torch.equal(H, wanted.layers[case.layer.name].hessian)


def test_synthetic_is_one_layer_of_the_size_asked_for():
    (case,) = cases("synthetic", "source.outputs=6", "source.inputs=36")
    W, H = case.make()
    assert W.shape == (1, 6, 36)
    assert H.shape == (1, 36, 36)
