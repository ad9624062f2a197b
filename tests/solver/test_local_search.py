import itertools

import pytest
import torch
from scipy.optimize import lsq_linear
from tolerances import assert_within, of_quadratic, of_solve

from sq.hessian.layer_statistics import loss
from sq.solver import local_search


def rows_loss(W, Q, H):
    error = W - Q
    return (error @ H * error).sum(-1)


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("G", [1, 2])
def test_inside_is_the_bounded_least_squares_solution(fit, correlated, bits, G):
    for seed in range(5):
        W, H = correlated(seed, G, 4, 16)
        lowest, highest = fit(W, bits).bounds()
        V = local_search.fit_within_bounds(
            W, torch.linalg.inv(H), (lowest, highest), revisions=30, hold=1.0
        )
        for g, o in itertools.product(range(G), range(4)):
            root = torch.linalg.cholesky(H[g]).T.numpy()
            wanted = lsq_linear(
                root,
                root @ W[g, o].numpy(),
                (lowest[g, o].item(), highest[g, o].item()),
                method="bvls",
            )
            assert_within(
                V[g, o], torch.from_numpy(wanted.x), of_solve(H[g], steps=2) * float(W[g, o].norm())
            )


@pytest.mark.parametrize("revisions", [0, 1, 2])
def test_inside_with_few_revisions_stays_inside_and_gets_better(fit, correlated, revisions):
    W, H = correlated(1, 2, 6, 40)
    bounds = fit(W, 2).bounds()
    inverse = torch.linalg.inv(H)
    V = local_search.fit_within_bounds(W, inverse, bounds, revisions=revisions, hold=1.0)
    assert (bounds[0] <= V).all()
    assert (bounds[1] >= V).all()
    if revisions == 0:
        assert torch.equal(V, W.clamp(*bounds))
    else:
        fewer = local_search.fit_within_bounds(
            W, inverse, bounds, revisions=revisions - 1, hold=1.0
        )
        assert loss(W - V, H) < loss(W - fewer, H)


def test_inside_leaves_weights_within_the_grid_alone(correlated):
    W, H = correlated(1, 2, 3, 10)
    bounds = (torch.full((2, 3, 1), -1e3, dtype=W.dtype), torch.full((2, 3, 1), 1e3, dtype=W.dtype))
    assert torch.equal(
        local_search.fit_within_bounds(W, torch.linalg.inv(H), bounds, revisions=3, hold=1.0), W
    )


def test_inside_a_few_rows_at_a_time_is_the_same(fit, correlated, monkeypatch):
    W, H = correlated(4, 3, 5, 30)
    arguments = W, torch.linalg.inv(H), fit(W, 2).bounds()
    whole = local_search.fit_within_bounds(*arguments, revisions=3, hold=1.0)
    monkeypatch.setattr(local_search, "IN_FLIGHT", 1)
    assert_within(
        local_search.fit_within_bounds(*arguments, revisions=3, hold=1.0),
        whole,
        of_solve(H, steps=2) * float(W.norm()),
    )


@pytest.mark.parametrize("depth", [1, 4, 16])
def test_the_loss_of_no_row_rises_and_codes_stay_codes(fit, correlated, depth):
    for seed in range(4):
        W, H = correlated(seed, 2, 6, 24)
        grid = fit(W, 2)
        codes = grid.encode(W)
        losses = [rows_loss(W, grid.decode(codes), H)]
        for rounds in (1, 2, 5, 20):
            found = local_search.descend(W, H, grid, codes, depth=depth, rounds=rounds)
            assert found.dtype == codes.dtype
            assert found.min() >= 0
            assert found.max() <= 3
            losses.append(rows_loss(W, grid.decode(found), H))
            rounding = of_quadratic(W - grid.decode(found), H, more=rounds * depth)
            assert (losses[-1] <= losses[-2] + rounding).all()
        assert losses[-1].sum() < losses[0].sum()


def coordinate_descent(w, H, levels, code):
    # the best single step of one code, again and again
    code = code.copy()

    def cost(c):
        e = w - levels[c]
        return e @ H @ e

    while True:
        neighbours = [
            (j, d) for j in range(len(w)) for d in (-1, 1) if 0 <= code[j] + d < len(levels)
        ]
        trials = []
        for j, d in neighbours:
            trial = code.copy()
            trial[j] += d
            trials.append((cost(trial), j, trial))
        best = min(trials, key=lambda t: t[0])
        if best[0] >= cost(code):
            return code
        code = best[2]


def test_depth_1_is_coordinate_descent(fit, correlated):
    W, H = correlated(5, 2, 3, 12)
    grid = fit(W, 3)
    codes = grid.encode(W)
    levels = grid.decode(torch.arange(8).expand(2, 3, 8)).numpy()
    found = local_search.descend(W, H, grid, codes, depth=1, rounds=40)
    for g, o in itertools.product(range(2), range(3)):
        wanted = coordinate_descent(
            W[g, o].numpy(), H[g].numpy(), levels[g, o], codes[g, o].numpy()
        )
        assert found[g, o].tolist() == wanted.tolist()


def test_several_codes_at_a_time_come_near_the_best_of_all(fit, correlated):
    # exhaustive search over 2 bits and 6 columns
    every = torch.cartesian_prod(*[torch.arange(4)] * 6).to(torch.int32)
    reached = []
    for seed in range(20):
        W, H = correlated(seed, 1, 1, 6, damp=1e-3)
        grid = fit(W, 2)
        best = min(loss(W - q.view(1, 1, 6), H) for q in grid.decode(every.unsqueeze(0))[0])
        one, many = (
            local_search.descend(W, H, grid, grid.encode(W), depth=d, rounds=60) for d in (1, 6)
        )
        losses = [loss(W - grid.decode(c), H) for c in (one, many)]
        rounding = float(of_quadratic(W, H).max())
        assert best <= losses[1] + rounding
        reached.append([x <= best + rounding for x in losses])
    single, several = (sum(r) for r in zip(*reached, strict=True))
    assert several >= 15
    assert several > single


def test_inputs_are_not_changed(fit, correlated):
    W, H = correlated(6, 2, 3, 20)
    grid = fit(W, 2)
    codes, inverse = grid.encode(W), torch.linalg.inv(H)
    tensors = (W, H, codes, inverse, grid.scale)
    copies = [t.clone() for t in tensors]
    local_search.descend(W, H, grid, codes, depth=4, rounds=5)
    local_search.fit_within_bounds(W, inverse, grid.bounds(), revisions=3, hold=1.0)
    assert all(torch.equal(a, b) for a, b in zip(copies, tensors, strict=True))


@pytest.mark.parametrize("hold", [0.0, 0.05, 0.2])
def test_holding_few_weights_stays_inside(fit, correlated, hold):
    W, H = correlated(1, 2, 6, 40)
    bounds = fit(W, 1).bounds()
    inverse = torch.linalg.inv(H)
    assert ((bounds[0] > W) | (bounds[1] < W)).sum(2).max() > 0.2 * 40
    some, whole = (
        local_search.fit_within_bounds(W, inverse, bounds, revisions=2, hold=h) for h in (hold, 1.0)
    )
    assert (some >= bounds[0]).all()
    assert (some <= bounds[1]).all()
    assert loss(W - whole, H) < loss(W - some, H)
    if hold == 0:
        assert torch.equal(some, W.clamp(*bounds))
