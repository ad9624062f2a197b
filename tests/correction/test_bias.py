import copy

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tolerances import assert_near, assert_within, of_error, of_layers, relative
from torch import nn

from sq.correction import bias, layer_by_layer
from sq.grid import uniform
from sq.model.digits_resnet import WEIGHTS, DigitsResNet
from sq.network import geometry, hooks
from sq.network.batchnorm_folding import fold
from sq.types.images import Batch


def images(x):
    return Batch(x, torch.zeros(len(x)).long(), [str(i) for i in range(len(x))])


def error_of(net, reference, x, batch_size):
    return layer_by_layer.output_error(
        net, layer_by_layer.outputs(reference, x, batch_size), x, batch_size
    )


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def round_weights(net, bits, range="minmax"):
    net = copy.deepcopy(net)
    for layer in geometry.find(net)[0]:
        W = geometry.weight(layer.module)
        grid = uniform.fit(
            W, bits, symmetric=False, range=range, norm=2.4, steps=20, shrink=0.2, hessian=None
        )
        geometry.set_weight(layer.module, grid.nearest(W))
    return net


@pytest.fixture(scope="module")
def batch():
    return images((torch.from_numpy(load_digits().images[:128]).float() / 8 - 1).unsqueeze(1))


@pytest.fixture(scope="module", params=["with BatchNorm", "folded"])
def resnet(request, batch):
    net = DigitsResNet()
    net.load_state_dict(load_file(WEIGHTS), strict=False)
    net.eval()
    if request.param == "folded":
        assert fold(net, batch.x[:2]).not_folded == []
    return net


@pytest.fixture
def small():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 2, bias=False),
        nn.Flatten(),
        nn.Linear(27, 5),
    )
    return net.double().eval(), torch.randn(40, 2, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("batch_size", [13, 40])
@pytest.mark.parametrize("place", [0, 4])
def test_a_constant_shift_is_taken_off_exactly(small, place, batch_size):
    reference, x = small
    net = copy.deepcopy(reference)
    net[place].bias.data += torch.tensor([0.5, -2.0, 1.0, 0.0, 3.0])[: len(net[place].bias)]
    before = error_of(net, reference, x, 40)
    report = bias.correct(net, reference, images(x), images=512, batch_size=batch_size)
    # means of 640 values at most, each a sum of 18 products and a shift of at most 3
    rounding = 3 * relative(640 + 18, x.dtype)
    for name, parameter in reference.named_parameters():
        assert_within(net.get_parameter(name), parameter, rounding, name)
    # what rounding has left of the shift is corrected as well
    if (made := net[2].bias) is not None:
        assert made.abs().max() < rounding
    assert report["layers"] == 3
    assert report["kept"] >= 1
    assert report["error_before"] == pytest.approx(before, rel=of_error(net, before, x.dtype))
    assert before > 0.01
    assert report["error_after"] < rounding**2
    assert list(report) == ["layers", "kept", "left_alone", "error_before", "error_after"]


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("batch_size", [7, 40])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda **k: nn.Linear(5, 6, **k), (40, 5)),
        (lambda **k: nn.Linear(5, 6, **k), (40, 3, 5)),
        (lambda **k: nn.Linear(5, 6, **k), (40, 2, 3, 5)),
        (lambda **k: nn.Conv1d(4, 6, 3, padding=1, **k), (40, 4, 9)),
        (lambda **k: nn.Conv2d(4, 6, 3, stride=2, groups=2, **k), (40, 4, 7, 6)),
        (lambda **k: nn.Conv2d(6, 6, 3, padding=1, groups=6, **k), (40, 6, 5, 5)),
    ],
)
def test_one_layer_equals_the_formula(make, shape, batch_size, has_bias):
    # y_q - y_r = E x, so the mean shift is E times the mean input
    torch.manual_seed(1)
    reference, x = (
        nn.Sequential(make(bias=has_bias)).double().eval(),
        torch.randn(shape, dtype=torch.float64) + 0.7,
    )
    net = copy.deepcopy(reference)
    net[0].weight.data += 0.3 * torch.randn_like(net[0].weight)
    E = geometry.weight(net[0]) - geometry.weight(reference[0])
    shift = (E @ geometry.inputs(net[0], x).mean(2, keepdim=True)).flatten()
    bias.correct(net, reference, images(x), images=512, batch_size=batch_size)
    plain = reference[0].bias.detach() if has_bias else 0
    assert_near(net[0].bias.detach(), plain - shift, relative(x.numel(), x.dtype))
    assert isinstance(net[0].bias, nn.Parameter)


