import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_within, relative

from sq.errors import SqError
from sq.grid import range_search, uniform
from sq.grid.uniform_grid import UniformGrid

BASE = dict(symmetric=False, range="minmax", norm=2.4, steps=80, shrink=0.2, hessian=None)
KINDS = [(False, "minmax"), (True, "minmax"), (False, "mse"), (True, "mse")]


def fit(W, bits, h=None, **changes):
    return uniform.fit(W, bits, h, **BASE | changes)


def levels(grid, G, O):
    return grid.decode(torch.arange(grid.levels).expand(G, O, grid.levels))


def weights(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("symmetric", "range"), KINDS)
@pytest.mark.parametrize("bits", [2, 3, 6])
def test_nearest_is_the_nearest_of_all_levels(symmetric, range, bits):
    grid = fit(weights(bits, 2, 3, 20), bits, symmetric=symmetric, range=range)
    values = 3 * weights(7, 2, 3, 50)  # many outside the grid
    table = levels(grid, 2, 3)
    closest = (values.unsqueeze(-1) - table.unsqueeze(2)).abs().argmin(-1)
    assert torch.equal(grid.encode(values).long(), closest)
    assert torch.equal(grid.nearest(values), table.gather(2, closest))
    assert grid.encode(values).dtype == torch.int32


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8),
    st.integers(1, 16),
    st.booleans(),
    st.sampled_from(["minmax", "mse"]),
)
def test_any_channel(channel, bits, symmetric, range):
    W = torch.tensor(channel).view(1, 1, -1)
    bits = max(bits, 2 if symmetric else 1)
    grid = fit(W, bits, symmetric=symmetric, range=range, steps=8)
    codes = grid.encode(W)
    assert codes.min() >= 0
    assert codes.max() < grid.levels == 2**bits
    assert torch.equal(grid.decode(codes), grid.nearest(W))
    assert torch.equal(grid.encode(grid.nearest(W)), codes)
    zero = torch.zeros(1, 1, 1)
    assert torch.equal(grid.nearest(zero), zero)
    if range == "minmax":  # nothing is outside
        rounding = relative(2, W.dtype)
        assert (
            (W - grid.nearest(W)).abs() <= grid.half_step() * (1 + rounding) + rounding * W.abs()
        ).all()


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_affine_range_by_hand(bits):
    W = torch.tensor([[[-1.0, 0.5, 2.0]]], dtype=torch.float64)
    grid = fit(W, bits)
    assert grid.levels == 2**bits
    assert grid.scale.item() == pytest.approx(3 / (2**bits - 1), rel=relative(2, torch.float64))
    assert grid.low.item() == -round((2**bits - 1) / 3)
    assert torch.equal(grid.half_step(), grid.scale / 2)
    assert grid.parameters() == 2


@pytest.mark.parametrize(
    ("bits", "symmetric"), [(1, True), (0, False), (0, True), (-1, False), (17, False), (33, True)]
)
def test_bits_out_of_range_are_refused(bits, symmetric):
    with pytest.raises(SqError, match=rf"(^|\D){bits}\b"):
        fit(weights(0, 1, 2, 4), bits, symmetric=symmetric)


@pytest.mark.parametrize("bits", [1, 16])
def test_bits_at_the_ends_are_taken(bits):
    assert fit(weights(0, 1, 2, 4), bits).levels == 2**bits


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    W = weights(0, 1, 2, 4)
    W[0, 1, 2] = bad
    with pytest.raises(SqError, match="NaN or infinity"):
        fit(W, 4)


def error(W, grid, norm):
    return (W - grid.nearest(W)).abs().pow(norm).sum(-1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4, 4.0])
def test_mse_range_is_no_worse_than_minmax_in_its_norm(symmetric, norm):
    W = weights(1, 2, 8, 40).pow(3)
    for bits in (2, 3, 4):
        full = error(W, fit(W, bits, symmetric=symmetric), norm)
        searched = error(W, fit(W, bits, symmetric=symmetric, range="mse", norm=norm), norm)
        assert (searched <= full).all()
        assert searched.sum() < full.sum()


