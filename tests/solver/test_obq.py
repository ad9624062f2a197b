from functools import partial

import numpy as np
import pytest
import torch

from sq.errors import SqError
from sq.solver import greedy_elimination, obq, textbook_obq
from sq.types.problem import Layer

# half a step, and the tolerance below which a rounding error is not called an outlier
BEYOND = 1 + 1e-5


def solve(W, H, grid, *, outliers=True, memory_gib=1.0, block=32):
    return obq.solve(W, H, grid, outliers=outliers, memory_gib=memory_gib, block=block)


def tables(grid, G, O):
    # each row's grid values and half a step, as NumPy
    codes = torch.arange(grid.levels).expand(G, O, grid.levels)
    return grid.decode(codes).numpy(), grid.half_step().expand(G, O, 1).numpy()[..., 0]


def best(w, H, fixed, levels):
    # the weights that minimise (w - v) H (w - v)^T with `fixed` {column: code} given, and that
    # minimum
    v = w.copy()
    free = [j for j in range(len(w)) if j not in fixed]
    done = list(fixed)
    v[done] = levels[list(fixed.values())]
    if free and done:
        v[free] += np.linalg.solve(H[np.ix_(free, free)], H[np.ix_(free, done)] @ (w - v)[done])
    return v, (w - v) @ H @ (w - v)


def brute_force(w, H, levels, half, outliers):
    fixed = {}
    while len(fixed) < len(w):
        v, _ = best(w, H, fixed, levels)
        free = [j for j in range(len(w)) if j not in fixed]
        code = {j: int(np.abs(levels - v[j]).argmin()) for j in free}
        error = {j: abs(levels[code[j]] - v[j]) for j in free}
        worst = max(free, key=error.get)
        if outliers and error[worst] > half * BEYOND:
            chosen = worst
        else:
            chosen = min(free, key=lambda j: best(w, H, {**fixed, j: code[j]}, levels)[1])
        fixed[chosen] = code[chosen]
    return fixed


def recorded(W, H, grid, outliers):
    # the order that OBQ takes in each row of W (1, O, I); blocks as wide as W, so that places stay
    # columns
    O, I = W.shape[1:]
    order = []

    def watch(error, diagonal, taken, limit):
        order.append(obq.pick(error, diagonal, taken, limit=limit))
        return order[-1]

    rows = grid.map(lambda t: t.transpose(0, 1).contiguous())
    limit = rows.half_step().squeeze(2) * BEYOND if outliers else None
    inverse = torch.linalg.inv(H).expand(O, I, I)
    greedy_elimination.eliminate(
        W.transpose(0, 1), inverse, rows, partial(watch, limit=limit), block=I
    )
    return torch.stack(order, 1)


