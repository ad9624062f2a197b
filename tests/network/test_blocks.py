"""Units: residual blocks as a pass shows them, and lists of blocks that cannot be."""

import importlib.util
from dataclasses import replace

import pytest
import timm
import torch
from cli_helpers import compose
from sensitivity_problems import tricky
from torch import nn

from sq.config.instantiate import build
from sq.errors import SqError
from sq.model.cifar_resnet import CifarResNet
from sq.network import batchnorm_folding, blocks, geometry, tracing
from sq.types.problem import Model


def settled(net, *shape):
    found, skipped = geometry.find(net.eval())
    return tracing.trace(Model(net, found, shape, "", None, skipped), torch.randn(1, *shape))


def found(model, named=None):
    x = torch.randn(1, *model.input)
    made = blocks.find(model, x, named)
    # Whatever they are: each layer is in one unit, in the order of execution, and the module is the
    # one of that name.
    assert sorted(layer.name for unit in made for layer in unit.layers) == sorted(
        own.name for own in model.layers
    )
    assert all(unit.module is model.net.get_submodule(unit.name) for unit in made)
    assert all(unit.layers == sorted(unit.layers, key=model.layers.index) for unit in made)
    firsts = [model.layers.index(unit.layers[0]) for unit in made]
    assert firsts == sorted(firsts)
    return {
        unit.name: [layer.name.removeprefix(f"{unit.name}.") for layer in unit.layers]
        for unit in made
    }


def test_resnet_20_is_nine_blocks_a_stem_and_a_linear_layer():
    blocks = {
        f"layer{stage}.{place}": ["conv1", "conv2"] for stage in (1, 2, 3) for place in (0, 1, 2)
    }
    model = settled(CifarResNet(20), 3, 32, 32)
    assert found(model) == {"conv1": ["conv1"], **blocks, "linear": ["linear"]}
    hooked = [
        module
        for module in model.net.modules()
        if module._forward_pre_hooks or module._forward_hooks
    ]
    assert hooked == []


def test_folding_leaves_blocks_as_they_are():
    model = settled(CifarResNet(20), 3, 32, 32)
    before = found(model)
    batchnorm_folding.fold(model.net, torch.randn(2, 3, 32, 32))
    assert found(settled(model.net, 3, 32, 32)) == before


def test_digits_network(resnet):
    made = found(tracing.trace(resnet, torch.randn(1, *resnet.input)))
    residual = {0: ["body.0.0", "body.1.0"], 1: ["body.0.0", "body.1.0", "body.2.0", "shortcut.0"]}
    residual |= {place: ["body.0.0", "body.1.0", "shortcut.0"] for place in (3, 4)}
    separable = {f"blocks.2.{place}.0": [f"blocks.2.{place}.0"] for place in range(8)}
    assert {
        name: own for name, own in made.items() if name.count(".") == 1 and name != "stem.0"
    } == {f"blocks.{place}": own for place, own in residual.items()}
    assert set(made) == {"stem.0", "head", *(f"blocks.{place}" for place in residual), *separable}


def test_inverted_residuals_without_a_shortcut_are_blocks_too():
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    made = found(settled(net, 3, 64, 64))
    blocks = {name for name, own in made.items() if len(own) > 1}
    inverted = {
        name for name, module in net.named_modules() if type(module).__name__ == "InvertedResidual"
    }
    assert blocks == inverted
    assert len(blocks) == 15
    assert {name for name in made if name not in blocks} == {
        *("conv_stem", "blocks.0.0.conv_dw", "blocks.0.0.conv_pw", "conv_head", "classifier")
    }