def test_later_layers_see_what_was_corrected_before_them(small):
    # in the one pass, or the linear layer would take off again what the convolution has taken off
    reference, x = small
    net = copy.deepcopy(reference)
    net[0].bias.data += 1
    fed = []
    with hooks.feeding({"last": net[4]}, lambda name, module, x: fed.append(x)):
        bias.correct(net, reference, images(x), images=512, batch_size=40)
    with torch.no_grad():
        wanted = reference[:4](x)
    # one image to count calls, all of them to measure the error, then the pass, then the error
    # again
    assert [len(t) for t in fed] == [1, 40, 40, 40]
    assert_near(fed[2], wanted, of_layers(net, x.dtype) + relative(40 * 16, x.dtype))
    assert not torch.allclose(fed[1], wanted, atol=0.1)


def test_unquantized_network_is_left_as_it_was(resnet, batch):
    net = copy.deepcopy(resnet)
    report = bias.correct(net, resnet, batch, images=512, batch_size=50)
    assert same(net, resnet)
    found = geometry.find(net)[0]
    assert report == {
        "layers": len(found),
        "kept": 0,
        "left_alone": [],
        "error_before": 0,
        "error_after": 0,
    }


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_logit_error_falls(resnet, batch, bits):
    net, reference = round_weights(resnet, bits), copy.deepcopy(resnet)
    weights = {layer.name: layer.module.weight.clone() for layer in geometry.find(net)[0]}
    report = bias.correct(net, reference, batch, images=512, batch_size=64)
    assert report["error_after"] < 0.8 * report["error_before"]
    assert error_of(net, resnet, batch.x, 64) == report["error_after"]  # the same code twice
    assert report["kept"] > 0
    assert same(reference, resnet)
    assert all(
        torch.equal(net.get_submodule(name).weight, weight) for name, weight in weights.items()
    )
    assert not any(
        m._forward_hooks or m._forward_pre_hooks for m in [*net.modules(), *reference.modules()]
    )


def test_only_a_quantized_layer_is_corrected(resnet, batch):
    net = copy.deepcopy(resnet)
    net.head.weight.data.copy_(round_weights(resnet, 2).head.weight.data)
    report = bias.correct(net, resnet, batch, images=512, batch_size=64)
    assert report["kept"] == 1
    assert report["error_after"] < report["error_before"]
    assert not torch.equal(net.head.bias, resnet.head.bias)
    net.head = resnet.head
    assert same(net, resnet)


def test_a_network_it_does_not_help_is_restored(resnet, batch):
    # on these grids weights shrink, and the mean shift makes up for some of what that does to the
    # logits
    net = round_weights(resnet, 4, range="mse")
    before, forced, parameters = (
        copy.deepcopy(net),
        copy.deepcopy(net),
        dict(net.named_parameters()),
    )
    report = bias.correct(net, resnet, batch, images=512, batch_size=64)
    assert same(net, before)
    assert all(p is parameters[name] for name, p in net.named_parameters())
    assert report["kept"] == 0
    assert report["error_after"] == report["error_before"] > 0
    with pytest.MonkeyPatch.context() as patch:
        errors = iter([1.0, 0.0])
        patch.setattr(layer_by_layer, "output_error", lambda *args: next(errors))
        assert bias.correct(forced, resnet, batch, images=512, batch_size=64)["kept"] > 0
    assert error_of(forced, resnet, batch.x, 64) > report["error_before"]  # it would have hurt