@pytest.mark.parametrize("chunk", [1, 2**22])
@pytest.mark.parametrize("symmetric", [False, True])
def test_search_equals_a_loop(monkeypatch, chunk, symmetric):
    monkeypatch.setattr(range_search, "CHUNK_ELEMENTS", chunk)
    W = weights(2, 2, 3, 16)
    grid = fit(W, 3, symmetric=symmetric, range="mse", steps=33, shrink=0.3)
    for g in range(2):
        for o in range(3):
            best = (float("inf"), 0.0, 0.0)
            for step in range(33):
                scale, table = spanned(W[g, o], 1 - 0.7 * step / 32, symmetric)
                lost = sum(min(abs(w - t) for t in table) ** 2.4 for w in W[g, o].tolist())
                best = min(best, (lost, scale, table[0]))
            assert grid.scale[g, o].item() == pytest.approx(best[1], rel=relative(8, W.dtype))
            assert (grid.scale * grid.low)[g, o].item() == pytest.approx(
                best[2], rel=relative(8, W.dtype)
            )


@pytest.mark.parametrize("chunk", [1, 2**22])
@pytest.mark.parametrize("symmetric", [False, True])
def test_importance_weighs_the_error_of_each_weight(monkeypatch, chunk, symmetric):
    monkeypatch.setattr(range_search, "CHUNK_ELEMENTS", chunk)
    W, h = weights(2, 2, 3, 16), weights(9, 2, 3, 16).pow(4)
    h[1, 2] = 0  # nothing depends on this channel: the full range
    grid = fit(W, 3, h, symmetric=symmetric, range="hmse", steps=33, shrink=0.3)
    plain = fit(W, 3, symmetric=symmetric, range="mse", norm=2.0, steps=33, shrink=0.3)
    for g in range(2):
        for o in range(3):
            tried = [spanned(W[g, o], 1 - 0.7 * step / 32, symmetric) for step in range(33)]
            lost = [
                sum(
                    own * min(abs(w - t) for t in table) ** 2
                    for w, own in zip(W[g, o].tolist(), h[g, o].tolist(), strict=True)
                )
                for _, table in tried
            ]
            assert grid.scale[g, o].item() == pytest.approx(
                tried[lost.index(min(lost))][0], rel=relative(8, W.dtype)
            )
    assert (grid.scale != plain.scale).any(), "the weights make no difference here"

    def cost(own):
        return (h * (W - own.nearest(W)).square()).sum(-1)

    assert (cost(grid) <= cost(plain)).all()


