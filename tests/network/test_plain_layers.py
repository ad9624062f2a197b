"""Networks rewritten into plain layers: what they return stays, and only what is one product is
rewritten.
"""

import copy

import pytest
import timm
import torch
from timm.layers import (
    Conv2dSame,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
)
from timm.layers import Linear as TimmLinear
from tolerances import assert_near, of_layers
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from sq.network import geometry, hooks, plain_layers
from sq.network.attention import Attention
from sq.network.products import Redirected


def standardised(weight):
    """Weight standardisation, arXiv 1903.10520, written out."""
    flat = weight.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (
        flat.var(1, unbiased=False, keepdim=True) + 1e-6
    ).sqrt()
    return flat.view_as(weight)


class ByConvForward(nn.Conv2d):
    """The override that a check of `forward` alone does not see."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, standardised(weight), bias)


class ByForward(nn.Conv2d):
    def forward(self, input):
        return F.conv2d(input, standardised(self.weight), self.bias, self.stride, self.padding)


class Raw(nn.Module):
    """A convolution that is no subclass of one."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3))
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x):
        return F.conv2d(x, self.kernel, self.shift, 2, 1, groups=2)


class Padded(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


def pruned():
    conv = nn.Conv2d(4, 6, 3)
    prune.random_unstructured(conv, "weight", 0.5)
    return conv


def weight_normed():
    with pytest.warns(FutureWarning):
        return torch.nn.utils.weight_norm(nn.Conv2d(4, 6, 3))


def rewritten(module, *shape):
    net = nn.Sequential(module).eval()
    return plain_layers.rewrite(net, torch.randn(1, *shape))


IMAGE = (4, 9, 8)
PLAIN = {
    "timm's linear layer": (lambda: TimmLinear(5, 3), (7, 5), nn.Linear),
    "override of _conv_forward": (lambda: ByConvForward(4, 6, 3, padding=1), IMAGE, nn.Conv2d),
    "override of forward": (lambda: ByForward(4, 6, 3, 2, 1), IMAGE, nn.Conv2d),
    "reflecting": (
        lambda: ByConvForward(4, 6, 3, 2, 2, padding_mode="reflect"),
        IMAGE,
        nn.Conv2d,
    ),
    "same, by name": (lambda: ByConvForward(4, 6, 3, padding="same", dilation=2), IMAGE, nn.Conv2d),
    "padding apart": (lambda: Padded(4, 6, 3, padding=(0, 2)), IMAGE, nn.Conv2d),
    "no subclass": (Raw, IMAGE, nn.Conv2d),
    "StdConv2d": (lambda: StdConv2d(4, 6, 3, 2), IMAGE, nn.Conv2d),
    "StdConv2dSame": (lambda: StdConv2dSame(4, 6, 3, 2), IMAGE, geometry.Conv2dSame),
    "ScaledStdConv2d": (lambda: ScaledStdConv2d(4, 6, 3, groups=2), IMAGE, nn.Conv2d),
    "ScaledStdConv2dSame": (lambda: ScaledStdConv2dSame(4, 6, 5, 2), IMAGE, geometry.Conv2dSame),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 3)), (5,), nn.Linear),
    "weight_norm, by a hook": (weight_normed, IMAGE, nn.Conv2d),
    "spectral_norm": (
        lambda: parametrizations.spectral_norm(nn.Conv1d(4, 6, 3, dilation=2)),
        (4, 9),
        nn.Conv1d,
    ),
    "pruned": (pruned, IMAGE, nn.Conv2d),
}


@pytest.mark.parametrize("name", PLAIN)
def test_module_that_is_one_product_becomes_the_plain_layer(name):
    torch.manual_seed(0)
    make, shape, kind = PLAIN[name]
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    wanted = nn.Sequential(module).eval()
    net, result = rewritten(module, *shape)
    assert type(net[0]) is kind
    assert geometry.is_plain(net[0])
    assert len(result.changes) == 1
    assert result.refused == []
    (layer,), skipped = geometry.find(net)
    assert skipped == []
    larger = (3, shape[0], *(n + 3 for n in shape[1:])) if len(shape) > 2 else (3, *shape)
    for size in ((2, *shape), larger):
        x = torch.randn(size)
        outputs = net(x)
        # through weights that are computed, and with them
        rounding = of_layers(wanted, x.dtype, passes=2)
        assert_near(outputs, wanted(x), rounding)
        flat = (geometry.weight(layer.module) @ geometry.inputs(layer.module, x)).flatten(0, 1)
        flat = flat + (0 if net[0].bias is None else net[0].bias.detach()[:, None])
        own = geometry.channels_second(net[0], outputs).transpose(0, 1).flatten(1)
        assert_near(flat, own, rounding)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 1.001


