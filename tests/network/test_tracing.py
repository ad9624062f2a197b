"""One image through the network: order of calls, positions, layers that are never called, ends."""

import pytest
import torch
from torch import nn

from sq.errors import SqError
from sq.network import first_last, geometry, tracing
from sq.types.problem import Model


class Net(nn.Module):
    """Calls its layers in another order than it declares them, one twice and one never."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.shared = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.stem = nn.Conv2d(2, 4, 3, stride=2)
        self.spare = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.shared(self.shared(self.stem(x))).mean((2, 3)))


def settled(net=None, shape=(2, 9, 7), **more):
    net = net or Net()
    found, skipped = geometry.find(net)
    return tracing.trace(
        Model(net, found, shape, "", None, skipped, **more), torch.randn(1, *shape)
    )


def test_layers_stand_in_the_order_of_calls():
    model = settled()
    assert [layer.name for layer in model.layers] == ["stem", "shared", "head"]
    assert model.skipped == ["spare (never called)"]
    assert model.ends == ("stem", "head")


def test_positions_and_costs_by_hand():
    stem, shared, head = settled().layers
    assert (stem.positions, shared.positions, head.positions) == (4 * 3, 2 * 4 * 3, 1)
    assert (stem.macs, shared.macs, head.macs) == (12 * 4 * 18, 24 * 4 * 9, 12)


def test_ends_of_a_network_that_names_its_own():
    assert settled(ends=("stem", "shared")).ends == ("stem", "shared")


def test_attention_whose_projection_is_never_called_goes_on():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(4, 2, batch_first=True)
            self.out = nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.inner(x, x, x, need_weights=False)[0])

    with torch.no_grad():
        model = settled(Attention().eval(), (5, 4))
    assert [layer.name for layer in model.layers] == ["out"]
    assert "inner.out_proj" in " ".join(model.skipped)


def test_network_without_a_layer():
    with pytest.raises(SqError, match="no layer of Flatten can be quantized"):
        settled(nn.Flatten(), (1, 2, 2))


def test_policies_for_the_ends():
    model = settled()
    assert first_last.without_kept_layers(model, "all") is model
    assert first_last.fixed_bits(model, "all") == first_last.fixed_bits(model, "keep") == {}
    assert [layer.name for layer in first_last.without_kept_layers(model, "keep").layers] == [
        "shared"
    ]
    assert first_last.without_kept_layers(model, "8bit") is model
    assert first_last.fixed_bits(model, "8bit") == {"stem": 8, "head": 8}


class Paired(nn.Module):
    """A residual block whose shortcut is fed what its first layer is fed, and a third layer that is fed its sum."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.short, self.last = (nn.Conv2d(2, 2, 1) for _ in range(4))

    def forward(self, x):
        y = self.second(self.first(x).relu_())
        y += self.short(x)
        return self.last(y)


def test_layers_that_are_fed_one_tensor_are_told():
    fed = {layer.name: layer.fed for layer in settled(Paired()).layers}
    assert fed == {"first": "first", "second": "second", "short": "first", "last": "last"}
