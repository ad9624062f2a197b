import copy
from pathlib import Path

import pytest
import torch
from cli_helpers import compose
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tolerances import assert_near, assert_within, of_error, of_layers, relative
from torch import nn

from sq.config.instantiate import build
from sq.correction import batchnorm, layer_by_layer, none, reestimate
from sq.grid import uniform
from sq.model.digits_resnet import WEIGHTS, DigitsResNet
from sq.network import batchnorm_statistics as bn
from sq.network import geometry, hooks
from sq.types.images import Batch

CONF = Path(__file__).resolve().parents[2] / "conf" / "correction"
PARTS = {
    p.stem: compose(f"correction={p.stem}")[0]["correction"] for p in sorted(CONF.glob("*.yaml"))
}

# of means over at most 640 values, each a sum of 18 products; variances are means of squares
MEANS = relative(640 + 18, torch.float64)


def round_weights(net, bits):
    net = copy.deepcopy(net)
    for layer in geometry.find(net)[0]:
        W = geometry.weight(layer.module)
        grid = uniform.fit(
            W, bits, symmetric=False, range="mse", norm=2.4, steps=20, shrink=0.2, hessian=None
        )
        geometry.set_weight(layer.module, grid.nearest(W))
    return net


def error_of(net, reference, x, batch_size):
    return layer_by_layer.output_error(
        net, layer_by_layer.outputs(reference, x, batch_size), x, batch_size
    )


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def images(x):
    return Batch(x, torch.zeros(len(x)).long(), [str(i) for i in range(len(x))])


@pytest.fixture(scope="module")
def batch():
    return images((torch.from_numpy(load_digits().images[:128]).float() / 8 - 1).unsqueeze(1))


@pytest.fixture(scope="module")
def resnet():
    net = DigitsResNet()
    net.load_state_dict(load_file(WEIGHTS), strict=False)
    return net.eval()


