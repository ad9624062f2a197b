import copy
import re

import pytest
import torch
from tolerances import assert_near, assert_within, of_layers, relative
from torch import nn
from torch.nn import functional as F

from sq.errors import SqError
from sq.model.cifar_resnet import CifarResNet
from sq.model.digits_resnet import DigitsResNet
from sq.network import batchnorm_statistics, geometry
from sq.network.batchnorm_folding import Folded, fold


def randomised(net, seed=0):
    # a fresh BatchNorm is the identity, but for eps: folding it wrongly would not be seen
    random = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, batchnorm_statistics.BATCHNORMS):
            for tensor, low, high in zip(
                (module.running_mean, module.running_var, module.weight, module.bias),
                (-0.5, 0.5, 0.5, -0.5),
                (0.5, 2.0, 1.5, 0.5),
                strict=True,
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=random)
    return net.eval()


def run(net, x):
    with torch.no_grad():
        return net(x)


def norms(net):
    return [
        name
        for name, module in net.named_modules()
        if isinstance(module, batchnorm_statistics.BATCHNORMS)
    ]


def fingerprint(net):
    # structure, modules and parameters by identity, and the bytes of every tensor
    parts = {name: id(module) for name, module in net.named_modules(remove_duplicate=False)}
    parts |= {"p " + name: id(p) for name, p in net.named_parameters(remove_duplicate=False)}
    return parts, {name: tensor.clone() for name, tensor in net.state_dict().items()}


def unchanged(net, before):
    parts, tensors = fingerprint(net)
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    return (
        parts == before[0]
        and not hooks
        and all(torch.equal(tensors[k], t) for k, t in before[1].items())
    )


def folds(net, x, count):
    """Fold `net`, check what holds of every network, and return the result."""
    net, x = randomised(net).double(), x.double()
    names, layers = dict(net.named_modules()), {layer.name for layer in geometry.find(net)[0]}
    all_norms, wanted = norms(net), run(net, x)
    found = fold(net, x)
    assert_near(run(net, x), wanted, of_layers(net, x.dtype))
    assert len(found.folded) == count
    assert sorted(
        found.folded + [re.sub(r" \(.*", "", text) for text in found.not_folded]
    ) == sorted(all_norms)
    assert norms(net) == [name for name in all_norms if name not in found.folded]
    assert {layer.name for layer in geometry.find(net)[0]} == layers
    assert all(net.get_submodule(name) is names[name] for name in layers)
    assert dict(net.named_modules()).keys() == names.keys()
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    return found


@pytest.mark.parametrize(
    ("name", "folded", "left"),
    [
        ("resnet18", 20, 0),
        ("resnet50", 53, 0),
        ("mobilenetv2_100", 52, 0),
        ("mobilenetv1_100", 27, 0),
        ("regnetx_006", 53, 0),
        ("efficientnet_b0", 49, 0),
        ("tf_efficientnet_lite0", 49, 0),
        # 22 blocks of a 3x3 and a 1x1 branch; 17 have a branch that is a BatchNorm alone
        ("repvgg_a0", 44, 17),
    ],
)
def test_timm(name, folded, left):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    found = folds(timm.create_model(name, pretrained=False), torch.randn(2, 3, 64, 64), folded)
    assert len(found.not_folded) == left
    assert all(text.endswith(".identity (not fed by one layer)") for text in found.not_folded)


def test_networks_of_sq():
    torch.manual_seed(0)
    assert len(norms(net := DigitsResNet())) == 21
    assert folds(net, torch.randn(3, 1, 8, 8), 21).not_folded == []
    assert len(norms(net := CifarResNet(20))) == 19
    assert folds(net, torch.randn(3, 3, 32, 32), 19).not_folded == []


