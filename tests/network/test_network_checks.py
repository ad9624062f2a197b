"""What a network must be: each fault is one line that names the tensor or module."""

import pytest
import torch
from torch import nn

import sq
from sq.errors import SqError
from sq.network import checks


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    ).eval()


def images(count=4):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def holding(name, value):
    net = network()
    net.state_dict()[name].view(-1)[1] = value
    return net


def mixed():
    net = network()
    net[4].double()
    return net


class Logarithm(nn.Module):
    def forward(self, x):
        return (x - 1e9).log()


class Offset(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("offset", torch.tensor(value))

    def forward(self, x):
        return x * 0 + self.offset - self.offset


def offset(value):
    return nn.Sequential(*network()[:4], Offset(value), network()[4])


class Masked(nn.Module):
    """Adds a mask of zeros and infinity before a softmax, as attention does."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 4)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -torch.inf]))

    def forward(self, x):
        return (self.head(x.flatten(1)) + self.mask).softmax(1)


def between():
    """A network whose NaN comes of no module."""

    class Root(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * torch.tensor(-1.0).sqrt()

    return Root(*network())


NAN = pytest.mark.parametrize("fold", ["false", "true"])


@NAN
@pytest.mark.parametrize(
    "name",
    ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "4.bias"],
)
def test_tensors_with_nan_are_named(name, fold):
    with pytest.raises(
        SqError, match=rf"^{name.replace('.', '[.]')} holds NaN or infinity \(1 of \d+ numbers\)"
    ) as caught:
        sq.quantize(holding(name, torch.nan), images(), f"fold={fold}", quantizer="rtn", bits=4)
    assert len(str(caught.value).splitlines()) == 1


@NAN
@pytest.mark.parametrize(
    ("net", "place"),
    [
        (
            lambda: nn.Sequential(*network()[:3], Logarithm(), *network()[3:]),
            "3 is the first that returns NaN",
        ),
        (lambda: holding("1.running_var", -1.0), "1 is the first that returns NaN"),
        (
            lambda: offset(torch.inf),
            "4 is the first that returns NaN or infinity; 4.offset holds infinity",
        ),
        (between, "they arise between its modules"),
    ],
)
def test_the_place_where_nan_arises_is_named(net, place, fold):
    with pytest.raises(SqError, match=rf"outputs of \w+ hold NaN: .*{place}") as caught:
        sq.quantize(net(), images(), f"fold={fold}", quantizer="rtn", bits=4)
    assert "BatchNorm" not in str(caught.value)


def test_infinity_in_a_mask_is_no_fault():
    made = sq.quantize(Masked(), images(), quantizer="rtn", bits=8)
    with torch.no_grad():
        outputs = made(images())
    assert torch.isfinite(outputs).all()
    assert not outputs[:, 3].any()


def script():
    return torch.jit.script(network())


def traced():
    return torch.jit.trace(network(), images())


def dynamic():
    return torch.ao.quantization.quantize_dynamic(network(), {nn.Linear})


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["4.weight", "1.running_mean", "1.running_var"])
def test_infinity_is_no_value_of_a_weight(name, value):
    with pytest.raises(SqError, match=f"^{name} holds NaN or infinity"):
        checks.check(holding(name, value))


@pytest.mark.filterwarnings("ignore:.*(jit|quant|lazy|Lazy)")
@pytest.mark.parametrize(
    ("net", "message"),
    [
        (script, "^RecursiveScriptModule is a TorchScript module"),
        (traced, "is a TorchScript module"),
        (lambda: nn.Sequential(script()), "^0 is a TorchScript module"),
        (
            lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(5)),
            r"^0\.weight has no values yet",
        ),
        (lambda: network().to("meta"), r"^0\.weight is on the meta device"),
        (dynamic, r"^4 \(Linear\) is quantized already"),
        (lambda: network().half(), "the weight of layer 0 is float16; .* net.float()"),
        (lambda: network().bfloat16(), "the weight of layer 0 is bfloat16"),
        (lambda: network().double(), "the weight of layer 0 is float64"),
        (mixed, "the weight of layer 4 is float64"),
    ],
)
def test_networks_that_cannot_be_quantized_are_refused_in_one_line(net, message):
    with pytest.raises(SqError, match=message) as caught:
        sq.quantize(net(), images(), quantizer="rtn", bits=4)
    assert len(str(caught.value).splitlines()) == 1


def test_quantized_tensors_are_named():
    net = network()
    net.register_buffer("table", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    with pytest.raises(SqError, match=r"^table is of qint8, quantized already"):
        checks.check(net)


@pytest.mark.filterwarnings("ignore:.*azy")
def test_lazy_layers_that_have_run_are_as_others():
    net = nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(5))
    net(images())
    made = sq.quantize(net, images(), quantizer="rtn", bits=3)
    assert max(len(row.unique()) for row in made[2].weight) <= 8


def test_modules_that_pytorch_does_not_see_are_told_of(capsys):
    class Hides(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = network()
            self.alias = [self.seen[0]]
            self.hidden = [nn.Linear(5, 5), nn.ReLU()]
            self.table = {"last": (self.hidden[0], nn.Linear(5, 5))}

        def forward(self, x):
            return self.hidden[0](self.seen(x))

    checks.check(Hides())
    assert "plain lists or dictionaries, where PyTorch does not see them, hold 2 modules that" in (
        told := capsys.readouterr().err
    )
    assert "(hidden[0], table['last'][1])" in told
    checks.check(network())
    assert not capsys.readouterr().err
