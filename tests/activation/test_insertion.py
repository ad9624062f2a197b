import copy
import pickle

import pytest
import torch
from tolerances import assert_near, of_layers
from torch import nn
from torch.nn import functional as F

from sq.activation import insertion
from sq.errors import SqError
from sq.grid.uniform_grid import per_tensor
from sq.model import digits_resnet
from sq.network import geometry
from sq.network.residual_adds import Adds


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x)))
        z = self.twice(input=self.twice(y))  # positional, and by name
        z += y
        return self.head(z.mean((2, 3)))


NAMES = ["head", "conv", "twice"]


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Tiny().eval()


def images(count, seed=0):
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def observe(net, names, x, **changes):
    return insertion.observe(
        net, names, x, **dict(images=1000, batch_size=4, bins=32, adds=False) | changes
    )


def fit(histogram, bits):
    return per_tensor(histogram.low, histogram.high, bits, False)


def quantize(net, x, bits_of=None, *, names=NAMES, bits=8, **changes):
    return insertion.quantize(
        net,
        names,
        x,
        bits_of,
        bits=bits,
        observe=lambda *given: observe(*given, **changes),
        fit=fit,
    ).grids()


@torch.no_grad()
def fed(net, x):
    """What every module and addition named is fed, in a pass written out."""
    y = F.relu(net.norm(net.conv(x)))
    first = net.twice(y)
    second = net.twice(first)
    return {
        "conv": x,
        "twice": torch.stack([y, first]),
        "add.0.left": second,
        "add.0.right": y,
        "head": (second + y).mean((2, 3)),
    }


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_histograms_equal_the_definition(tiny, batch_size):
    x = images(10)
    found = observe(tiny, NAMES, x, batch_size=batch_size, adds=True)
    wanted = fed(tiny, x)
    assert found.keys() == wanted.keys()
    for name, seen in wanted.items():
        one = found[name]
        rounding = of_layers(tiny, seen.dtype) * float(seen.abs().max())
        assert one.low == pytest.approx(float(seen.min()), abs=rounding)
        assert one.high == pytest.approx(float(seen.max()), abs=rounding)
        counts = torch.histc(seen, 32, one.low, one.high)
        assert one.counts.sum() == seen.numel()
        assert (one.counts - counts).abs().sum() <= 4  # float32 rounding at the edges of bins


def test_batch_size_changes_no_count_of_the_images(tiny):
    one, other = (observe(tiny, ["conv"], images(10), batch_size=size)["conv"] for size in (3, 10))
    assert (one.low, one.high) == (other.low, other.high)
    assert torch.equal(one.counts, other.counts)


def test_only_so_many_images_are_used(tiny):
    few = observe(tiny, NAMES, images(10), images=4)
    assert all(
        torch.equal(few[n].counts, h.counts)
        for n, h in observe(tiny, NAMES, images(10)[:4]).items()
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_weight_names_the_layer_it_feeds(tiny, bad):
    tiny.conv.weight.data[0, 0, 0, 0] = bad
    with pytest.raises(SqError, match="inputs of twice hold NaN or infinity"):
        observe(tiny, NAMES, images(2))


def test_layer_never_called_is_named(tiny):
    tiny.spare = nn.Linear(4, 4)
    with pytest.raises(SqError, match="layer spare was never called"):
        observe(tiny, [*NAMES, "spare"], images(2))


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_observing_leaves_the_network_as_it_was(tiny):
    before = {name: t.clone() for name, t in tiny.state_dict().items()}
    observe(tiny, NAMES, images(4), adds=True)
    assert hooks(tiny) == 0
    assert "forward" not in tiny.__dict__
    assert all(torch.equal(before[name], t) for name, t in tiny.state_dict().items())
    with pytest.raises(RuntimeError):
        observe(tiny, NAMES, images(4)[:, :1], adds=True)
    assert hooks(tiny) == 0


def test_additions_that_depend_on_the_batch_are_refused(tiny):
    tiny.forward = lambda x: x + x if len(x) == 4 else x
    with pytest.raises(SqError, match="0 or 1 additions"):
        observe(tiny, [], images(5), adds=True)


def test_attach_quantizes_what_is_named_and_nothing_else(tiny):
    x = images(6)
    plain = {name: [] for name, _ in tiny.named_modules()}
    for grids in (quantize(tiny, x, bits=3), quantize(tiny, x, bits=3, adds=True)):
        insertion.attach(tiny, grids)
        for name, module in tiny.named_modules():
            plain[name] = []
            module.register_forward_hook(
                lambda m, args, named, y, name=name: plain[name].append(
                    args[0] if args else named["input"]
                ),
                with_kwargs=True,
            )
        found = tiny(x)
        with torch.no_grad():
            near = {name: grid.nearest for name, grid in grids.items()}
            y = F.relu(
                tiny.norm(F.conv2d(near["conv"](x), tiny.conv.weight, tiny.conv.bias, padding=1))
            )
            z = y
            for _ in range(2):
                z = F.conv2d(near["twice"](z), tiny.twice.weight, tiny.twice.bias)
            z = near["add.0.left"](z) + near["add.0.right"](y) if "add.0.left" in near else z + y
            wanted = F.linear(near["head"](z.mean((2, 3))), tiny.head.weight, tiny.head.bias)
        assert_near(found, wanted, of_layers(tiny, found.dtype))
        for name in NAMES:
            values = torch.cat([v.flatten() for v in plain[name]]).unique()
            assert len(values) <= 8
            assert torch.equal(grids[name].nearest(values), values)
        assert len(plain["norm"][0].unique()) > 100


@pytest.mark.parametrize("adds", [False, True])
def test_detach_restores_bit_for_bit(tiny, adds):
    x = images(6)
    before, kept = tiny(x), x.clone()
    for _ in range(2):  # what was attached before is replaced, not quantized again
        insertion.attach(tiny, quantize(tiny, x, bits=4, adds=adds))
        coarse = tiny(x)
        assert not torch.equal(coarse, before)
        assert torch.equal(x, kept)
        insertion.attach(tiny, {})
        insertion.attach(tiny, quantize(tiny, x, bits=4, adds=adds))
        assert torch.equal(tiny(x), coarse)
        insertion.detach(tiny)
        assert torch.equal(tiny(x), before)
        assert hooks(tiny) == 0


def test_copies_keep_and_can_lose_their_grids(tiny):
    x = images(6)
    before = tiny(x)
    insertion.attach(tiny, quantize(tiny, x, bits=4, adds=True))
    coarse = tiny(x)
    copied, again = copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))
    insertion.detach(tiny)
    for net in (copied, again):
        assert torch.equal(net(x), coarse)
        insertion.detach(net)
        assert hooks(net) == 0
        assert torch.equal(net(x), before)
    other = copy.deepcopy(copied)
    insertion.attach(copied, quantize(copied, x, bits=4))
    assert torch.equal(other(x), before)
    assert torch.equal(tiny(x), before)


