"""Grids and tensors that come back from flat ones, exactly."""

import grids
import pytest
import torch

from sq.errors import SqError
from sq.export import tensor_codec
from sq.export.tensor_codec import Reader, Writer
from sq.grid.uniform_grid import UniformGrid, per_tensor
from sq.learning.adaptive_step import Adapter, AdaptiveGrid


def weights(G=2, O=5, I=24):
    return torch.randn(G, O, I, generator=torch.Generator().manual_seed(0)) * torch.logspace(
        -1, 1, O
    ).view(1, O, 1)


def same(one, other):
    assert type(one) is type(other)
    assert one.levels == other.levels
    codes = torch.arange(one.levels, dtype=torch.int32)
    for own, again in zip(
        (one.scale, *one.bounds(), one.decode(codes)),
        (other.scale, *other.bounds(), other.decode(codes)),
        strict=True,
    ):
        assert own.dtype == again.dtype
        assert torch.equal(own, again)


POWERS = ("pot", "post")  # of 2 to 5 bits
CASES = [
    (kind, bits)
    for kind in grids.KINDS
    for bits in (2, 3, 4, 5, 6, 8)
    if bits < 6 or not kind.startswith(POWERS)
]


@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_every_grid_and_its_codes_come_back(kind, bits):
    W = weights()
    out, own = Writer(), grids.fit(kind)(W, bits)
    told = [
        (out.put_codes(own.encode(W), (own.levels - 1).bit_length()), out.put_grid(own, "layer"))
        for _ in range(2)
    ]
    back = Reader(out.tensors())
    for codes, grid in told:
        assert torch.equal(back.take_codes(codes), own.encode(W))
        same(back.take_grid(grid), own)
    assert len(out.tensors()["codes"]) >= 2 * W.numel() * bits // 8


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_points_take_the_bits_of_codes(symmetric):
    W, out = weights(O=40), Writer()
    out.put_grid(grids.fit("uniform", symmetric=symmetric)(W, 4), "layer")
    made = out.tensors()
    assert len(made["numbers"]) == 80  # scales
    assert len(made.get("codes", [])) == (0 if symmetric else 40)  # 80 of 4 bits


def test_ranges_of_any_shape_come_back():
    scale = torch.rand(1, 3, 1) + 0.1
    for low, high in (
        (torch.tensor([[[-9.0], [2.0], [0.5]]]), torch.tensor([[[6.0], [17.0], [15.5]]])),
        (-8 * torch.ones(1, 3, 1), 7 * torch.ones(1, 3, 1) - 1),
    ):
        out, own = Writer(), UniformGrid(scale, low, high, 16)
        told = out.put_grid(own, "layer")
        same(Reader(out.tensors()).take_grid(told), own)


@pytest.mark.parametrize("axis", [1, -1])
def test_adapters_come_back(axis):
    out, own = Writer(), AdaptiveGrid(per_tensor(-1.0, 1.5, 4, False), Adapter(12, 3, axis))
    with torch.no_grad():
        for p in own.adapter.parameters():
            p.add_(0.1 * torch.randn_like(p))
    told = out.put_grid(own, "input")
    made, x = Reader(out.tensors()).take_grid(told), torch.randn(4, 12, 12)
    assert torch.equal(made.nearest(x), own.nearest(x))
    assert made.parameters() == own.parameters()


def test_numbers_keep_their_type_and_shape():
    out = Writer()
    given = [torch.randn(2, 3), torch.tensor(7), torch.empty(0, 4), torch.arange(5)]
    told = [out.put(own, "x") for own in given]
    back = Reader(out.tensors())
    for own, words in zip(given, told, strict=True):
        made = back.take(words)
        assert (made.dtype, made.shape) == (own.dtype, own.shape) or own.numel() == 0
        assert torch.equal(made, own)
    with pytest.raises(ValueError, match="its numbers end early"):
        back.take({"kind": "numbers", "shape": [1]})


@pytest.mark.parametrize("kind", tensor_codec.RAW.values(), ids=tensor_codec.RAW)
def test_numbers_of_other_types_come_back_as_they_were(kind):
    out, own = Writer(), (100 * torch.randn(3, 2, 5)).to(kind)
    out.put_codes(torch.ones(1, 1, 3, dtype=torch.int32), 3)
    out.put(torch.ones(2), "before")
    words = out.put(own.transpose(0, 2), "it")
    back = Reader(out.tensors())
    back.take_codes({"shape": [1, 1, 3], "bits": 3})
    made = back.take(words)
    assert made.dtype == kind
    assert torch.equal(made, own.transpose(0, 2))


def test_what_cannot_be_held_is_named():
    with pytest.raises(
        SqError, match=r"bn\.mean is of torch\.complex64, which export=packed cannot hold"
    ):
        Writer().put(torch.ones(1, dtype=torch.complex64), "bn.mean")
    with pytest.raises(
        SqError, match=r"conv1 has a Other, which export=packed cannot hold: choose another grid"
    ):
        Writer().put_grid(type("Other", (), {})(), "conv1")
