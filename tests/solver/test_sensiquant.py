import functools

import numpy as np
import pytest
import torch
from tolerances import assert_near, of_solve, relative

from sq.grid.uniform import UniformGrid
from sq.hessian.layer_statistics import loss
from sq.solver import column_elimination, greedy_elimination, obq, sensiquant

BASE = dict(
    order="static",
    direction="descending",
    score="saliency",
    aggregate="sum",
    rankings=None,
    clusters=4,
    block=64,
)


def solve(W, H, grid, **changes):
    return sensiquant.solve(W, H, grid, **BASE | changes)


def values(grid, G, O):
    return grid.decode(torch.arange(grid.levels).expand(G, O, grid.levels)).numpy()


def shared_update(W, H, levels, order, dynamic=False):
    # Equation 3 of our notes as written: all rows, one explicit inverse, one group. `order` if not
    # `dynamic`.
    W, inverse = W.copy(), np.linalg.inv(H)
    codes = np.zeros(W.shape, int)
    free = list(range(W.shape[1]))
    while free:
        code = np.abs(levels[:, :, None] - W[:, None]).argmin(1)
        error = W - np.take_along_axis(levels, code, 1)
        if dynamic:
            j = max(free, key=lambda j: (error[:, j] ** 2).sum() / inverse[j, j])
        else:
            j = order[W.shape[1] - len(free)]
        free.remove(j)
        codes[:, j] = code[:, j]
        W = W - np.outer(error[:, j] / inverse[j, j], inverse[j])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@pytest.mark.parametrize("I", [5, 24, 70])
def test_equation_3_equals_permuted_cholesky(fit, correlated, I):
    W, H = correlated(I, 2, 6, I)
    grid = fit(W, 3)
    levels = values(grid, 2, 6)
    error = (W - grid.nearest(W)).square().sum(1)
    order = (error / torch.linalg.inv(H).diagonal(dim1=-2, dim2=-1)).argsort(-1, descending=True)
    swept = grid.encode(column_elimination.sweep(W, H, grid, order, block=16)[0])
    assert torch.equal(swept, solve(W, H, grid))
    for g in range(2):
        assert (
            swept[g].numpy()
            == shared_update(W[g].numpy(), H[g].numpy(), levels[g], order[g].tolist())
        ).all()


@pytest.mark.parametrize("rankings", [None, 24])
def test_dynamic_equals_equation_3_with_a_ranking_a_column(fit, correlated, rankings):
    W, H = correlated(1, 2, 6, 24)
    grid = fit(W, 3)
    levels = values(grid, 2, 6)
    codes = solve(W, H, grid, order="dynamic", rankings=rankings).numpy()
    for g in range(2):
        assert (
            codes[g] == shared_update(W[g].numpy(), H[g].numpy(), levels[g], None, dynamic=True)
        ).all()


def test_one_row_in_the_order_of_obq_is_obq(fit, correlated):
    for seed in range(5):
        W, H = correlated(seed, 1, 1, 20)
        grid = fit(W, 3)
        order = []

        def watch(*args, limit, order=order):
            order.append(obq.pick(*args, limit=limit))
            return order[-1]

        pick = functools.partial(watch, limit=grid.half_step().squeeze(2) * (1 + 1e-5))
        greedy_elimination.eliminate(W, torch.linalg.inv(H), grid, pick, block=20)
        swept, _ = column_elimination.sweep(W, H, grid, torch.stack(order, 1), block=8)
        assert torch.equal(
            grid.encode(swept), obq.solve(W, H, grid, outliers=True, memory_gib=1.0, block=7)
        )


@pytest.mark.parametrize("direction", ["descending", "ascending"])
@pytest.mark.parametrize("aggregate", ["sum", "max"])
def test_ranking_every_column_equals_greedy(fit, correlated, direction, aggregate):
    W, H = correlated(4, 2, 6, 37)
    grid = fit(W, 3)
    run = functools.partial(
        solve, W, H, grid, order="dynamic", direction=direction, aggregate=aggregate
    )
    greedy = run(rankings=None)
    assert torch.equal(run(rankings=37), greedy)
    assert torch.equal(run(rankings=1000), greedy)
    assert torch.equal(run(rankings=None, block=5), greedy)


@pytest.mark.parametrize("direction", ["descending", "ascending"])
@pytest.mark.parametrize("aggregate", ["sum", "max"])
def test_ranking_once_equals_static(fit, correlated, direction, aggregate):
    W, H = correlated(5, 2, 6, 37)
    grid = fit(W, 3)
    run = functools.partial(solve, W, H, grid, direction=direction, aggregate=aggregate, rankings=1)
    assert torch.equal(run(order="dynamic"), run(order="static"))