@pytest.mark.parametrize("outliers", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_equals_brute_force(fit, correlated, outliers, bits):
    for seed in range(8):
        G, O, I = 1 + seed % 3, 1 + seed % 2, 2 + seed % 7
        W, H = correlated(seed, G, O, I)
        grid = fit(W, bits)
        levels, half = tables(grid, G, O)
        codes = solve(W, H, grid, outliers=outliers)
        for g in range(G):
            for o in range(O):
                fixed = brute_force(
                    W[g, o].numpy(), H[g].numpy(), levels[g, o], half[g, o], outliers
                )
                assert codes[g, o].tolist() == [fixed[j] for j in range(I)], (seed, g, o)


@pytest.mark.parametrize("outliers", [True, False])
def test_takes_the_columns_of_brute_force_in_turn(fit, correlated, outliers):
    for seed in range(4):
        W, H = correlated(seed, 1, 3, 8)
        grid = fit(W, 2)
        levels, half = tables(grid, 1, 3)
        order = recorded(W, H, grid, outliers)
        for o in range(3):
            fixed = brute_force(W[0, o].numpy(), H[0].numpy(), levels[0, o], half[0, o], outliers)
            assert order[o].tolist() == list(fixed)


def test_outlier_rule_changes_the_result(fit, correlated):
    W, H = correlated(0, 1, 8, 32)
    grid = fit(W, 2)
    assert not torch.equal(solve(W, H, grid, outliers=True), solve(W, H, grid, outliers=False))


def textbook(w, inverse, levels, half, outliers):
    w, inverse, codes = w.copy(), inverse.copy(), np.zeros(len(w), int)
    free = np.ones(len(w), bool)
    for _ in range(len(w)):
        code = np.abs(levels[:, None] - w).argmin(0)
        error = w - levels[code]
        p = np.where(free, error**2 / np.diag(inverse), np.inf).argmin()
        size = np.where(free, np.abs(error), 0)
        if outliers and size.max() > half * BEYOND:
            p = size.argmax()
        codes[p], free[p] = code[p], False
        w -= error[p] / inverse[p, p] * inverse[p]
        inverse -= np.outer(inverse[:, p], inverse[p]) / inverse[p, p]
        inverse[p, p] = 1  # not used again; spares a division by zero
    return codes


@pytest.mark.parametrize("outliers", [True, False])
@pytest.mark.parametrize("G", [1, 2])
def test_equals_textbook_downdates(fit, correlated, outliers, G):
    W, H = correlated(5, G, 4, 64)
    grid = fit(W, 3)
    levels, half = tables(grid, G, 4)
    codes = solve(W, H, grid, outliers=outliers).numpy()
    inverse = np.linalg.inv(H.numpy())
    for g in range(G):
        for o in range(4):
            wanted = textbook(W[g, o].numpy(), inverse[g], levels[g, o], half[g, o], outliers)
            assert (codes[g, o] == wanted).all(), (g, o)
    slow = textbook_obq.solve(W, H, grid, outliers=outliers, rows=3)
    assert (slow.numpy() == codes).all()


@pytest.mark.parametrize("G", [1, 3])
def test_rows_in_flight_do_not_change_codes(fit, correlated, G):
    W, H = correlated(2, G, 5, 40)
    grid = fit(W, 3)
    one_row = 40 * 40 * 8 / 2**30
    assert torch.equal(solve(W, H, grid, memory_gib=one_row), solve(W, H, grid))


def test_memory_for_less_than_a_row_is_refused_with_the_cure(fit, correlated):
    W, H = correlated(2, 1, 2, 40)
    with pytest.raises(
        SqError, match=r"40 columns: .* more than memory_gib=1e-06; set .*memory_gib=0.01 or more"
    ):
        solve(W, H, fit(W, 3), memory_gib=1e-6)


def test_plan_counts_rows_in_flight_and_operations():
    layer = Layer("fc", torch.nn.Linear(1, 1), "linear", groups=2, outputs=3, inputs=100)
    assert obq.plan(layer, 4, memory_gib=1.0).bytes == 6 * 100 * 100 * 4
    assert obq.plan(layer, 4, memory_gib=2.5 * 100 * 100 * 4 / 2**30).bytes == 2 * 100 * 100 * 4
    assert obq.plan(layer, 4, memory_gib=1.0).operations == 6 * 2 * 100**3 // 3


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_equals_textbook_obq_on_200_layers(fit, correlated, seed):
    for s in range(seed, seed + 20):
        G, O, I = (1, 1, 3)[s % 3], 1 + s % 7, 2 + (s * 37) % 90
        W, H = correlated(s, G, O, I, damp=(0.01, 1e-4)[s % 2])
        grid = fit(W, 1 + s % 4)
        wanted = textbook_obq.solve(W, H, grid, outliers=s % 5 > 0, rows=1 + s % 4)
        assert torch.equal(solve(W, H, grid, outliers=s % 5 > 0, block=1 + s % 33), wanted), s


@pytest.mark.parametrize("block", [1, 5, 32])
def test_block_does_not_change_codes(fit, correlated, block):
    W, H = correlated(3, 2, 5, 40)
    grid = fit(W, 3)
    assert torch.equal(solve(W, H, grid, block=block), solve(W, H, grid, block=40))
