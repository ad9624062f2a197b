"""Which weights are quantized, and why the others are not."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sq
from sq.network import geometry, plain_layers, tracing, weight_coverage
from sq.types.problem import Model


class Odd(nn.Module):
    """Holds a tensor of most kinds that no layer holds, and two layers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 4, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.table = nn.Parameter(torch.randn(5, 8))
        self.words = nn.Embedding(3, 8)
        self.gain = nn.Parameter(torch.randn(1, 1, 8))
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 8, 2)
        self.volume = nn.Conv3d(8, 8, 1)
        self.norm = nn.LayerNorm([6, 8])
        self.spare = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)
        self.again = nn.Linear(8, 2)
        self.again.weight = self.head.weight
        self.register_buffer("constant", torch.randn(8, 8))
        self.register_buffer("grid", torch.randn(2, 8))
        self.register_buffer("index", torch.zeros(2, 2, dtype=torch.long))
        self.register_buffer("cache", torch.randn(2, 2), persistent=False)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT  # (B, 4, 8)
        x = x + self.positions
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.table[torch.arange(5)] + self.words.weight.new_zeros(8)
        x = x + self.words(torch.zeros(len(x), 5, dtype=torch.long))
        x = x * self.gain @ self.matrix @ self.constant
        x = self.recurrent(x)[0]
        x = self.up(x.mT)
        x = self.volume(x[..., None, None])[..., 0, 0].mT
        x = self.norm(x)
        return self.head(x.mean(1)) + self.again(x[:, 0]) + self.head(self.grid).sum()


REASONS = {
    "positions": (32, weight_coverage.ADDED),
    "token": (8, weight_coverage.JOINED),
    "table": (40, weight_coverage.LOOKED_UP),
    "words.weight": (24, weight_coverage.LOOKED_UP),
    "gain": (8, weight_coverage.SCALE),
    "matrix": (64, "multiplied outside of a layer"),
    "constant": (64, "multiplied outside of a layer"),
    "recurrent.weight_ih_l0": (192, weight_coverage.RECURRENT),
    "recurrent.weight_hh_l0": (192, weight_coverage.RECURRENT),
    "up.weight": (128, weight_coverage.TRANSPOSED),
    "volume.weight": (64, weight_coverage.VOLUME),
    "norm.weight": (48, weight_coverage.NORM),
    "norm.bias": (48, weight_coverage.NORM),
    "spare.weight": (64, weight_coverage.UNUSED),
    "grid": (16, weight_coverage.CONSTANT),
}


def settled(net, x):
    found, skipped = geometry.find(net)
    model = plain_layers.rewrite_model(Model(net, found, tuple(x.shape[1:]), "", None, skipped), x)
    return tracing.trace(model, x)


def test_every_tensor_is_quantized_or_listed_with_its_reason():
    torch.manual_seed(0)
    net, x = Odd().eval(), torch.randn(1, 3, 8, 8)
    model = settled(net, x)
    assert [layer.name for layer in model.layers] == ["stem", "head"]
    found = weight_coverage.measure(net, model.layers, x)
    assert {own.name: (own.weights, own.reason) for own in found.left_out} == REASONS
    assert found.quantized == 384 + 16
    assert found.weights == found.quantized + sum(weights for weights, _ in REASONS.values())
    assert found.share == pytest.approx(found.quantized / found.weights)
    assert found.share + sum(own.share for own in found.left_out) == pytest.approx(1)
    assert sum(found.reasons().values()) == pytest.approx(1 - found.share)
    assert [own.weights for own in found.left_out] == sorted(
        (w for w, _ in REASONS.values()), reverse=True
    )


