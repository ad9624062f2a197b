import pytest
import torch
from tolerances import assert_within, of_product, of_solve, relative

from sq.solver import column_elimination, greedy_elimination, obq


def saliency(error, diagonal):
    return (error.square().sum(1) / diagonal).argsort(-1, descending=True)


def cheapest(error, diagonal, taken):
    return (error.square().sum(1) / diagonal + taken).argmin(1)


def engines(W, H, grid, block):
    inverse = torch.linalg.inv(H)
    order = torch.stack(
        [
            torch.randperm(W.shape[2], generator=torch.Generator().manual_seed(g))
            for g in range(len(W))
        ]
    )
    return {
        "natural": column_elimination.sweep(W, H, grid, None, block=block),
        "ordered": column_elimination.sweep(W, H, grid, order, block=block),
        "ranked": column_elimination.ranked(W, inverse, grid, saliency, stride=7, block=block),
        "greedy": greedy_elimination.eliminate(W, inverse, grid, cheapest, block=block),
    }


@pytest.mark.parametrize("block", [1, 8, 64])
def test_predicted_loss_is_the_loss(fit, correlated, block):
    W, H = correlated(0, 2, 5, 30, damp=0)
    grid = fit(W, 3)
    for name, (Q, predicted) in engines(W, H, grid, block).items():
        measured = ((W - Q) @ H * (W - Q)).sum(-1)
        torch.testing.assert_close(predicted, measured, rtol=of_solve(H), atol=0, msg=name)
        assert_within(grid.nearest(Q), Q, relative(2, Q.dtype) * Q.abs(), name)


def test_predicted_loss_of_obq_is_the_loss(fit, correlated):
    W, H = correlated(1, 1, 5, 30, damp=0)
    grid = fit(W, 2)
    rows = grid.map(lambda t: t.transpose(0, 1).contiguous())
    inverse = torch.linalg.inv(H).expand(5, 30, 30)

    def pick(error, diagonal, taken):
        return obq.pick(error, diagonal, taken, limit=None)

    Q, predicted = greedy_elimination.eliminate(W.transpose(0, 1), inverse, rows, pick, block=8)
    error = W - Q.transpose(0, 1)
    torch.testing.assert_close(
        predicted[:, 0], (error @ H * error).sum(-1)[0], rtol=of_solve(H), atol=0
    )


@pytest.mark.parametrize("block", [1, 6, 100])
def test_downdated_inverse_is_the_inverse_of_what_is_left(fit, correlated, block):
    # Lemma 1 of OBQ. `pick` sees the diagonal of the inverse before each step; columns already done
    # may be dropped.
    W, H = correlated(2, 1, 4, 40)
    grid = fit(W, 3)
    columns, seen = list(range(40)), []

    def pick(error, diagonal, taken):
        nonlocal columns
        free = taken == 0
        active = [c for c in range(40) if c not in seen]
        if diagonal.shape[1] < len(columns):
            columns = active
        assert [c for c, f in zip(columns, free[0], strict=True) if f] == active
        wanted = torch.linalg.inv(H[0][active][:, active]).diagonal()
        torch.testing.assert_close(diagonal[0][free[0]], wanted, rtol=of_solve(H), atol=0)
        p = cheapest(error, diagonal, taken)
        seen.append(columns[int(p)])
        return p

    greedy_elimination.eliminate(W, torch.linalg.inv(H), grid, pick, block=block)
    assert sorted(seen) == list(range(40))


def test_ranked_sees_the_inverse_of_what_is_left(fit, correlated):
    W, H = correlated(3, 2, 4, 23)
    grid = fit(W, 3)
    active = [list(range(23)), list(range(23))]

    def rank(error, diagonal):
        order = saliency(error, diagonal)
        for g in range(2):
            wanted = torch.linalg.inv(H[g][active[g]][:, active[g]]).diagonal()
            torch.testing.assert_close(
                diagonal[g].sort().values, wanted.sort().values, rtol=of_solve(H), atol=0
            )
            # the engine may hold its columns in any order: know them by their diagonal
            taken = [int((wanted - diagonal[g, place]).abs().argmin()) for place in order[g, :5]]
            active[g] = [c for place, c in enumerate(active[g]) if place not in taken]
        return order

    column_elimination.ranked(W, torch.linalg.inv(H), grid, rank, stride=5, block=64)
    assert active == [[], []]


def test_free_columns_are_at_their_optimum(fit, correlated):
    # What is compensated for is seen in the errors that `rank` is given: w - nearest(w) of the best
    # w left.
    W, H = correlated(4, 1, 3, 12)
    grid = fit(W, 3)
    given = []

    def rank(error, diagonal):
        given.append(error.clone())
        return torch.arange(error.shape[2]).unsqueeze(0)

    Q, _ = column_elimination.ranked(W, torch.linalg.inv(H), grid, rank, stride=4, block=64)
    for step, error in enumerate(given):
        done, left = list(range(4 * step)), list(range(4 * step, 12))
        best = W[0][:, left] + (W - Q)[0][:, done] @ H[0][done][:, left] @ torch.linalg.inv(
            H[0][left][:, left]
        )
        torch.testing.assert_close(
            error,
            best - grid.nearest(best.unsqueeze(0)),
            rtol=0,
            atol=of_solve(H) * float(W.norm()),
        )


@pytest.mark.parametrize("engine", ["natural", "ordered", "ranked", "greedy"])
def test_inputs_are_not_changed(fit, correlated, engine):
    W, H = correlated(5, 2, 3, 20)
    grid = fit(W, 3)
    inverse = torch.linalg.inv(H)
    tensors = {"W": W, "H": H, "inverse": inverse}
    copies = {name: t.clone() for name, t in tensors.items()}
    if engine == "ranked":
        column_elimination.ranked(W, inverse, grid, saliency, stride=3, block=4)
    elif engine == "greedy":
        greedy_elimination.eliminate(W, inverse, grid, cheapest, block=4)
    else:
        order = torch.arange(19, -1, -1).expand(2, 20) if engine == "ordered" else None
        column_elimination.sweep(W, H, grid, order, block=4)
    assert all(torch.equal(copies[name], t) for name, t in tensors.items())


def test_factor(correlated):
    _, H = correlated(6, 3, 1, 25)
    R = column_elimination.factor(H)
    assert torch.equal(R, R.triu())
    assert_within(R @ R.mT, H, 2 * of_product(R, R.mT, more=1))
    with pytest.raises(torch.linalg.LinAlgError):
        column_elimination.factor(-H)


def test_inverse_diagonal(correlated):
    _, H = correlated(7, 3, 1, 25)
    wanted = torch.linalg.inv(H).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(
        column_elimination.inverse_diagonal(H), wanted, rtol=of_solve(H), atol=0
    )


def test_columns():
    M = torch.arange(24).view(2, 3, 4)
    chosen, rows = torch.tensor([[3, 0], [1, 2]]), torch.tensor([[2], [0]])
    assert column_elimination.columns(M, chosen).tolist() == [
        [[3, 0], [7, 4], [11, 8]],
        [[13, 14], [17, 18], [21, 22]],
    ]
    assert column_elimination.columns(M, chosen, rows).tolist() == [[[11, 8]], [[13, 14]]]