def test_parts_equal_the_formula():
    torch.manual_seed(0)
    net = randomised(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double())
    conv, norm = copy.deepcopy(net[0]), net[1]
    assert fold(net, torch.randn(2, 2, 5, 5).double()) == Folded(["1"], [])
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert_near(net[0].weight, conv.weight * gain.view(-1, 1, 1, 1), relative(4, torch.float64))
    rounding = relative(6, torch.float64) * float(
        ((conv.bias.abs() + norm.running_mean.abs()) * gain).detach().max() + 1
    )
    assert_within(net[0].bias, (conv.bias - norm.running_mean) * gain + norm.bias, rounding)
    assert isinstance(net[1], nn.Identity)
    assert isinstance(net[0].bias, nn.Parameter)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda **k: nn.Linear(5, 6, **k), nn.BatchNorm1d, (7, 5)),
        (lambda **k: nn.Conv1d(4, 6, 3, **k), nn.BatchNorm1d, (7, 4, 9)),
        (lambda **k: nn.Conv2d(4, 6, 3, groups=2, padding=1, **k), nn.BatchNorm2d, (7, 4, 5, 5)),
        (lambda **k: nn.Conv2d(6, 6, 3, groups=6, stride=2, **k), nn.BatchNorm2d, (7, 6, 5, 5)),
        (
            lambda **k: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", **k),
            nn.BatchNorm2d,
            (7, 4, 5, 5),
        ),
        (lambda **k: nn.Conv3d(2, 6, 2, **k), nn.BatchNorm3d, (3, 2, 4, 4, 4)),
    ],
)
def test_every_kind_of_layer(layer, norm, shape, bias, affine):
    torch.manual_seed(0)
    net = nn.Sequential(layer(bias=bias), norm(6, affine=affine), nn.ReLU(inplace=True))
    assert folds(net, torch.randn(shape), 1) == Folded(["1"], [])


def test_folding_twice_finds_nothing_more():
    net = randomised(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True)))
    x = torch.randn(2, 1, 5, 5)
    fold(net, x)
    assert fold(net, x) == Folded([], [])


def test_dropout_and_activation_of_a_norm_stay():
    norm_act = pytest.importorskip("timm.layers").BatchNormAct2d
    torch.manual_seed(0)
    own = norm_act(4, act_layer=nn.PReLU, drop_layer=nn.Dropout)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), own)
    parameters = [name for name, _ in net.named_parameters() if "act" in name]
    assert folds(net, torch.randn(3, 2, 6, 6), 1).not_folded == []
    assert net[1].act is own.act
    assert net[1].drop is own.drop
    assert (
        [name for name, _ in net.named_parameters() if "act" in name]
        == parameters
        == ["1.act.weight"]
    )


class Uses(nn.Module):
    """A convolution, its BatchNorm, and a way to wire them."""

    def __init__(self, wiring, **norm):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, **norm)
        self.other, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.wiring = wiring

    def forward(self, x):
        return self.wiring(self, x)


@pytest.mark.parametrize(
    ("wiring", "left"),
    [
        (lambda s, x: s.other(s.norm(x)), "norm (not fed by one layer)"),
        (lambda s, x: s.norm(s.conv(x) + s.other(x)), "norm (not fed by one layer)"),
        (lambda s, x: s.norm(F.relu(s.conv(x))), "norm (not fed by one layer)"),
        (lambda s, x: s.norm(F.relu_(s.conv(x))), "norm (not fed by one layer)"),
        (lambda s, x: s.norm(s.norm(s.conv(x))), "norm (called 2 times)"),
        (lambda s, x: s.conv(x), "norm (called 0 times)"),
        (lambda s, x: s.norm(s.conv(s.conv(x))), "norm (conv is called 2 times)"),
        (lambda s, x: s.norm(y := s.conv(x)) + s.second(y), "norm (conv feeds 2 BatchNorms)"),
    ],
)
def test_left_alone(wiring, left):
    net, x = randomised(Uses(wiring)), torch.randn(2, 3, 6, 6)
    before = fingerprint(net)
    found = fold(net, x)
    assert found.folded == []
    assert left in found.not_folded
    assert unchanged(net, before)


def test_only_what_is_fed_by_a_layer_is_folded():
    net = Uses(lambda s, x: s.second(s.other(F.relu(s.norm(x)))))
    assert folds(net, torch.randn(2, 3, 6, 6), 1) == Folded(
        ["second"], ["norm (not fed by one layer)"]
    )


def test_two_parallel_branches_of_one_shape():
    # the tensors have equal shapes, and a dead one's memory is used again: identity must not be
    # taken from either
    net = Uses(lambda s, x: s.norm(s.conv(x)) - 2 * s.second(s.other(x)))
    assert folds(net, torch.randn(2, 3, 6, 6), 2).not_folded == []