def spanned(channel, factor, symmetric):
    """Return the step of the 3-bit grid over `factor` of a channel's range, and its values."""
    low, high = min(float(channel.min()), 0), max(float(channel.max()), 0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    scale = (high - low) * factor / 7
    zero = -4 if symmetric else round(low * factor / scale)
    return scale, [scale * (zero + code) for code in range(8)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_equal_importance_is_least_squared_error(symmetric, bits):
    W = weights(10, 2, 8, 30)
    # between channels it may differ
    h = torch.full_like(W, 0.125) * torch.tensor([1.0, 4.0]).view(2, 1, 1)
    own = fit(W, bits, h, symmetric=symmetric, range="hmse")
    wanted = fit(W, bits, symmetric=symmetric, range="mse", norm=2.0)
    assert torch.equal(own.scale, wanted.scale)
    assert torch.equal(own.low, wanted.low)


@pytest.mark.parametrize(
    ("range", "h"), [("hmse", None), ("mse", torch.ones(1, 2, 4)), ("minmax", torch.ones(1, 2, 4))]
)
def test_importance_is_for_its_range_alone(range, h):
    with pytest.raises(
        SqError, match=rf"^grid\.range={range} (needs a network|takes no importance)"
    ):
        fit(weights(0, 1, 2, 4), 3, h, range=range)


def test_one_step_tries_the_full_range():
    W = weights(3, 1, 4, 10)
    assert torch.equal(fit(W, 3, range="mse", steps=1).scale, fit(W, 3).scale)


@pytest.mark.parametrize(("symmetric", "range"), KINDS)
def test_zero_channel(symmetric, range):
    W = weights(4, 1, 3, 10)
    W[:, 1] = 0
    grid = fit(W, 3, symmetric=symmetric, range=range)
    assert (grid.scale > 0).all()
    assert torch.equal(grid.nearest(W)[:, 1], W[:, 1])
    alone = fit(W[:, [0]], 3, symmetric=symmetric, range=range)
    assert torch.equal(grid.nearest(W)[:, [0]], alone.nearest(W[:, [0]]))


@pytest.mark.parametrize("sign", [1, -1])
def test_channel_of_one_sign_spends_all_levels_on_it(sign):
    W = sign * weights(5, 1, 3, 10).abs()
    grid = fit(W, 3)
    reach = levels(grid, 1, 3)
    assert (reach * sign >= 0).all()
    furthest = W.abs().amax(-1)
    assert_within(reach.abs().amax(-1), furthest, relative(2, W.dtype) * furthest)
    assert (reach == 0).any(-1).all()


def test_symmetric_codes_stand_around_the_middle():
    W = weights(6, 1, 3, 10)
    grid = fit(W, 4, symmetric=True)
    assert (grid.low == -8).all()
    assert (grid.high == 7).all()
    assert (grid.encode(torch.zeros_like(W)) == 8).all()
    assert ((W - grid.nearest(W)).abs() <= grid.half_step() + relative(2, W.dtype) * W.abs()).all()


def test_map_and_numpy_agree_with_the_grid():
    W = weights(7, 2, 3, 10)
    grid = fit(W, 3)
    column = 2 * weights(8, 2, 3, 1)
    transposed = grid.map(lambda t: t.transpose(1, 2).contiguous())
    assert torch.equal(
        transposed.nearest(column.transpose(1, 2)), grid.nearest(column).transpose(1, 2)
    )
    nearest = transposed.on_numpy()(column[:, :, 0].numpy())
    assert (nearest == grid.nearest(column)[:, :, 0].numpy()).all()


def test_bounds_and_steps():
    grid = UniformGrid(
        torch.tensor([[[0.5], [2.0]]]),
        torch.tensor([[[-1.0], [0.0]]]),
        torch.tensor([[[2.0], [3.0]]]),
        4,
    )
    lowest, highest = grid.bounds()
    assert lowest.tolist() == [[[-0.5], [0.0]]]
    assert highest.tolist() == [[[1.0], [6.0]]]
    down, up = grid.steps(torch.tensor([[[0, 3], [1, 2]]], dtype=torch.int32))
    assert down.tolist() == [[[torch.inf, 0.5], [2.0, 2.0]]]
    assert up.tolist() == [[[0.5, torch.inf], [2.0, 2.0]]]


@pytest.mark.parametrize("bits", [2, 4])
def test_refit_finds_the_scale_of_least_loss(fit, correlated, bits):
    W, H = correlated(3, 2, 4, 20)
    grid = fit(W, bits)
    codes = grid.encode(W)

    def loss(g):
        error = W - g.decode(codes)
        return (error @ H * error).sum(-1)

    moved = grid.refit(W, H, codes)
    best = loss(moved)
    assert (best <= loss(grid)).all()
    for factor in (0.99, 1.01):
        assert (
            best < loss(UniformGrid(factor * moved.scale, moved.low, moved.high, moved.levels))
        ).all()


def test_refit_keeps_a_scale_it_cannot_find(fit, correlated):
    W, H = correlated(3, 1, 2, 20)
    grid = fit(W, 3)
    codes = grid.encode(W)
    codes[:, 0] = (-grid.low[:, 0]).int()  # all zero: any scale does
    codes[:, 1] = grid.encode(-W)[:, 1]  # the other way round: the best scale is negative
    assert torch.equal(grid.refit(W, H, codes).scale, grid.scale)
