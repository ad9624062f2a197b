import numpy as np
import pytest
import torch
from tolerances import relative

from sq.activation import minmax, percentile
from sq.grid.uniform_grid import per_tensor


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.1, 0.5, 0.97, 0.9999, 1.0])
@pytest.mark.parametrize("kind", ["normal", "silu", "shifted", "negative", "relu"])
def test_quantile_is_that_of_numpy(see, inputs, kind, share):
    seen = see(inputs[kind])
    width = (seen.high - seen.low) / 2048
    gap = 30 / 20000  # where values lie far apart, numpy's quantile lies between two of them
    near = [
        np.quantile(inputs[kind].numpy(), np.clip(share + d, 0, 1)) for d in (-gap / 30, gap / 30)
    ]
    found = percentile.quantile(seen, share)
    assert near[0] - width <= found <= near[1] + width


def test_quantile_within_a_bin(see):
    seen = see(torch.tensor([0.0, 1.0, 1.5, 4.0]), bins=4)  # 1, 2, 0, 1
    for share, wanted in [(0, 0), (0.125, 0.5), (0.25, 1), (0.5, 1.5), (0.875, 3.5), (1, 4)]:
        assert percentile.quantile(seen, share) == pytest.approx(wanted)


@pytest.mark.parametrize("kept", [90.0, 99.0, 99.9])
def test_ranges(see, inputs, kept):
    cut = 1 - kept / 100
    for kind, x in inputs.items():
        if x.unique().numel() == 1:
            continue
        seen = see(x)
        if seen.low < 0:
            low, high = percentile.quantile(seen, cut / 2), percentile.quantile(seen, 1 - cut / 2)
        else:
            low, high = 0.0, percentile.quantile(seen, 1 - cut)
        found = percentile.fit(seen, 6, symmetric=False, percentile=kept)
        wanted = per_tensor(low, high, 6, False)
        assert float(found.scale) == pytest.approx(
            float(wanted.scale), rel=relative(2, torch.float32)
        ), kind
        assert torch.equal(found.low, wanted.low)
        lowest, highest = found.bounds()
        inside = (
            ((x >= lowest - found.half_step()) & (x <= highest + found.half_step())).double().mean()
        )
        assert inside >= kept / 100 - 0.01


def test_hundred_percent_is_minmax(see, inputs):
    for symmetric in (False, True):
        for x in inputs.values():
            found = percentile.fit(see(x), 6, symmetric=symmetric, percentile=100.0)
            wanted = minmax.fit(see(x), 6, symmetric=symmetric)
            assert torch.equal(found.scale, wanted.scale)
            assert torch.equal(found.low, wanted.low)


def test_signed_grid_takes_the_further_end(see, inputs):
    seen = see(inputs["silu"])
    grid = percentile.fit(seen, 8, symmetric=True, percentile=98.0)
    assert float(grid.scale) * 255 == pytest.approx(
        2 * percentile.quantile(seen, 0.99), rel=relative(2, torch.float32)
    )


def test_a_tensor_with_few_values_below_zero_stays_signed(see):
    x = torch.cat([torch.tensor([-0.1]), torch.linspace(0, 1, 5000)])
    grid = percentile.fit(see(x), 4, symmetric=True, percentile=99.0)
    assert (float(grid.low), float(grid.high)) == (-8, 7)
    assert float(percentile.fit(see(x), 4, symmetric=False, percentile=99.0).low) == 0