@pytest.fixture
def small():
    # running statistics are those of the images exactly, so a recovered network is the reference
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    ).double()
    nn.init.uniform_(net[1].weight, 0.5, 2)
    nn.init.normal_(net[1].bias)
    x = torch.randn(40, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        fed = bn.by_channel(net[0](x))
    bn.set_running(net[1], fed.mean(1), fed.var(1, unbiased=False))
    return net.eval(), x


@pytest.mark.parametrize("name", PARTS)
def test_every_choice_repairs_the_network_alone(name, resnet, batch):
    correct = build(PARTS[name], "correction")
    net, reference = round_weights(resnet, 3), copy.deepcopy(resnet)
    before = copy.deepcopy(net)
    report = correct(net, reference, batch)
    assert isinstance(report["kept"], int)
    assert same(reference, resnet)
    assert not net.training
    biases = tuple(f"{layer.name}.bias" for layer in geometry.find(net)[0])
    may_change = biases if name == "bias" else ("running_mean", "running_var")
    for key, value in net.state_dict().items():
        assert torch.isfinite(value).all(), key
        assert key.endswith(may_change) or torch.equal(value, before.state_dict()[key]), key
    assert not any(
        m._forward_pre_hooks or m._forward_hooks for m in [*net.modules(), *reference.modules()]
    )
    assert same(net, before) is (report["kept"] == 0)


def test_none_changes_nothing(small):
    net, x = small
    before = copy.deepcopy(net)
    assert none.correct(net, net, images(x)) == {"kept": 0}
    assert same(net, before)


def test_unquantized_network_is_left_as_it_was(resnet, batch):
    net = copy.deepcopy(resnet)
    report = batchnorm.correct(net, resnet, batch, images=512, batch_size=50)
    assert same(net, resnet)
    assert report == {
        "layers": len(bn.find(net)),
        "kept": 0,
        "left_alone": [],
        "error_before": 0,
        "error_after": 0,
    }


@pytest.mark.parametrize("batch_size", [13, 40])
def test_shift_is_recovered(small, batch_size):
    reference, x = small
    net = copy.deepcopy(reference)
    gain, shift = (
        torch.tensor([1.5, 0.4, 1.0, 3.0]).double(),
        torch.tensor([0.5, -2.0, 1.0, 0.0]).double(),
    )
    with torch.no_grad():
        net[0].weight.mul_(gain.view(-1, 1, 1, 1))
        net[0].bias.mul_(gain).add_(shift)
    report = batchnorm.correct(net, reference, images(x), images=512, batch_size=batch_size)
    assert (report["layers"], report["kept"]) == (1, 1)
    assert_near(net[1].running_mean, gain * reference[1].running_mean + shift, MEANS)
    assert_near(net[1].running_var, gain**2 * reference[1].running_var, 2 * MEANS)
    assert report["error_before"] > 0.1
    assert report["error_after"] < 1e-6  # eps of BatchNorm is not scaled by the gain
    with torch.no_grad():
        torch.testing.assert_close(net(x), reference(x), rtol=0, atol=1e-3)  # for that reason
    rounding = of_error(net, report["error_after"], x.dtype)
    assert report["error_after"] == pytest.approx(error_of(net, reference, x, 7), rel=rounding)


def test_shift_is_added_to_what_training_left(small):
    # running statistics of training differ from those of the images, and keep differing by as much
    reference, x = small
    mean, variance = (t.clone() for t in bn.running(reference[1]))
    bn.set_running(reference[1], mean + 0.3, variance * 2)
    net = copy.deepcopy(reference)
    with torch.no_grad():
        net[0].weight.mul_(1.5)
        net[0].bias.mul_(1.5).add_(0.7)
    batchnorm.correct(net, reference, images(x), images=512, batch_size=40)
    assert_near(net[1].running_mean, 1.5 * mean + 0.7 + 0.3, MEANS)
    eps = net[1].eps
    ratio = (2.25 * variance + eps) / (variance + eps)
    assert_near(net[1].running_var, (2 * variance + eps) * ratio - eps, 2 * MEANS)


def test_statistics_move_as_the_input_moved():
    torch.manual_seed(1)
    theirs = nn.BatchNorm2d(3).double().eval()
    bn.set_running(theirs, torch.randn(3).double(), torch.rand(3).double() + 0.5)
    ours = copy.deepcopy(theirs)
    x_r = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    x_q = 1.2 * x_r + 0.3 * torch.randn_like(x_r) + 0.5
    one = batchnorm.RunningStatistics(ours, theirs)
    assert one.changed() is False
    dims, eps = (0, 2, 3), theirs.eps
    for end in (4, 6):  # after each batch, by all of them so far
        now = slice(end - 4 if end == 4 else 4, end)
        one.expect(x_r[now])
        one.see(x_q[now])
        q, r = x_q[:end], x_r[:end]
        assert_near(ours.running_mean, theirs.running_mean + q.mean(dims) - r.mean(dims), MEANS)
        ratio = (q.var(dims, unbiased=False) + eps) / (r.var(dims, unbiased=False) + eps)
        assert_near(ours.running_var, (theirs.running_var + eps) * ratio - eps, 2 * MEANS)
    assert one.changed() is True
    one.undo()
    assert same(ours, theirs)
    assert one.changed() is False


def test_later_layers_are_measured_beside_the_corrections_before_them():
    # two layers, the first of which is shifted: once that is corrected, nothing is left for the
    # second
    torch.manual_seed(0)
    reference = nn.Sequential(
        nn.Conv2d(2, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 1),
        nn.BatchNorm2d(3),
        nn.Flatten(),
    )
    reference = reference.double().eval()
    x = torch.randn(12, 2, 4, 4, dtype=torch.float64)
    net = copy.deepcopy(reference)
    net[0].bias.data += 2
    report = batchnorm.correct(net, reference, images(x), images=512, batch_size=12)
    assert report["error_before"] > 0.01
    assert report["error_after"] < 1e-20
    assert_near(net[1].running_mean, reference[1].running_mean + 2, MEANS)
    rounding = MEANS * float(x.abs().max() + 2)
    assert_within(net[4].running_mean, reference[4].running_mean, rounding)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_logit_error_never_rises(resnet, batch, bits):
    net = round_weights(resnet, bits)
    report = batchnorm.correct(net, resnet, batch, images=512, batch_size=64)
    assert report["error_after"] <= report["error_before"]
    assert error_of(net, resnet, batch.x, 64) == report["error_after"]  # the same code twice
    assert report["kept"] > 0


def test_harm_is_undone(resnet, batch, monkeypatch):
    # a rule that makes everything worse: nothing of it may stay
    monkeypatch.setattr(
        batchnorm.RunningStatistics,
        "shifted",
        lambda self: (self.module.running_mean + 9, self.module.running_var),
    )
    net = round_weights(resnet, 4)
    before = copy.deepcopy(net)
    report = batchnorm.correct(net, resnet, batch, images=512, batch_size=64)
    assert same(net, before)
    assert report["kept"] == 0
    assert report["error_after"] == report["error_before"] > 0


def test_reestimate_is_one_step_of_training(resnet, batch):
    net, resnet = round_weights(resnet, 3).double(), copy.deepcopy(resnet).double()
    batch = images(batch.x.double())
    trained = copy.deepcopy(net)
    modules, count = bn.find(trained), {}
    for module in modules.values():
        module.momentum = None  # a plain mean over batches
        module.reset_running_stats()
    trained.train()
    with (
        torch.no_grad(),
        hooks.feeding(modules, lambda name, _, x: count.update({name: x.numel() // x.shape[1]})),
    ):
        trained(batch.x)
    report = reestimate.correct(net, resnet, batch, batch_size=len(batch.x), guard=False)
    assert report["layers"] == report["kept"] == len(modules) > 10
    for name, module in bn.find(net).items():
        rounding = of_layers(net, torch.float64) + relative(count[name], torch.float64)
        assert_near(module.running_mean, modules[name].running_mean, rounding, name)
        # training stores the unbiased variance
        biased = modules[name].running_var * (1 - 1 / count[name])
        assert_near(module.running_var, biased, 2 * rounding, name)


def test_reestimate_averages_over_batches(small):
    reference, x = small
    net = copy.deepcopy(reference)
    bn.set_running(net[1], torch.full((4,), 9.0).double(), torch.full((4,), 9.0).double())
    reestimate.correct(net, reference, images(x), batch_size=20, guard=False)
    with torch.no_grad():
        fed = [bn.by_channel(net[0](part)) for part in x.split(20)]
    assert_near(net[1].running_mean, sum(f.mean(1) for f in fed) / 2, MEANS)
    assert_near(net[1].running_var, sum(f.var(1, unbiased=False) for f in fed) / 2, 2 * MEANS)


@pytest.mark.parametrize("batch_size", [7, 40])
def test_logit_error_equals_the_definition(small, batch_size):
    reference, x = small
    net = round_weights(reference, 3)
    with torch.no_grad():
        wanted = float((net(x) - reference(x)).square().sum() / reference(x).square().sum())
    assert error_of(net, reference, x, batch_size) == pytest.approx(
        wanted, rel=of_error(net, wanted, x.dtype)
    )


@pytest.mark.parametrize("name", PARTS)
def test_network_without_batchnorm(name):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    before = copy.deepcopy(net)
    assert (
        build(PARTS[name], "correction")(net, copy.deepcopy(net), images(torch.randn(8, 1, 2, 2)))[
            "kept"
        ]
        == 0
    )
    assert same(net, before)


@pytest.mark.parametrize("name", ["batchnorm", "reestimate"])
def test_a_layer_called_twice_is_left_alone_and_named(name):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.once = (
                nn.Conv2d(1, 1, 1),
                nn.BatchNorm2d(1),
                nn.BatchNorm2d(1),
            )

        def forward(self, x):
            return self.norm(self.once(self.norm(self.conv(x)))).flatten(1)

    torch.manual_seed(0)
    reference = Twice().eval()
    net = copy.deepcopy(reference)
    net.conv.weight.data += 0.5
    before = net.norm.running_mean.clone()
    batch = images(torch.randn(8, 1, 3, 3))
    correct = build(PARTS[name], "correction")
    assert correct(net, reference, batch)["left_alone"] == ["norm"]
    assert torch.equal(net.norm.running_mean, before)


@pytest.mark.one_arithmetic("a whole network: the statistics are compared with an oracle")
def test_reestimate_that_would_harm_is_undone(resnet, batch):
    reference = copy.deepcopy(resnet)
    free, guarded = copy.deepcopy(resnet), copy.deepcopy(resnet)
    report = reestimate.correct(free, reference, batch, batch_size=64, guard=False)
    assert report["kept"] == report["layers"] > 0
    assert report["error_after"] > report["error_before"], "an unquantized network can only lose"
    report = reestimate.correct(guarded, reference, batch, batch_size=64, guard=True)
    assert (report["kept"], report["error_after"]) == (0, report["error_before"])
    assert same(guarded, resnet)
    worn = round_weights(resnet, 2)
    report = reestimate.correct(worn, reference, batch, batch_size=64, guard=True)
    assert report["kept"] == report["layers"]
    assert report["error_after"] < report["error_before"]
