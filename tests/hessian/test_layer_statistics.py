import pytest
import torch
from tolerances import assert_within, of_gram, of_solve, relative
from torch import nn
from torch.nn import functional as F

from sq.errors import SqError
from sq.hessian import gram, layer_statistics
from sq.network import geometry
from sq.types.images import Batch
from sq.types.problem import Model

DEPTH = 100  # products in a sum of the layers before, at most: of what rounding does to inputs


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, stride=2, groups=4, bias=False)
        self.twice = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.depthwise(F.relu(self.conv(x))).flatten(2).mT  # (B, 4 pixels, 4)
        return self.head(self.twice(F.relu(self.twice(y))).mean(1))


def collect(model, batch, *, batch_size, positions=1.0, seed=0):
    return layer_statistics.collect(
        model, batch, batch_size=batch_size, positions=positions, seed=seed
    )


def model(net, **more):
    found, _ = geometry.find(net)
    return Model(net.eval(), found, (2, 6, 6), "", None, **more)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return model(Tiny())


def images(count, seed=0):
    x = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    return Batch(x, torch.zeros(count).long(), [f"image/{i}" for i in range(count)])


def test_hessians_equal_the_definition(tiny):
    batch = images(10)
    found = collect(tiny, batch, batch_size=4)
    net = tiny.net.double()
    with torch.no_grad():
        x = batch.x.double()
        first = F.relu(net.conv(x))
        second = net.depthwise(first).flatten(2).mT
        third = F.relu(net.twice(second))
        pooled = net.twice(third).mean(1)

    def patches(x, kernel, **how):  # (channels, taps, N)
        columns = F.unfold(x, kernel, **how)
        return columns.unflatten(1, (x.shape[1], -1)).permute(1, 2, 0, 3).flatten(2)

    inputs = {
        "conv": patches(x, 3, padding=1).flatten(0, 1).unsqueeze(0),
        "depthwise": patches(first, 3, stride=2),
        "twice": torch.cat([second, third]).flatten(0, 1).T.unsqueeze(0),  # both calls add up
        "head": pooled.T.unsqueeze(0),
    }
    assert list(found.layers) == list(inputs)
    assert found.images == 10
    for name, X in inputs.items():
        N = X.shape[2]
        assert found.layers[name].positions == N
        hessian = found.layers[name].hessian
        assert hessian.dtype == torch.float64
        wanted = 2 * X @ X.mT / N
        assert_within(hessian, wanted, of_gram(wanted, wanted, N, torch.float32, DEPTH), name)


def assert_same(a, b):
    for name, one in a.layers.items():
        assert one.positions == b.layers[name].positions
        bound = of_gram(one.hessian, one.hessian, one.positions, torch.float32, DEPTH)
        assert_within(b.layers[name].hessian, one.hessian, bound, name)


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_batch_size_does_not_matter(tiny, batch_size):
    assert_same(
        collect(tiny, images(10), batch_size=100),
        collect(tiny, images(10), batch_size=batch_size),
    )


def test_unfolding_in_pieces_does_not_matter(tiny, monkeypatch):
    whole = collect(tiny, images(10), batch_size=10)
    calls, padded = [], geometry.padded
    monkeypatch.setattr(
        geometry, "padded", lambda module, x: calls.append(len(x)) or padded(module, x)
    )
    # two images of the first layer, unfolded along rows
    monkeypatch.setattr(gram, "UNFOLDED", 2 * 6 * 36)
    assert_same(whole, collect(tiny, images(10), batch_size=10))
    assert calls[:6] == [1] + [2] * 5  # one to choose the way by


def test_digest_tells_hessians_apart(tiny):
    digests = [collect(tiny, images(4, seed), batch_size=4).digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_image_is_named(tiny, bad):
    batch = images(6)
    batch.x[4, 0, 0, 0] = bad
    with pytest.raises(SqError, match="image/4"):
        collect(tiny, batch, batch_size=2)


def test_bad_weight_names_the_layer_it_feeds(tiny):
    tiny.net.conv.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(SqError, match="layer depthwise "):
        collect(tiny, images(2), batch_size=2)


def test_layer_never_called_is_named(tiny):
    tiny.net.spare = nn.Linear(4, 4)
    with pytest.raises(SqError, match="layer spare was never called"):
        collect(model(tiny.net), images(2), batch_size=2)


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_hooks_are_removed(tiny):
    collect(tiny, images(2), batch_size=2)
    assert hooks(tiny.net) == 0
    tiny.net.forward = lambda x: tiny.net.head(x)  # fails in the middle of a pass
    with pytest.raises(RuntimeError):
        collect(tiny, images(2), batch_size=2)
    assert hooks(tiny.net) == 0


def test_network_is_left_as_it_was():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    collect(model(net), images(4), batch_size=2)
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_relative_error_equals_the_definition():
    torch.manual_seed(1)
    W, noise = (
        torch.randn(2, 3, 5, dtype=torch.float64),
        0.1 * torch.randn(2, 3, 5, dtype=torch.float64),
    )
    X = torch.randn(2, 5, 40, dtype=torch.float64)
    H = 2 * X @ X.mT / 40
    wanted = float((noise @ X).square().sum() / (W @ X).square().sum())
    # |e| |H| |e| is at most n times H's condition times e H e
    rounding = of_solve(H) + relative(2 * 40, X.dtype)
    assert layer_statistics.relative_error(W, W - noise, H) == pytest.approx(wanted, rel=rounding)
    assert layer_statistics.loss(noise, H) == pytest.approx(
        2 / 40 * float((noise @ X).square().sum()), rel=rounding
    )
    assert layer_statistics.relative_error(W, W, H) == 0
    assert layer_statistics.relative_error(W, W - noise, torch.zeros_like(H)) == 0


def test_a_share_of_positions_estimates_the_same_hessian(tiny):
    whole = collect(tiny, images(300), batch_size=100)
    half = collect(tiny, images(300), batch_size=100, positions=0.5)
    again = collect(tiny, images(300), batch_size=30, positions=0.5)
    other = collect(tiny, images(300), batch_size=100, positions=0.5, seed=1)
    for name, own in whole.layers.items():
        found = half.layers[name]
        assert found.positions == own.positions
        if name == "head":
            continue  # one position an image: half of them would be enough, see MIN_POSITIONS_PER_INPUT
        distance = torch.linalg.norm(found.hessian - own.hessian) / torch.linalg.norm(own.hessian)
        assert 0 < distance < 0.2
        if name != "twice":  # its two calls draw in turn, batch by batch
            bound = of_gram(found.hessian, found.hessian, own.positions, torch.float32, DEPTH)
            assert_within(again.layers[name].hessian, found.hessian, bound, name)
        assert not torch.equal(other.layers[name].hessian, found.hessian)


def test_layers_with_few_positions_keep_them_all(tiny):
    whole, some = (
        collect(tiny, images(40), batch_size=10, positions=share) for share in (1.0, 0.1)
    )
    kept = {
        name
        for name in whole.layers
        if torch.equal(whole.layers[name].hessian, some.layers[name].hessian)
    }
    # 16 positions for 9 inputs, 4 for 4; conv has 144 for 18, "twice" 32 for 4
    assert kept == {"depthwise", "head"}