def test_settings_matter(fit, correlated):
    W, H = correlated(6, 1, 8, 48)
    grid = fit(W, 3)
    changes = [
        {},
        {"direction": "ascending"},
        {"aggregate": "max"},
        {"score": "weight"},
        {"score": "inverse"},
        {"score": "activation"},
        {"order": "dynamic"},
        {"order": "dynamic", "rankings": 4},
        {"order": "grouped"},
    ]
    assert len({tuple(solve(W, H, grid, **c).flatten().tolist()) for c in changes}) == len(changes)


def test_activation_score_is_act_order(fit, correlated):
    W, H = correlated(7, 2, 6, 30)
    grid = fit(W, 3)
    order = H.diagonal(dim1=-2, dim2=-1).argsort(-1, descending=True)
    swept, _ = column_elimination.sweep(W, H, grid, order, block=64)
    assert torch.equal(solve(W, H, grid, score="activation"), grid.encode(swept))


@pytest.mark.parametrize("block", [1, 7])
@pytest.mark.parametrize("order", ["static", "dynamic", "grouped"])
def test_block_does_not_change_codes(fit, correlated, order, block):
    W, H = correlated(8, 2, 6, 40)
    grid = fit(W, 3)
    run = functools.partial(solve, W, H, grid, order=order, rankings=3)
    assert torch.equal(run(block=block), run(block=64))


def test_as_many_clusters_as_columns_is_static(fit, correlated):
    W, H = correlated(9, 2, 6, 30)
    grid = fit(W, 3)
    for direction in ("descending", "ascending"):
        grouped = solve(W, H, grid, order="grouped", clusters=30, direction=direction)
        assert torch.equal(grouped, solve(W, H, grid, direction=direction))


def test_one_cluster_is_natural_order(fit, correlated):
    W, H = correlated(9, 2, 6, 30)
    grid = fit(W, 3)
    natural, _ = column_elimination.sweep(W, H, grid, None, block=64)
    assert torch.equal(solve(W, H, grid, order="grouped", clusters=1), grid.encode(natural))


def test_clusters_found_by_hand():
    S = torch.tensor([[1.0, 1000.0, 1.1, 0.9, 1100.0, 900.0]], dtype=torch.float64)
    low, high = (S[0, i].log().mean() for i in ([0, 2, 3], [1, 4, 5]))
    wanted = torch.stack([low, high, low, low, high, high]).unsqueeze(0)
    assert_near(sensiquant.cluster(S, 2), wanted, relative(3, torch.float64))


@pytest.mark.parametrize("bits", [3, 4])
def test_sensitive_columns_first_is_the_better_order(fit, correlated, bits):
    error = dict.fromkeys(("descending", "natural", "ascending", "obq"), 0.0)
    for seed in range(6):
        W, H = correlated(seed, 1, 24, 48)
        grid = fit(W, bits)

        def add(name, codes, W=W, H=H, grid=grid):
            error[name] += loss(W - grid.decode(codes), H) / loss(W, H)

        add("descending", solve(W, H, grid))
        add("natural", grid.encode(column_elimination.sweep(W, H, grid, None, block=64)[0]))
        add("ascending", solve(W, H, grid, direction="ascending"))
        add("obq", obq.solve(W, H, grid, outliers=True, memory_gib=1.0, block=32))
    assert error["descending"] < error["natural"] < error["ascending"]
    assert error["descending"] <= 1.2 * error["obq"]


@pytest.mark.parametrize("score", ["weight", "inverse", "activation"])
def test_dynamic_takes_saliency_alone(fit, correlated, score):
    W, H = correlated(0)
    with pytest.raises(ValueError, match=f"score={score}"):
        solve(W, H, fit(W, 3), order="dynamic", score=score)


def test_sensitivity_by_hand():
    # H^-1 = [[2, -1], [-1, 1]]; integers are the grid, so the rounding errors are .25, .5 and 0,
    # .125
    H = torch.tensor([[[1.0, 1.0], [1.0, 2.0]]])
    W = torch.tensor([[[1.25, 2.5], [3.0, -1.125]]])
    grid = UniformGrid(*(torch.full((1, 2, 1), v) for v in (1.0, -8.0, 7.0)), levels=16)
    wanted = {
        ("saliency", "sum"): [0.0625 / 2, 0.25 + 0.015625],
        ("saliency", "max"): [0.0625 / 2, 0.25],
        ("weight", "sum"): [(1.5625 + 9) / 2, 6.25 + 1.265625],
        ("weight", "max"): [9 / 2, 6.25],
        ("inverse", "sum"): [2 / 2, 2.0],
        ("inverse", "max"): [1 / 2, 1.0],
        ("activation", "sum"): [1.0, 2.0],
        ("activation", "max"): [1.0, 2.0],
    }
    for (score, aggregate), S in wanted.items():
        assert_near(
            sensiquant.sensitivity(W, H, grid, score, aggregate), torch.tensor([S]), of_solve(H)
        )