def test_sentence_names_shares_reasons_and_tensors():
    left = [
        weight_coverage.LeftOut(f"table{i}", 10, 0.01, weight_coverage.LOOKED_UP) for i in range(5)
    ]
    found = weight_coverage.Coverage(
        1000, 750, (weight_coverage.LeftOut("gru", 200, 0.2, weight_coverage.RECURRENT), *left)
    )
    assert found.sentence() == (
        "25.00 % of the weights stay in full precision: 20.00 % recurrent layer, not supported yet (gru); "
        "5.00 % looked up, not multiplied (table0, table1, table2 and 2 more)"
    )
    assert weight_coverage.Coverage(1000, 1000).sentence() == ""
    assert weight_coverage.percent(1 - 1e-7) == "99.99 %"
    assert weight_coverage.percent(1e-7) == "less than 0.01 %"


def test_layers_kept_by_the_user_are_listed():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    x = torch.randn(1, 4)
    found = weight_coverage.of_model(settled(net, x), "keep", x)
    assert [(own.name, own.reason) for own in found.left_out] == [
        ("0.weight", weight_coverage.KEPT_BY_USER),
        ("2.weight", weight_coverage.KEPT_BY_USER),
    ]
    assert found.share == pytest.approx(1 / 3)


def test_attention_that_is_left_alone_is_listed():
    class Net(nn.Module):
        """Reads a weight of its attention, so that this cannot be replaced."""

        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.attention(x, x, x)[0] * self.attention.in_proj_weight.mean())

    net, x = Net().eval(), torch.randn(1, 5, 8)
    model = settled(net, x)
    assert isinstance(net.attention, nn.MultiheadAttention)
    found = weight_coverage.measure(model.net, model.layers, x)
    reason = "projections inside of an attention function"
    assert {own.name: own.reason for own in found.left_out} == {
        "attention.in_proj_weight": reason,
        "attention.out_proj.weight": reason,
    }


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.table = nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        return F.relu(self.layer(x)) @ self.table


def test_quantize_tells_what_it_left(capsys):
    torch.manual_seed(0)
    made = sq.quantize(Half(), torch.randn(8, 6), quantizer="rtn", bits=4)
    found = made.sq_coverage
    assert (found.weights, found.quantized) == (32, 24)
    assert [(own.name, own.weights, own.share) for own in found.left_out] == [("table", 8, 0.25)]
    assert (
        "25.00 % of the weights stay in full precision: 25.00 % multiplied outside of a layer (table)"
        in (capsys.readouterr().err)
    )
    assert found.record()["left_out"][0]["reason"] == "multiplied outside of a layer"


class Bright(nn.Linear):
    """A layer, but for images brighter than most: rewritten as one, the network would be another."""

    def forward(self, x):
        y = super().forward(x)
        return torch.where(x.mean(1, keepdim=True) > 50, 2 * y, y)


def test_what_could_not_be_rewritten_is_said_where_weights_are_left_out_because_of_it(capsys):
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    x[1] += 100
    net = nn.Sequential(Bright(6, 6), nn.Linear(6, 4)).eval()
    made = sq.quantize(net, x, quantizer="rtn", bits=4)
    said = capsys.readouterr().err
    (refused,) = made.sq_coverage.refused
    assert refused.startswith("0 (Bright, as Linear: changes the outputs, ")
    assert f"not rewritten as plain layers: {refused}\n" in said
    assert made.sq_coverage.record()["refused"] == [refused]
    assert made.sq_coverage.share == pytest.approx(24 / 60)
    made = sq.quantize(net, x - 100 * (x > 50), quantizer="rtn", bits=4)
    assert made.sq_coverage.refused == ()
    assert made.sq_coverage.share == 1
    assert "not rewritten" not in capsys.readouterr().err


def test_refusals_of_what_is_quantized_anyway_are_not_said(capsys):
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval(), torch.randn(1, 4)
    model = replace(
        settled(net, x), refused=(("0", "no reason"), ("1", "one reason"), ("1.other", "no reason"))
    )
    found = weight_coverage.of_model(replace(model, layers=model.layers[:1]), "8bit", x)
    assert found.refused == ("1 (one reason)",)
    assert capsys.readouterr().err.startswith("not rewritten as plain layers: 1 (one reason)\n")
