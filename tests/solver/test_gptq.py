import numpy as np
import pytest
import torch

from sq.solver import gptq


def solve(W, H, grid, order="natural", block=64):
    return gptq.solve(W, H, grid, order=order, block=block)


def slow(W, H, levels):
    # One group, left to right: the inverse of what is left of H is computed anew for each column.
    W, codes = W.copy(), np.zeros(W.shape, int)
    for j in range(W.shape[1]):
        inverse = np.linalg.inv(H[j:, j:])
        codes[:, j] = np.abs(levels - W[:, j, None]).argmin(1)
        error = W[:, j] - levels[np.arange(len(W)), codes[:, j]]
        W[:, j:] -= np.outer(error / inverse[0, 0], inverse[0])
    return codes


@pytest.mark.parametrize(
    ("G", "O", "I", "bits"), [(1, 5, 30, 4), (1, 1, 1, 3), (3, 4, 17, 2), (6, 1, 9, 1)]
)
def test_equals_slow_loop(fit, correlated, G, O, I, bits):
    W, H = correlated(I, G, O, I)
    grid = fit(W, bits)
    levels = grid.decode(torch.arange(grid.levels).expand(G, O, grid.levels)).numpy()
    codes = solve(W, H, grid).numpy()
    for g in range(G):
        assert (codes[g] == slow(W[g].numpy(), H[g].numpy(), levels[g])).all()


def test_act_order_is_a_permutation_by_hand(fit, correlated):
    W, H = correlated(3, 1, 5, 30)
    grid = fit(W, 3)
    order = sorted(range(30), key=lambda j: -float(H[0, j, j]))
    permuted = solve(W[:, :, order], H[:, order][:, :, order], grid)
    acted = solve(W, H, grid, order="act")
    assert torch.equal(acted[:, :, order], permuted)
    assert not torch.equal(acted, solve(W, H, grid))


@pytest.mark.parametrize("order", ["natural", "act"])
@pytest.mark.parametrize("block", [1, 3, 16, 1000])
def test_block_does_not_change_codes(fit, correlated, order, block):
    W, H = correlated(4, 2, 5, 50)
    grid = fit(W, 3)
    assert torch.equal(solve(W, H, grid, order, block), solve(W, H, grid, order, 50))