@pytest.mark.parametrize(
    ("name", "kind", "blocks"),
    [
        ("resnet50", "Bottleneck", 16),
        ("regnetx_006", "Bottleneck", 16),
        ("mobilenetv2_100", "InvertedResidual", 16),
        ("vit_tiny_patch16_224", "Block", 12),
        ("convnext_atto", "ConvNeXtBlock", 12),
    ],
)
def test_networks_of_timm(name, kind, blocks):
    net = timm.create_model(
        name, pretrained=False, **({"img_size": 32} if name.startswith("vit") else {})
    )
    made = found(settled(net, 3, 32, 32))
    found_kinds = {
        type(net.get_submodule(own)).__name__ for own, members in made.items() if len(members) > 1
    }
    assert found_kinds == {kind}
    assert sum(len(members) > 1 for members in made.values()) == blocks


@pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="ultralytics is not installed"
)
def test_yolov5_bottlenecks():
    from sq.model.yolov5 import YOLOv5

    net = YOLOv5("n")
    made = found(settled(net, 3, 64, 64))
    bottlenecks = {
        name for name, module in net.named_modules() if type(module).__name__ == "Bottleneck"
    }
    # those of the neck do not add
    assert {name for name, own in made.items() if len(own) > 1} == bottlenecks
    assert all(made[name] == ["cv1.conv", "cv2.conv"] for name in bottlenecks)
    assert {"model.24.m.0", "model.24.m.1", "model.24.m.2", "model.2.cv3.conv"} <= set(made)


class Shortcut(nn.Module):
    """x + body(x); with `apart`, a module without layers adds."""

    def __init__(self, *body, apart=False):
        super().__init__()
        self.body = nn.Sequential(*body)
        self.sum = Sum() if apart else None

    def forward(self, x):
        return self.sum(self.body(x), x) if self.sum else self.body(x) + x


class Sum(nn.Module):
    def forward(self, left, right):
        return left.add(right)


class Twice(nn.Sequential):
    def forward(self, x):
        return super().forward(super().forward(x))


def conv():
    return nn.Conv2d(2, 2, 3, padding=1)


@pytest.mark.parametrize("apart", [False, True])
def test_innermost_of_nested_blocks(apart):
    inner = Shortcut(conv(), nn.ReLU(), conv(), apart=apart)
    model = settled(nn.Sequential(conv(), Shortcut(conv(), inner, conv(), apart=apart)), 2, 6, 6)
    assert found(model) == {
        "0": ["0"],
        "1.body.0": ["1.body.0"],
        "1.body.1": ["body.0", "body.2"],
        "1.body.2": ["1.body.2"],
    }


def test_network_itself_is_no_block():
    assert found(settled(Shortcut(conv(), conv()), 2, 6, 6)) == {
        "body.0": ["body.0"],
        "body.1": ["body.1"],
    }


def test_block_called_twice_is_none():
    net = nn.Sequential(Twice(Shortcut(conv(), conv())), Shortcut(conv(), conv()))
    assert list(found(settled(net, 2, 6, 6))) == ["0.0.body.0", "0.0.body.1", "1"]


def test_layer_that_blocks_share_leaves_neither():
    shared = conv()
    net = nn.Sequential(Shortcut(shared, conv()), Shortcut(conv(), shared), Shortcut(conv()))
    assert list(found(settled(net, 2, 6, 6))) == ["0.body.0", "0.body.1", "1.body.0", "2"]


def test_layer_called_twice_within_its_block():
    made = found(settled(tricky(), 2, 7, 7))
    assert made["blocks.0"] == made["blocks.1"] == ["first", "second"]
    assert {"stem", "again", "head"} <= set(made)


def test_network_that_adds_nothing():
    assert list(found(settled(nn.Sequential(conv(), nn.ReLU(), conv()), 2, 6, 6))) == ["0", "2"]


def test_layers_that_stay_in_full_precision_are_in_no_unit():
    model = settled(CifarResNet(20), 3, 32, 32)
    some = replace(model, layers=model.layers[1:-1])
    assert len(found(some)) == 9
    named = ["conv1", "layer1", "layer2", "layer3", "linear"]
    assert list(found(some, named)) == ["layer1", "layer2", "layer3"]