class Mixing(nn.Module):
    """A convolution whose weight depends on its inputs, as CondConv's and dynamic convolutions do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 6, 4, 3, 3))

    def forward(self, x):
        share = x.mean().sigmoid()
        return F.conv2d(x, share * self.weight[0] + (1 - share) * self.weight[1])


class LowRank(nn.Linear):
    def __init__(self):
        super().__init__(5, 3)
        self.down, self.up = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        return super().forward(x) + F.linear(F.linear(x, self.down), self.up)


class Normalising(nn.Linear):
    def forward(self, x):
        return F.linear(F.normalize(x), self.weight, self.bias)


class Quantizing(nn.Linear):
    """Fake quantization of inputs: equal to a plain layer where inputs are on the grid."""

    def forward(self, x):
        return F.linear(x.round(), self.weight, self.bias)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: Scaled(4, 6, 3), IMAGE),
        (Mixing, IMAGE),
        (LowRank, (5,)),
        (lambda: Normalising(5, 3), (5,)),
        (lambda: Quantizing(5, 3), (5,)),
        (lambda: nn.ConvTranspose2d(4, 6, 3), IMAGE),
    ],
)
def test_module_that_computes_more_stays(make, shape):
    torch.manual_seed(0)
    module = make()
    net, result = rewritten(module, *shape)
    assert net[0] is module
    assert result.changes == []
    assert geometry.find(net)[0] == []


def test_inputs_on_a_grid_do_not_hide_that_a_module_rounds_them():
    module = Quantizing(5, 3)
    net, _ = plain_layers.rewrite(nn.Sequential(module).eval(), torch.ones(1, 5))
    assert net[0] is module


def test_module_that_goes_by_the_number_of_its_inputs_stays():
    class Counting(nn.Linear):
        def forward(self, x):
            y = F.linear(x, self.weight, self.bias)
            return y if len(x) == 1 else 2 * y

    net = nn.Sequential(Counting(6, 4)).eval()
    _, rewritten = plain_layers.rewrite(net, torch.randn(1, 6))
    assert not rewritten.changes


class Bright(nn.Linear):
    """Computes more for images brighter than noise and most images are."""

    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return torch.where(x.mean(1, keepdim=True) > 50, 2 * y, y)


class Crowded(nn.Linear):
    """Computes more for three images at a time."""

    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return 2 * y if len(x) == 3 else y


@pytest.mark.parametrize("kind", [Bright, Crowded])
def test_outputs_are_compared_on_several_images_at_two_batch_sizes(kind):
    torch.manual_seed(0)
    x = torch.randn(6, 5)
    x[2] += 100
    net = nn.Sequential(kind(5, 5), TimmLinear(5, 3)).eval()
    wanted, three = net(x), net(x[:3])
    net, result = plain_layers.rewrite(net, x)
    assert torch.equal(net(x), wanted)
    assert torch.equal(net(x[:3]), three)
    assert [type(own) for own in net] == [kind, nn.Linear]
    ((name, reason),) = result.refused
    assert name == "0"
    assert reason.startswith(f"{kind.__name__}, as Linear: changes the outputs, ")


def test_images_that_outputs_are_compared_on_are_few():
    sizes = []

    class Net(nn.Sequential):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    _, result = plain_layers.rewrite(Net(TimmLinear(5, 3)).eval(), torch.randn(100, 5))
    assert len(result.changes) == 1
    assert set(sizes) == {1, 3}
    assert len(sizes) <= 6


def test_network_of_one_image_at_a_time_is_compared_so():
    class Single(nn.Sequential):
        def forward(self, x):
            return super().forward(x.view(1, 5))

    torch.manual_seed(0)
    x = torch.randn(4, 5)
    net, result = plain_layers.rewrite(Single(TimmLinear(5, 3)).eval(), x)
    assert type(net[0]) is nn.Linear
    x[3] += 100
    net, result = plain_layers.rewrite(Single(Bright(5, 3)).eval(), x)
    assert type(net[0]) is Bright
    assert len(result.refused) == 1


def test_only_what_is_allowed_is_rewritten():
    made = [nn.Sequential(TimmLinear(5, 5), TimmLinear(5, 3)).eval() for _ in range(2)]
    _, both = plain_layers.rewrite(made[0], torch.randn(1, 5))
    net, result = plain_layers.rewrite(made[1], torch.randn(1, 5), both.changes[1:])
    assert [type(own) for own in net] == [TimmLinear, nn.Linear]
    assert (result.changes, result.refused) == (both.changes[1:], [])


def test_padding_that_depends_on_size_is_told_from_one_that_does_not():
    # On maps of 8 pixels both pad two pixels; on others they differ.
    net, _ = rewritten(StdConv2dSame(4, 6, 4, 2), 4, 8, 8)
    assert type(net[0]) is geometry.Conv2dSame
    net, _ = rewritten(StdConv2dSame(4, 6, 3, 1), 4, 8, 8)
    assert type(net[0]) is nn.Conv2d
    assert net[0].padding == (1, 1)


@pytest.mark.parametrize(("size", "stride"), [((9, 8), 2), ((7, 10), 3), ((6, 6), 1)])
def test_our_same_padding_is_timms(size, stride):
    ours = geometry.Conv2dSame(4, 6, 3, stride=stride, dilation=2)
    theirs = Conv2dSame(4, 6, 3, stride=stride, dilation=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, *size)
    assert torch.equal(ours(x), theirs(x))


class Reshapes(nn.Module):
    """A convolution of rows of numbers, which it makes maps of first."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 2, 1, 1))

    def forward(self, x):
        return F.conv2d(x.view(-1, 2, 2, 2), self.weight)


