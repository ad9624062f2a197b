"""Local search that continues where compensation in one shared order stops.

There are two parts, both for all rows at once. Both minimise tr((W - Q) H (W - Q)^T), and both are
ours. `fit_within_bounds` finds the best weights within the range of the grid: where the grid clips,
these are a better target than W. `descend` changes codes by one step each, several at a time, as
Kernighan and Lin (1970) swap the nodes of a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sq.runtime import cpu_threads
from sq.solver.argmin import row_argmax
from sq.solver.greedy_elimination import submatrices
from sq.types.problem import Grid

IN_FLIGHT = 2**24  # elements of the held weights' inverse Hessians at a time: 64 MiB in float32


def fit_within_bounds(
    W: Tensor, inverse: Tensor, bounds: tuple[Tensor, Tensor], *, revisions: int, hold: float
) -> Tensor:
    """Return the V that minimises (w - v) H (w - v)^T for each row, lowest <= v <= highest.

    Clipping is the one error that is known before anything is quantized. OBQ has its rule for
    outliers, row by row. Here all outliers are clipped at once and the other weights compensate.

    This is a primal-dual active-set method. Fix the weights expected at a bound (the held set), and
    let rows of the inverse Hessian move the others: v = w - p H^-1, with multipliers p = 0 off the
    set. Then drop from the set the weights that their bound does not hold back (p of the wrong
    sign), and add those that are now outside.

    Parameters
    ----------
    W : (G, O, I)
    inverse : (G, I, I), the inverse Hessian
    bounds : lowest and highest, each (G, O, 1)
    revisions : of the set, at most. It converges after 3 to 6; with fewer the result is near the
        optimum
    hold : largest share of a row's weights in the set, those whose excess costs most; the others
        are clipped at the end. The cost of a row grows as the cube of this
    """
    lowest, highest = bounds
    V, above, below = W, highest < W, lowest > W
    diagonal = inverse.diagonal(dim1=1, dim2=2).unsqueeze(1)  # (G, 1, I)
    max_held = int(hold * W.shape[2])
    for _ in range(revisions):
        held = above | below
        if max_held < int(held.sum(2).max()):
            excess = torch.maximum(V - highest, lowest - V)
            held &= _costliest(excess.square_() / diagonal, held, max_held)
            above, below = above & held, below & held
        excess = (W - torch.where(above, highest, lowest)).masked_fill_(~held, 0)
        p = _multipliers(excess, inverse, held)
        V = torch.baddbmm(W, p, inverse, alpha=-1)
        # By rounding, weights at a bound may seem to be outside; it does no harm to hold them.
        new_above = (above & (p > 0)) | (~held & (highest < V))
        new_below = (below & (p < 0)) | (~held & (lowest > V))
        if torch.equal(new_above, above) and torch.equal(new_below, below):
            break
        above, below = new_above, new_below
    return torch.minimum(torch.maximum(V, lowest), highest)


def _costliest(cost: Tensor, held: Tensor, count: int) -> Tensor:
    """Return a mask (G, O, I) of the `count` held weights of each row with the highest cost."""
    ranking = cost.masked_fill_(~held, -1).argsort(dim=2, descending=True, stable=True)
    return torch.zeros_like(held).scatter_(2, ranking[:, :, :count], True)


def _multipliers(excess: Tensor, inverse: Tensor, held: Tensor) -> Tensor:
    """Return p (G, O, I), zero where not `held`, with p H^-1 = `excess` where held."""
    G, O, I = excess.shape
    width = max(1, int(held.sum(2).max()))
    # The held columns of each row come first. Where a row has fewer, `mask` is False.
    held_first = held.to(torch.int8).argsort(dim=2, descending=True, stable=True)
    columns = held_first[:, :, :width].reshape(-1, width)  # (G * O, S)
    mask = held.view(-1, I).gather(1, columns)
    right_side = excess.view(-1, I).gather(1, columns)
    group = torch.arange(G, device=excess.device).repeat_interleave(O)
    solutions = []
    for rows in torch.arange(G * O, device=excess.device).split(max(1, IN_FLIGHT // width**2)):
        mask_rows = mask[rows]
        A = submatrices(inverse, group[rows], columns[rows], in_place=False)  # (R, S, S)
        A.masked_fill_(~(mask_rows.unsqueeze(2) & mask_rows.unsqueeze(1)), 0)
        A.diagonal(dim1=1, dim2=2).masked_fill_(~mask_rows, 1)
        L = torch.linalg.cholesky(A)
        solutions.append(torch.cholesky_solve(right_side[rows].unsqueeze(2), L).squeeze(2))
    p = torch.zeros_like(excess).view(-1, I).scatter_(1, columns, torch.cat(solutions) * mask)
    return p.view(G, O, I)


def descend(W: Tensor, H: Tensor, grid: Grid, codes: Tensor, *, depth: int, rounds: int) -> Tensor:
    """Return codes of lower loss, changing up to `depth` codes of a row together by one step each.

    In each round, each row takes the step that lowers the loss most, or raises it least; then the
    best step after that, and so on, each code once at most. It keeps the changes up to the point of
    least loss, or none if that is the start. If a round does not help a row, the next one starts
    with another code. The loss never rises.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I)
    codes : (G, O, I)
    depth : changes tried in a row before the best number of them is kept; 1 is coordinate descent
    rounds : number of rounds

    Returns
    -------
    codes : (G, O, I), of the type of `codes`
    """
    G, O, I = W.shape
    rows = torch.arange(G * O, device=W.device)
    flat_H = H.reshape(G * I, I)
    first = rows // O * I  # (R,): where the Hessian of each row begins in `flat_H`
    diagonal = H.diagonal(dim1=1, dim2=2).repeat_interleave(O, 0)  # (R, I)
    slope = torch.bmm(W - grid.decode(codes), H).view(-1, 1, I)  # minus half the loss's derivative
    barred = torch.zeros_like(slope)  # infinite where the last round of a row began without a gain
    with cpu_threads.suited_to(W.numel()):
        for _ in range(rounds):
            change, penalty = _single_steps(grid, codes, diagonal, barred)
            columns, changes, gain = _best_changes(
                slope.clone(), change, penalty, flat_H, first, depth
            )
            H_rows = first.unsqueeze(1) + columns  # (R, depth)
            moved = F.embedding_bag(H_rows, flat_H, per_sample_weights=changes, mode="sum")
            slope -= moved.unsqueeze(1)
            # A row that has no change left repeats a column with a change of 0: hence "add".
            steps = torch.zeros_like(diagonal).scatter_add_(1, columns, changes.sign())
            codes = codes + steps.view_as(W).to(codes.dtype)
            barred[gain > 0] = 0
            barred[rows, 0, columns[:, 0]] = torch.where(gain > 0, 0.0, torch.inf).to(W.dtype)
    return codes


def _best_changes(
    slope: Tensor, change: Tensor, penalty: Tensor, flat_H: Tensor, first: Tensor, depth: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `depth` changes of each row, each the best after those before it.

    `slope` (R, 1, I) and `penalty` (R, 2, I) are overwritten.

    Returns
    -------
    columns : (R, depth), which code is changed
    changes : (R, depth), by how much its value changes; 0 for changes past the point of least loss
    gain : (R,), by how much the others lower the loss
    """
    R, _, I = slope.shape
    offset = torch.arange(R, device=slope.device) * (2 * I)  # of each row in the flat (R, 2, I)
    columns, changes, gains = [], [], []
    gain_of = torch.empty_like(penalty)
    for _ in range(depth):
        torch.addcmul(penalty, change, slope, value=2, out=gain_of)
        best = row_argmax(gain_of.view(R, 2 * I))
        flat_index, column = best + offset, best % I
        best_change = change.view(-1).index_select(0, flat_index)
        gains.append(gain_of.view(-1).index_select(0, flat_index))
        H_row = flat_H.index_select(0, first + column).unsqueeze(1)
        slope.addcmul_(H_row, best_change.view(R, 1, 1), value=-1)
        both_directions = torch.cat((offset + column, offset + column + I))
        penalty.view(-1).index_fill_(0, both_directions, -torch.inf)  # each code once at most
        columns.append(column)
        changes.append(best_change)
    gain, last = torch.stack(gains, 1).cumsum(1).max(1)
    until_best = torch.arange(depth, device=slope.device) <= last.unsqueeze(1)
    accepted = (gain > 0).unsqueeze(1) & until_best
    return torch.stack(columns, 1), torch.stack(changes, 1) * accepted, gain


def _single_steps(
    grid: Grid, codes: Tensor, diagonal: Tensor, barred: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the change d of each weight by one step down and up, and its penalty -d^2 H_jj.

    Both are (R, 2, I). A change lowers the loss by 2 d slope - d^2 H_jj. At the end of the grid d
    is 0 and its penalty minus infinity.
    """
    R, I = diagonal.shape
    down, up = (step.reshape(R, I) for step in grid.steps(codes))
    change = torch.stack((-down, up), 1)
    penalty = change.square().mul_(diagonal.unsqueeze(1)).neg_().sub_(barred)
    return change.nan_to_num_(posinf=0, neginf=0), penalty