def test_harm_is_undone(resnet, batch, monkeypatch):
    # a rule that makes everything worse: nothing of it may stay, not even a bias of zeros
    monkeypatch.setattr(bias.Bias, "shift", lambda self: self.correction * 0 + 9)
    net = round_weights(resnet, 4)
    before = copy.deepcopy(net)
    parameters = dict(net.named_parameters())
    report = bias.correct(net, resnet, batch, images=512, batch_size=64)
    assert same(net, before)
    assert all(p is parameters[name] for name, p in net.named_parameters())
    assert report["kept"] == 0
    assert report["error_after"] == report["error_before"] > 0


def test_shifts_that_cancel_are_left():
    # whole numbers, so that the outputs agree exactly although both layers are shifted
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval()
    for parameter in reference.parameters():
        parameter.data = torch.randint(-4, 5, parameter.shape).float()
    net = copy.deepcopy(reference)
    net[0].bias.data += 3
    net[1].bias.data -= net[1].weight.data.sum(1) * 3
    before = copy.deepcopy(net)
    report = bias.correct(
        net, reference, images(torch.randint(-5, 6, (16, 3)).float()), images=512, batch_size=16
    )
    assert (report["error_before"], report["error_after"], report["kept"]) == (0, 0, 0)
    assert same(net, before)


def test_what_rounding_leaves_of_a_shift_is_no_change():
    # 1e8 + 1 is 1e8 in float32: nothing can be taken off, so nothing is
    ours, theirs = nn.Linear(2, 3), nn.Linear(2, 3)
    ours.bias.data.fill_(1e8)
    one = bias.Bias(ours, theirs)
    one.expect(torch.zeros(5, 3))
    assert one.see(torch.ones(5, 3)) is None
    assert one.changed() is False
    assert (ours.bias == 1e8).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_batch_is_corrected_by_all_that_was_seen(dtype):
    torch.manual_seed(0)
    ours, y_r = nn.Conv2d(1, 3, 1).to(dtype), torch.randn(8, 3, 4, 4, dtype=dtype)
    y_q = y_r + torch.randn_like(y_r) + torch.tensor([1.0, -0.2, 0.0]).to(dtype).view(3, 1, 1)
    plain, one = ours.bias.detach().clone(), bias.Bias(ours, ours)
    for end in (3, 6, 8):
        now = slice(max(0, end - 3) if end < 8 else 6, end)
        moved = (ours.bias.detach() - plain).view(3, 1, 1)
        one.expect(y_r[now])
        returned = one.see(y_q[now] + moved)
        shift = (y_q[:end] - y_r[:end]).mean((0, 2, 3))
        rounding = relative(8 * 16, dtype) * float(y_q.abs().max())
        assert_within(ours.bias.detach(), plain - shift, rounding)
        assert_within(returned, y_q[now] - shift.view(3, 1, 1), rounding)
    assert one.changed() is True
    one.undo()
    assert one.changed() is False
    assert torch.equal(ours.bias, plain)


def test_layers_not_called_once_are_left_alone_and_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never, self.once = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.once(self.twice(self.twice(x)))

    torch.manual_seed(0)
    reference = Net().eval()
    net = copy.deepcopy(reference)
    net.twice.weight.data += 0.5
    before = copy.deepcopy(net)
    report = bias.correct(net, reference, images(torch.randn(16, 3)), images=512, batch_size=8)
    assert report["left_alone"] == ["twice", "never"]
    assert (report["layers"], report["kept"]) == (1, 1)
    assert torch.equal(net.twice.bias, before.twice.bias)
    assert torch.equal(net.never.bias, before.never.bias)
    assert not torch.equal(net.once.bias, before.once.bias)
