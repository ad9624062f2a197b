import pytest
import torch

from sq.export import bit_packing


@pytest.mark.parametrize("width", range(1, 17))
@pytest.mark.parametrize("count", [0, 1, 3, 8, 101])
def test_codes_come_back_from_as_few_bytes_as_hold_them(width, count):
    codes = torch.randint(
        2**width, (count,), generator=torch.Generator().manual_seed(width), dtype=torch.int32
    )
    data = bit_packing.pack(codes, width)
    assert (data.dtype, len(data)) == (torch.uint8, -(-count * width // 8))
    assert torch.equal(bit_packing.unpack(data, width, count), codes)


def test_the_lowest_bit_comes_first():
    assert bit_packing.pack(torch.tensor([[1, 2], [7, 0]]), 3).tolist() == [
        0b11_010_001,
        0b0000_000_1,
    ]


@pytest.mark.parametrize("width", [3, 8])
def test_many_codes_go_in_parts(width, monkeypatch):
    codes = torch.randint(
        2**width, (1000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32
    )
    whole = bit_packing.pack(codes, width)
    monkeypatch.setattr(bit_packing, "CHUNK_CODES", 64)
    assert torch.equal(bit_packing.pack(codes, width), whole)
    assert torch.equal(bit_packing.unpack(whole, width, 1000), codes)