def test_bits_of_some_names(tiny):
    x = images(6)
    grids = quantize(
        tiny, x, {"conv": 8, "head": 0, "add.0.left": 0, "add.0.right": 2}, bits=4, adds=True
    )
    assert {name: grid.levels for name, grid in grids.items()} == {
        "conv": 256,
        "twice": 16,
        "add.0.right": 4,
    }
    with pytest.raises(SqError, match="bits are set for the input of norm, which is not observed"):
        quantize(tiny, x, {"norm": 4})


@pytest.mark.parametrize("adds", [False, True])
def test_sixteen_bits_change_next_to_nothing(resnet, adds):
    net = copy.deepcopy(resnet.net)
    x = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    names = [layer.name for layer in resnet.layers]
    with torch.no_grad():
        plain = net(x)
        errors = []
        for bits in (4, 8, 16):
            insertion.attach(net, quantize(net, x, names=names, bits=bits, adds=adds))
            errors.append(float((net(x) - plain).norm() / plain.norm()))
            insertion.detach(net)
        assert torch.equal(net(x), plain)
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 1e-3


def additions(net, shape):
    found = []
    for batch in (1, 3):
        with torch.no_grad(), Adds(lambda name, x: x) as mode:
            net(torch.randn(batch, *shape))
        found.append(mode.number)
    assert found[0] == found[1]
    return found[0]


def test_additions_of_networks():
    assert additions(digits_resnet.DigitsResNet().eval(), (1, 8, 8)) == 4
    timm = pytest.importorskip("timm")
    wanted = {"resnet18": 8, "resnet50": 16, "tf_efficientnet_lite0": 9, "mobilenetv2_100": 10}
    for name, count in wanted.items():
        assert additions(timm.create_model(name).eval(), (3, 64, 64)) == count


def test_every_layer_of_a_network_sees_grid_values(resnet):
    net = copy.deepcopy(resnet.net)
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    grids = quantize(net, x, names=[layer.name for layer in resnet.layers], bits=2)
    insertion.attach(net, grids)
    seen = {}
    for layer in geometry.find(net)[0]:
        layer.module.register_forward_hook(
            lambda m, args, y, name=layer.name: seen.update({name: args[0]})
        )
    net(x)
    assert seen.keys() == grids.keys()
    assert all(len(values.unique()) <= 4 for values in seen.values())


class Queries(nn.Module):
    """A layer that is fed a learnt query, the same for all images."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(3)))
        self.own, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.other(x)
        return y + (y + self.own(self.query)).relu()


@pytest.mark.parametrize("count", [1, 2])
def test_a_layer_fed_the_same_whatever_the_images_is_observed(count):
    net, x = Queries(), torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))[:count]
    found = observe(net, ["own", "other"], x, batch_size=count, adds=True)
    assert [name for name in found if name.startswith("add")] == ["add.0.left", "add.0.right"]
    assert found["own"].counts.sum() == net.query.numel()
    assert found["other"].counts.sum() == found["add.0.left"].counts.sum() == x.numel()