def test_module_that_reshapes_its_input_is_left_as_it_is():
    net, result = plain_layers.rewrite(nn.Sequential(Reshapes()).eval(), torch.randn(1, 8))
    assert type(net[0]) is Reshapes
    assert (result.changes, result.refused) == ([], [])


def test_plain_network_is_left_as_it_is():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).eval()
    before = list(net.modules())
    state = torch.get_rng_state()
    same, result = plain_layers.rewrite(net, torch.zeros(1, 3, 3, 3))
    assert same is net
    assert list(net.modules()) == before
    assert (result.changes, result.refused) == ([], [])
    assert torch.equal(torch.get_rng_state(), state)


def test_network_that_is_one_layer():
    net, result = plain_layers.rewrite(TimmLinear(5, 3).eval(), torch.randn(1, 5))
    assert type(net) is nn.Linear
    assert len(result.changes) == 1


def test_module_under_two_names_is_replaced_under_both():
    module = TimmLinear(5, 5)
    net, result = plain_layers.rewrite(
        nn.Sequential(module, nn.ReLU(), module).eval(), torch.randn(1, 5)
    )
    assert net[0] is net[2]
    assert type(net[0]) is nn.Linear
    assert net[0].weight is module.weight
    assert len(result.changes) == 1


def test_network_that_needs_what_its_module_holds_keeps_that_module_alone():
    class Holding(TimmLinear):
        scale = 2.0

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = Holding(5, 5), TimmLinear(5, 3)

        def forward(self, x):
            return self.last(self.first(x) * self.first.scale)

    net, result = plain_layers.rewrite(Net().eval(), torch.randn(2, 5))
    assert type(net.first) is Holding
    assert type(net.last) is nn.Linear
    assert len(result.changes) == len(result.refused) == 1
    wanted = "Holding, as Linear: the network fails with it, AttributeError: 'Linear' object has no attribute 'scale'"
    assert result.refused == [("first", wanted)]


def test_layer_that_the_image_does_not_reach_is_rewritten_too():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.taken, self.other = TimmLinear(5, 3), StdConv2d(4, 6, 3)

        def forward(self, x):
            return self.taken(x)

    net, _ = plain_layers.rewrite(Routed().eval(), torch.randn(1, 5))
    assert type(net.other) is nn.Conv2d
    torch.testing.assert_close(
        net.other.weight, standardised(net.other.weight), atol=1e-4, rtol=1e-3
    )


