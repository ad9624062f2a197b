"""Packed weights against the grid they come from and the bytes of a record; shifts against the table in float."""

import math
from dataclasses import replace

import grids
import pytest
import torch
from sensitivity_problems import images, labels, problem, tricky
from tolerances import assert_within, of_product

from sq.errors import SqError
from sq.export import shift_multiply
from sq.network import resource_counts
from sq.quantizer import layerwise
from sq.solver import rtn


def made(kind, bits, shape=(2, 3, 21), seed=0):
    """Return float32 weights, their grid and their codes."""
    W = grids.weights(seed, *shape).float()
    grid = grids.fit(kind)(W, bits)
    return W, grid, grid.encode(W)


@pytest.mark.parametrize("kind", [kind for kind in grids.KINDS if kind != "uniform"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_weights_decode_to_the_last_bit(kind, bits):
    _, grid, codes = made(kind, bits)
    own = shift_multiply.pack(codes, grid)
    assert own.data.dtype == torch.uint8
    assert torch.equal(own.codes(), codes)
    assert own.codes().dtype == torch.int32
    assert torch.equal(own.decode(), grid.decode(codes))
    wide = bits + 1 if kind in ("pot", "post") else bits  # 2^bits + 1 levels
    assert own.bits == wide
    assert own.bytes == -(-126 * wide // 8) + 4 * 6 + 4 * grid.levels


def test_codes_lie_one_after_the_other():
    grid = made("post_strict", 4)[1]
    codes = torch.tensor([[[1, 2, 15]]], dtype=torch.int32)
    assert shift_multiply.pack(codes, grid).data.tolist() == [0x21, 0x0F]
    wide = made("post", 4)[1]  # 5 bits: 00001 00010 10000, lowest first
    assert shift_multiply.pack(torch.tensor([[[1, 2, 16]]]), wide).data.tolist() == [
        0b01000001,
        0b01000000,
    ]


def test_codes_that_the_grid_does_not_have_are_refused():
    grid = made("lcq", 3)[1]
    with pytest.raises(SqError, match="codes 0 to 7: the grid has 0 to 6"):
        shift_multiply.pack(torch.tensor([[[0, 7]]]), grid)


@pytest.mark.parametrize("kind", ["post", "apot"])
def test_bytes_are_those_that_records_and_budgets_count(kind):
    given = replace(problem(tricky(), images(8), labels(8)), fit=grids.fit(kind))
    given.bits.update({layer.name: 3 for layer in given.model.layers})
    done = layerwise.quantize(given, solve=rtn.solve, damp=0.01)
    size = resource_counts.size_function(given)
    for layer in given.model.layers:
        own = done.layers[layer.name]
        assert (
            shift_multiply.pack(own.codes, own.grid).bytes
            == resource_counts.weight_bytes(layer, own.grid)
            == size(layer, 3)
        )


# The bits of (kind, bits): post of b bits shifts by up to 2^(b - 2) - 1, pot by 2^(b - 1) - 1.
SHIFTED = [
    ("post", 2),
    ("post", 3),
    ("post", 4),
    ("post", 5),
    ("post_strict", 4),
    ("pot", 3),
    ("pot", 4),
]


@pytest.mark.parametrize(("kind", "bits"), SHIFTED)
def test_shifts_and_one_product_are_the_table_to_the_last_bit(kind, bits):
    _, grid, codes = made(kind, bits, (2, 5, 40), seed=bits)
    x = torch.randint(
        -128, 128, (2, 40, 7), generator=torch.Generator().manual_seed(1), dtype=torch.int8
    )
    # Exact: 24 bits of a level times 8 of an input, in sums of 40, take less than the 53 bits of
    # float64.
    wanted = grid.units(codes).double() @ x.double()
    own = shift_multiply.shifts(grid.table)
    product, point = own.multiply(codes, x)
    assert product.dtype == torch.int64
    assert torch.equal(product.double() * 2.0**-point, wanted)
    scaled = grid.scale.double() * (product.double() * 2.0**-point)
    assert torch.equal(scaled, grid.scale.double() * wanted)


def test_even_and_odd_powers_are_summed_apart():
    _, grid, codes = made("post", 4, (1, 4, 30))
    x = torch.randint(-8, 8, (1, 30, 3), generator=torch.Generator().manual_seed(2))
    even, odd = shift_multiply.shifts(grid.table).sums(codes, x)
    k = (-2 * grid.units(codes).abs().log2()).round()  # infinite at zero
    for total, own in ((even, k % 2 == 0), (odd, k % 2 == 1)):
        terms = torch.where(
            own, grid.units(codes).sign().double() * 2.0 ** (3 - (k.double() / 2).floor()), 0.0
        )
        assert torch.equal(total.double(), terms @ x.double())
    assert float(odd.abs().sum()) > 0
    together = (even.double() + odd.double() * math.sqrt(0.5)) / 8
    units = grid.units(codes)  # rounded to float32
    assert_within(together, units.double() @ x.double(), 2 * of_product(units, x.float()))


def test_powers_of_two_need_no_product():
    _, grid, codes = made("pot", 4, (1, 4, 30))
    _, odd = shift_multiply.shifts(grid.table).sums(codes, torch.ones(1, 30, 2, dtype=torch.int8))
    assert (odd == 0).all()


@pytest.mark.parametrize(("kind", "bits"), [("apot", 4), ("lcq", 4), ("pot", 6), ("post", 7)])
def test_levels_that_are_no_shifts_are_refused(kind, bits):
    with pytest.raises(SqError, match=r"shifts are for levels 0 and \+-sqrt\(2\)\^-k"):
        shift_multiply.shifts(made(kind, bits)[1].table)