@pytest.mark.parametrize(
    "wiring",
    [
        lambda s, x: s.norm(y := s.conv(x)) + y,
        lambda s, x: s.norm(s.conv(x)) + F.conv2d(x, s.conv.weight, padding=1),
    ],
)
def test_a_change_of_outputs_is_undone_and_named(wiring):
    net, x = randomised(Uses(wiring)), torch.randn(2, 3, 6, 6)
    before = fingerprint(net)
    with pytest.raises(
        SqError, match=r"folding norm into conv changes the outputs .*used elsewhere too"
    ) as error:
        fold(net, x)
    assert "\n" not in str(error.value)
    assert unchanged(net, before)


def test_only_the_guilty_pair_is_named():
    net = randomised(Uses(lambda s, x: s.second(s.other(s.norm(y := s.conv(x)) + y))))
    with pytest.raises(SqError, match="folding norm into conv changes"):
        fold(net, torch.randn(2, 3, 6, 6))


def test_an_error_midway_is_undone():
    # what is not there after folding is missed by the second run
    net = randomised(Uses(lambda s, x: s.norm(s.conv(x)) / s.norm.num_features))
    before = fingerprint(net)
    with pytest.raises(AttributeError):
        fold(net, torch.randn(2, 3, 6, 6))
    assert unchanged(net, before)


def test_nan_is_not_blamed_on_folding():
    net = randomised(Uses(lambda s, x: s.norm(s.conv(x)).log()))
    before = fingerprint(net)
    with pytest.raises(SqError, match="outputs of Uses hold NaN: they arise between its modules"):
        fold(net, torch.randn(2, 3, 6, 6))
    assert unchanged(net, before)


def test_shared_weight_is_left():
    net = Uses(lambda s, x: s.norm(s.conv(x)) + s.second(s.other(x)))
    net.other = nn.Conv2d(3, 3, 3, padding=1)
    net.other.weight = net.conv.weight
    found = fold(randomised(net), torch.randn(2, 3, 6, 6))
    assert found == Folded(
        [], ["norm (conv shares its weight)", "second (other shares its weight)"]
    )


def test_computed_weight_is_left():
    net = Uses(lambda s, x: s.norm(s.conv(x)))
    nn.utils.parametrizations.weight_norm(net.conv)
    assert (
        "norm (conv computes its parameters)"
        in fold(randomised(net), torch.randn(2, 3, 6, 6)).not_folded
    )


def test_a_norm_without_running_statistics_is_left():
    net = Uses(lambda s, x: s.second(s.other(s.norm(s.conv(x)))), track_running_stats=False)
    found = folds(net, torch.randn(2, 3, 6, 6), 1)
    assert found == Folded(["second"], ["norm (no running statistics)"])


def test_a_norm_that_computes_more_is_left():
    class Louder(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    assert folds(
        nn.Sequential(nn.Conv2d(1, 2, 3), Louder(2)), torch.randn(2, 1, 5, 5), 0
    ).not_folded == ["1 (computes more than a BatchNorm)"]


def test_transposed_layers_are_left():
    net = nn.Sequential(nn.ConvTranspose2d(3, 3, 2), nn.BatchNorm2d(3))
    assert folds(net, torch.randn(2, 3, 4, 4), 0).not_folded == ["1 (not fed by one layer)"]


@pytest.mark.parametrize(
    ("layer", "shape"),
    # (B, T, C) and, unbatched, (C, L)
    [(nn.Linear(5, 6), (2, 6, 5)), (nn.Conv1d(4, 6, 3, padding=1), (4, 6))],
)
def test_a_norm_over_another_axis_is_left(layer, shape):
    # sizes agree, axes do not: BatchNorm1d takes axis 1
    torch.manual_seed(0)
    assert folds(nn.Sequential(layer, nn.BatchNorm1d(6)), torch.randn(shape), 0).not_folded == [
        "1 (not fed by one layer)"
    ]


def test_a_norm_under_two_names_is_replaced_under_both():
    net = Uses(lambda s, x: s.alias(s.conv(x)))
    net.alias = net.norm
    found = fold(randomised(net), torch.randn(2, 3, 6, 6))
    assert found == Folded(["norm"], ["second (called 0 times)"])
    assert isinstance(net.alias, nn.Identity)
    assert net.alias is net.norm


def test_training_mode_is_an_error():
    net = randomised(DigitsResNet()).train()
    with pytest.raises(SqError, match=r"training mode.*net\.eval"):
        fold(net, torch.randn(2, 1, 8, 8))
