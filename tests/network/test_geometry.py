import itertools

import pytest
import torch
from timm.layers import Conv2dSame
from tolerances import assert_near, assert_within, of_layers, of_product
from torch import nn

from sq.hessian import gram
from sq.network import geometry

PADDING_1D = [0, 2, (1,), "same", "valid"]
PADDING_2D = [0, 2, (1, 3), "same", "valid"]
MODES = ["zeros", "reflect", "replicate", "circular"]


def assert_is_a_product(module, x):
    # weight @ inputs, put back into the shape of the output
    with torch.no_grad():
        wanted = module(x)
    W, X = geometry.weight(module), geometry.inputs(module, x)
    product = (W @ X).flatten(0, 1)  # (outputs, N)
    if module.bias is not None:
        product = product + module.bias.detach().unsqueeze(1)
    by_channel = (
        wanted.reshape(-1, wanted.shape[-1]).T
        if isinstance(module, nn.Linear)
        else wanted.transpose(0, 1).flatten(1)
    )
    assert_near(product, by_channel, of_layers(module, torch.float64))
    assert X.shape[2] == geometry.positions(module, wanted)


def conv(kind, *args, **kwargs):
    torch.manual_seed(0)
    return kind(*args, **kwargs, dtype=torch.float64)


# PyTorch says that it copies the input for an even kernel
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDING_2D)
def test_conv2d(mode, padding):
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    strides = [1] if padding == "same" else [1, 2, (2, 3)]
    for stride, dilation, groups, kernel in itertools.product(
        strides, [1, (2, 1)], [1, 2, 4], [3, 1, (2, 3)]
    ):
        module = conv(
            nn.Conv2d,
            4,
            8,
            kernel,
            stride,
            padding,
            dilation=dilation,
            groups=groups,
            padding_mode=mode,
            bias=True,
        )
        assert_is_a_product(module, x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDING_1D)
def test_conv1d(mode, padding):
    x = torch.randn(3, 4, 13, dtype=torch.float64)
    strides = [1] if padding == "same" else [1, 3]
    for stride, dilation, groups, kernel in itertools.product(strides, [1, 2], [1, 4], [1, 2, 5]):
        module = conv(
            nn.Conv1d,
            4,
            4,
            kernel,
            stride,
            padding,
            dilation=dilation,
            groups=groups,
            padding_mode=mode,
            bias=False,
        )
        assert_is_a_product(module, x)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_linear(shape):
    assert_is_a_product(conv(nn.Linear, 5, 3), torch.randn(shape, dtype=torch.float64))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.inside = nn.Sequential(self.first, nn.BatchNorm1d(4), nn.ReLU())
        self.embedding = nn.Embedding(3, 4)
        self.up = nn.ConvTranspose2d(2, 2, 3)


def test_find_lists_each_module_once_and_names_what_is_skipped():
    net = Shared()
    found, skipped = geometry.find(net)
    assert [layer.name for layer in found] == ["first"]
    assert found[0].module is net.first
    assert skipped == ["embedding (Embedding)", "up (ConvTranspose2d)"]


@pytest.mark.parametrize(
    ("module", "kind", "sizes"),
    [
        (nn.Conv2d(6, 12, 3), "3x3", (1, 12, 54)),
        (nn.Conv2d(6, 12, 1), "1x1", (1, 12, 6)),
        (nn.Conv2d(6, 12, (1, 5), groups=3), "1x5 grouped", (3, 4, 10)),
        (nn.Conv2d(6, 12, 3, groups=6), "3x3 depthwise", (6, 2, 9)),
        (nn.Conv1d(6, 12, 7), "7", (1, 12, 42)),
        (nn.Linear(6, 12), "linear", (1, 12, 6)),
    ],
)
def test_find_describes_layers(module, kind, sizes):
    (layer,), skipped = geometry.find(nn.Sequential(module))
    assert (layer.name, layer.kind, (layer.groups, layer.outputs, layer.inputs)) == (
        "0",
        kind,
        sizes,
    )
    assert layer.weights == module.weight.numel()
    assert skipped == []


@pytest.mark.parametrize(
    "module", [nn.Conv2d(6, 12, 3, groups=3), nn.Conv1d(6, 12, 3), nn.Linear(6, 12)]
)
def test_set_weight_is_the_inverse_of_weight(module):
    before = module.weight.detach().clone()
    W = geometry.weight(module)
    assert not W.requires_grad
    values = torch.randn_like(W)
    geometry.set_weight(module, values)
    assert torch.equal(geometry.weight(module), values)
    geometry.set_weight(module, before.reshape(W.shape))
    assert torch.equal(module.weight.detach(), before)
    assert module.weight.requires_grad


@pytest.mark.parametrize(
    "module", [nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(2), nn.Embedding(3, 4)]
)
def test_other_modules_have_no_geometry(module):
    with pytest.raises(TypeError, match=type(module).__name__):
        geometry.inputs(module, torch.zeros(1, 2, 5, 5))


def test_layers_that_are_not_weight_times_inputs_are_named_not_quantized():
    class Padding(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))

    first, tied = nn.Linear(4, 4), nn.Linear(4, 4)
    tied.weight = first.weight
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    found, skipped = geometry.find(
        nn.ModuleDict({"a": first, "b": tied, "c": computed, "d": Padding(2, 2, 3)})
    )
    assert [layer.name for layer in found] == ["a"]
    assert [name.split(" ")[0] for name in skipped] == ["b", "c", "d"]
    assert "shares the weight of a" in skipped[0]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "groups"),
    [
        (8, 3, 2, 1, 1),
        (9, 3, 2, 1, 4),
        (8, 5, 2, 1, 4),
        (7, 3, 1, 2, 1),
        (8, 3, 3, 1, 1),
        (5, 7, 4, 1, 2),
        (6, 1, 2, 1, 1),
    ],
)
def test_padding_that_depends_on_the_input(size, kernel, stride, dilation, groups):
    conv = Conv2dSame(4, 8, kernel, stride, dilation=dilation, groups=groups, bias=False).double()
    net = nn.Sequential(conv)
    (layer,), skipped = geometry.find(net)
    assert skipped == []
    x = torch.randn(3, 4, size, size + 1, dtype=torch.float64)
    y = net(x)
    outputs = geometry.weight(conv) @ geometry.inputs(conv, x)  # (G, O, N)
    assert_near(outputs.flatten(0, 1), y.transpose(0, 1).flatten(1), of_layers(conv, x.dtype))
    total = gram.choose(layer, x, 1.0, 0)
    total.add(x, geometry.positions(conv, y))
    X = geometry.inputs(conv, x)
    assert_within(total.finish(), X @ X.mT, 2 * of_product(X, X.mT))


@pytest.mark.parametrize(
    ("module", "x", "channels"),
    [
        (nn.Linear(3, 5), (2, 7, 3), 5),
        (nn.Linear(3, 5), (2, 4, 4, 3), 5),
        (nn.Linear(3, 5), (2, 3), 5),
        (nn.Conv2d(3, 5, 1), (2, 3, 4, 6), 5),
        (nn.Conv1d(3, 5, 1), (2, 3, 6), 5),
    ],
)
def test_channels_of_what_a_layer_returned(module, x, channels):
    assert geometry.channels(module, module(torch.zeros(x))) == channels