def test_named_blocks_are_taken():
    model = settled(CifarResNet(20), 3, 32, 32)
    made = found(
        model, ["linear", "layer2", "conv1", "layer1", *(f"layer3.{place}" for place in range(3))]
    )
    assert [len(own) for own in made.values()] == [1, 6, 6, 2, 2, 2, 1]
    assert list(made) == ["conv1", "layer1", "layer2", "layer3.0", "layer3.1", "layer3.2", "linear"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["conv1", "layer1", "layer2", "layer3"], r"^blocks: they miss linear: name"),
        ([], r"^blocks: they miss conv1, layer1\.0\.conv1, layer1\.0\.conv2 and 17 more: name"),
        (
            ["conv1", "layer1", "layer2", "layer3", "layer3.1", "linear"],
            r"layer3\.1\.conv1 is in several .*layer3, la",
        ),
        (
            ["conv1", "conv1", "layer1", "layer2", "layer3", "linear"],
            r"layer conv1 is in several of them \(conv1, conv1",
        ),
        (
            ["conv1", "layer1", "layer2", "layer4", "linear"],
            r"'layer4' is no module of CifarResNet; nearest: layer",
        ),
        (["", "conv1"], r"blocks: '' is no module of CifarResNet"),
    ],
)
def test_bad_lists_are_refused_in_a_line(named, message):
    model = settled(CifarResNet(20), 3, 32, 32)
    with pytest.raises(SqError, match=message) as caught:
        blocks.find(model, torch.randn(1, 3, 32, 32), named)
    assert "\n" not in str(caught.value)


def test_named_block_must_be_called_once():
    net = nn.Sequential(Twice(Shortcut(conv(), conv())), conv())
    model = settled(net, 2, 6, 6)
    with pytest.raises(SqError, match=r"blocks: 0\.0 cannot be reconstructed alone"):
        blocks.find(model, torch.randn(1, 2, 6, 6), ["0.0", "1"])
    assert list(found(model, ["0", "1"])) == ["0", "1"]  # what calls it twice is called once
    assert list(found(model, ["0.0.body.0", "0.0.body.1", "1"])) == [
        "0.0.body.0",
        "0.0.body.1",
        "1",
    ]


def test_named_container_that_is_not_called(resnet):
    model = tracing.trace(resnet, torch.randn(1, *resnet.input))
    with pytest.raises(
        SqError, match=r"blocks: blocks\.0\.body is never called itself: name the modules in it"
    ):
        blocks.find(model, torch.randn(1, *resnet.input), ["stem", "blocks.0.body", "head"])


@pytest.mark.parametrize("name", ["resnet20", "efficientnet_lite0", "yolov5n"])
def test_trained_networks(name, needs_data):
    model = build(compose(f"model={name}")[0]["model"], "model")()
    shape = (3, 64, 64) if name == "yolov5n" else model.input
    made = blocks.find(tracing.trace(model, torch.randn(1, *shape)), torch.randn(1, *shape))
    assert (
        sum(len(unit.layers) > 1 for unit in made)
        == {"resnet20": 9, "efficientnet_lite0": 15, "yolov5n": 11}[name]
    )


@pytest.mark.parametrize(
    ("last", "shape", "channels"),
    [
        (nn.Conv2d(2, 8, 1), (2, 8, 4, 4), 8),
        (nn.Linear(2, 8), (2, 5, 8), 8),
        (nn.Linear(2, 8), (2, 3, 4, 8), 8),
        (nn.Linear(2, 8), (2, 8, 4, 4), 8),  # a block that puts them back
        (nn.Linear(2, 8), (2, 8), 8),
        (nn.Linear(2, 3), (2, 8, 4, 4), 8),  # of something beside
    ],
)
def test_channels_of_what_a_unit_returns(last, shape, channels):
    (layer,), _ = geometry.find(nn.Sequential(last))
    assert blocks.ReconstructionUnit("", last, [layer]).channels(torch.empty(shape)) == channels
