"""Rewritten networks, quantized: they are what the same networks are, written with plain layers by hand."""

import copy

import numpy as np
import pytest
import timm
import torch
from cli_helpers import call, records
from PIL import Image
from safetensors.torch import save_file
from timm.layers import Linear as TimmLinear
from timm.layers import StdConv2d
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.resnetv2 import ResNetV2
from tolerances import assert_near, of_layers
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

import sq
from sq.export import onnx_export, onnx_session
from sq.network import plain_layers


def standardised(weight, eps=1e-6):
    flat = weight.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (
        flat.var(1, unbiased=False, keepdim=True) + eps
    ).sqrt()
    return flat.view_as(weight)


def by_hand(net, kind, make):
    """Return a copy of `net` with `make(module)` in the place of each module of class `kind`."""
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for key, child in parent.named_children():
            if type(child) is kind:
                setattr(parent, key, make(child))
    return net


def as_linear(module):
    made = nn.Linear(module.in_features, module.out_features)
    made.load_state_dict(module.state_dict())
    return made


def as_convolution(module):
    settings = {"stride": module.stride, "padding": module.padding, "bias": module.bias is not None}
    made = nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size, **settings)
    made.load_state_dict(module.state_dict())
    made.weight.data = standardised(module.weight.data)
    return made


class ByHand(nn.Module):
    """Self-attention with two linear layers."""

    def __init__(self, source):
        super().__init__()
        self.heads = source.num_heads
        self.qkv = nn.Linear(source.embed_dim, 3 * source.embed_dim)
        self.qkv.weight.data, self.qkv.bias.data = (
            source.in_proj_weight.data,
            source.in_proj_bias.data,
        )
        self.out = as_linear(source.out_proj)

    def forward(self, query, key, value, need_weights=False):
        q, k, v = self.qkv(query).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), None


def lcnet():
    net = timm.create_model("lcnet_035", pretrained=False, num_classes=10).eval()
    return net, by_hand(net, TimmLinear, as_linear), 0.99999


def bit():
    net = ResNetV2((1, 1), (128, 128), num_classes=10, stem_chs=32, conv_layer=StdConv2d).eval()
    return net, by_hand(net, StdConv2d, as_convolution), 0.99999


def vit():
    net = VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10).eval()
    nn.init.normal_(net.heads.head.weight)
    return net, by_hand(net, nn.MultiheadAttention, ByHand), 0.96


def repvgg():
    blocks = tuple(ByoBlockCfg("rep", d=1, c=c, s=2, gs=0) for c in (8, 16))
    net = ByobNet(ByoModelCfg(blocks, stem_type="rep", stem_chs=8), num_classes=10).eval()
    return net, timm.utils.reparameterize_model(net), 0.99999


class Swinlike(nn.Module):
    """Reads the weight of a layer that it does not call, as BEiT and Swin do."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 10)
        self.qkv, self.bias = nn.Linear(16, 48, bias=False), nn.Parameter(torch.randn(16))

    def forward(self, x):
        bias = torch.cat([self.bias, torch.zeros(16), self.bias])
        q, k, v = F.linear(self.stem(x).flatten(2).mT, self.qkv.weight, bias).chunk(3, -1)
        return self.head(((q @ k.mT).softmax(-1) @ v).mean(1))


def swin():
    class Calling(Swinlike):
        def forward(self, x):
            q, k, v = self.qkv(self.stem(x).flatten(2).mT).chunk(3, -1)
            return self.head(((q @ k.mT).softmax(-1) @ v).mean(1))

    net, twin = Swinlike().eval(), Calling().eval()
    twin.load_state_dict(net.state_dict())
    twin.qkv.bias = nn.Parameter(torch.cat([net.bias.data, torch.zeros(16), net.bias.data]))
    return net, twin, 0.99999


class Override(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, standardised(weight), bias)


def overriding():
    def built(kind):
        return nn.Sequential(
            kind(3, 8, 3, 2), nn.ReLU(), kind(8, 16, 3, 2), nn.Flatten(), nn.Linear(784, 10)
        ).eval()

    net = built(Override)
    return net, by_hand(net, Override, as_convolution), 0.99999


@pytest.mark.parametrize("family", [lcnet, bit, vit, repvgg, swin, overriding])
def test_quantized_as_the_network_of_plain_layers_is(family):
    torch.manual_seed(0)
    net, twin, share = family()
    x = torch.randn(8, 3, 32, 32)
    settings = {"quantizer": "rtn", "bits": 4}
    more = ["activation=minmax", "activation.bits=8", "correction=none"]
    with torch.no_grad():
        wanted = net(x)
        assert_near(twin(x), wanted, of_layers(net, x.dtype))
        made, right = (
            sq.quantize(net, x, *more, **settings),
            sq.quantize(twin, x, *more, **settings),
        )
        assert made.sq_coverage.share >= share
        # Codes of weights and inputs are alike but for ties, which rounding of the last bit may
        # move.
        apart = float((made(x) - right(x)).norm() / (right(x) - wanted).norm())
        error = float((right(x) - wanted).norm() / wanted.norm())
        assert torch.equal(net(x), wanted), "the caller's network stays as it is"
    assert 0 < error < 0.6
    assert apart < 0.1


@pytest.fixture
def photos(tmp_path):
    """Return a folder of images of two classes, four of each for training and for evaluation."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("a", "b"):
            folder = tmp_path / "photos" / split / kind
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("export", ["packed", "onnx"])
@pytest.mark.parametrize("name", ["test_nfnet", "mobilenetv3_small_050"])
def test_runs_and_their_files(name, export, photos, tmp_path):
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False, num_classes=2).eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    words = ["model=checkpoint", f"model.constructor=timm/{name}", "+model.arguments.num_classes=2"]
    words += [f"model.weights={tmp_path / 'net.safetensors'}", "model.data.input_size=[3,32,32]"]
    words += ["dataset=image_folder", f"dataset.root={photos}", "calibration.images=4", "workers=0"]
    done = call(tmp_path, *words, f"export={export}", "fold=true", "bits=8")
    assert done.returncode == 0, done.stderr
    assert "rewritten as plain layers: " in done.stderr
    (made,) = records(tmp_path)
    assert made["coverage"]["share"] > 0.999
    assert made["coverage"]["rewritten"]
    assert made["coverage"]["weights"] == made["coverage"]["quantized"] + sum(
        left["weights"] for left in made["coverage"]["left_out"]
    )
    assert made["export"]["figures"]["top1"] == made["results"]["top1"]
    if export == "packed":
        again = sq.load(tmp_path / "outputs" / made["export"]["file"])
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert float((again(x) - net(x)).norm() / net(x).norm()) < 0.2


@pytest.mark.parametrize("family", [vit, swin])
def test_rewritten_networks_as_onnx(family):
    torch.manual_seed(0)
    net = family()[0]
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        wanted = net(x)
        rewritten, result = plain_layers.rewrite(net, x[:1])
    assert result.changes
    session = onnx_session.Session(onnx_export.exported(rewritten, x).SerializeToString())
    assert_near(torch.as_tensor(session(x)), wanted, of_layers(net, x.dtype))