def test_input_changed_in_place_is_the_networks_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = TimmLinear(5, 3)

        def forward(self, x):
            return self.last(x.mul_(2))

    x = torch.randn(1, 5)
    before = x.clone()
    net, _ = plain_layers.rewrite(Net().eval(), x)
    assert torch.equal(x, before)
    assert type(net.last) is nn.Linear


class Reading(nn.Module):
    """Attention as BEiT and Swin write it: the weight of a layer, with a bias of another making."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 12, bias=False), nn.Linear(4, 4)
        self.q_bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        bias = torch.cat([self.q_bias, torch.zeros(4), self.q_bias])
        q, k, v = F.linear(input=x, weight=self.qkv.weight, bias=bias).chunk(3, -1)
        return F.linear(q.sigmoid() * k + v, self.proj.weight, self.proj.bias)


def test_product_with_the_weight_of_a_layer_calls_the_layer():
    torch.manual_seed(0)
    x = torch.randn(2, 7, 4)
    net = nn.Sequential(nn.Linear(4, 4), Reading()).eval()
    wanted = net(x)
    net, result = plain_layers.rewrite(net, x[:1])
    assert len(result.changes) == 2
    copied = copy.deepcopy(net)
    assert isinstance(copied[1].__dict__["forward"], Redirected)
    assert copied[1].forward.layers[0] is not net[1].forward.layers[0]
    for own in (net, copied):
        assert torch.equal(own(x), wanted)
        modules = {name: own[1].get_submodule(name) for name in ("qkv", "proj")}
        called = []
        with hooks.entering(modules, called.append):
            own(x)
        assert called == ["qkv", "proj"]
    with torch.no_grad():
        copied[1].qkv.weight.mul_(0)
    assert not torch.allclose(copied(x), wanted)
    assert torch.equal(net(x), wanted)


def test_bias_that_depends_on_the_inputs_stays_where_it_is():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return F.linear(x, self.layer.weight, x.mean() * self.layer.bias)

    net, result = plain_layers.rewrite(Net().eval(), torch.randn(1, 4))
    assert result.changes == []
    assert result.refused == [
        ("layer", "its weight, computed with by another module: its bias is not always the same")
    ]
    assert "forward" not in net.__dict__


class Positive(nn.Module):
    """Reads the weight of a layer, and takes no images with values below zero."""

    def __init__(self, computed):
        super().__init__()
        self.layer, self.computed = nn.Linear(4, 3), computed

    def forward(self, x):
        if (x < 0).any():
            raise ValueError("values below zero")
        return F.linear(
            x, self.layer.weight, 1 * self.layer.bias if self.computed else self.layer.bias
        )


def test_network_that_takes_no_noise_says_so_where_a_computed_bias_may_depend_on_the_inputs():
    x = torch.rand(2, 4)
    net, result = plain_layers.rewrite(Positive(True).eval(), x)
    assert result.changes == []
    ((name, reason),) = result.refused
    assert name == "layer"
    assert reason.endswith(
        "the network does not take noise to compare it on, ValueError: values below zero"
    )
    assert "forward" not in net.__dict__
    net = Positive(False).eval()
    wanted = net(x)
    net, result = plain_layers.rewrite(net, x)
    assert len(result.changes) == 1
    assert result.refused == []
    assert torch.equal(net(x), wanted)


@pytest.mark.parametrize(
    ("name", "size"),
    [("lcnet_035", 32), ("test_nfnet", 64), ("test_vit", 160)],
)
def test_families_of_timm(name, size):
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False, num_classes=7).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        wanted = net(x)
        net, result = plain_layers.rewrite(net, x[:1])
        assert_near(net(x), wanted, of_layers(net, x.dtype))
    assert result.refused == []
    assert geometry.find(net)[1] == []


def test_attention_becomes_ours():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        wanted = net(x)
        net, result = plain_layers.rewrite(net, x)
        assert type(net.self_attn) is Attention
        assert_near(net(x), wanted, of_layers(net, x.dtype))
        names = ["self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2"]
        called = []
        with hooks.entering({name: net.get_submodule(name) for name in names}, called.append):
            net(x)
    assert called == names
    assert result.refused == []
