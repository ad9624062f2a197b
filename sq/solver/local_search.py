"""Refining codes: where shared-order compensation stops, local search in the codes themselves goes on.

Two parts, both for all rows at once, both minimising tr((W - Q) H (W - Q)^T) and ours (no paper's):
`inside` finds the best weights within the range of the grid, a better target than W where the grid
clips; `descend` changes codes by one step each, several at a time, as Kernighan and Lin (1970) swap
graph nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sq.runtime import cpu_threads
from sq.solver.argmin import highest
from sq.solver.greedy_elimination import submatrices
from sq.types.problem import Grid

IN_FLIGHT = 2**24  # elements of the held weights' inverse Hessians at a time: 64 MiB in float32


def inside(
    W: Tensor, inverse: Tensor, bounds: tuple[Tensor, Tensor], *, revisions: int, hold: float
) -> Tensor:
    """Return the V that minimises (w - v) H (w - v)^T for each row, lowest <= v <= highest.

    Weights beyond the grid are the one rounding error known before anything is quantized. OBQ meets
    them by its rule for outliers, row by row; here all are clipped at once and the others make up
    for it.

    A primal-dual active-set method: fix the weights thought to be at a bound, let inverse Hessian
    rows move the others (v = w - p H^-1, p = 0 off the set), then drop from the set what its bound
    does not hold back (p of the wrong sign) and add what now lies outside.

    Parameters
    ----------
    W : (G, O, I)
    inverse : (G, I, I), the inverse Hessian
    bounds : lowest and highest, each (G, O, 1)
    revisions : of the set at most. It settles after 3 to 6; with fewer the result is near the best
    hold : share of a row's weights in the set at most, those first whose excess costs most; all
    others are
        clipped in the end. What a row costs grows as the cube of this
    """
    lowest, highest = bounds
    V, above, below = W, highest < W, lowest > W
    diagonal, most = inverse.diagonal(dim1=1, dim2=2).unsqueeze(1), int(hold * W.shape[2])
    for _ in range(revisions):
        held = above | below
        if most < int(held.sum(2).max()):
            excess = torch.maximum(V - highest, lowest - V)
            rank = (
                (excess.square_() / diagonal)
                .masked_fill_(~held, -1)
                .argsort(dim=2, descending=True, stable=True)
            )
            held &= torch.zeros_like(held).scatter_(2, rank[:, :, :most], True)
            above, below = above & held, below & held
        push = _push(
            (W - torch.where(above, highest, lowest)).masked_fill_(~held, 0), inverse, held
        )
        V = torch.baddbmm(W, push, inverse, alpha=-1)
        # Weights at a bound pass it by rounding errors now and then; to hold them is no mistake.
        over, under = ~held & (highest < V), ~held & (lowest > V)
        now = (above & (push > 0)) | over, (below & (push < 0)) | under
        if torch.equal(now[0], above) and torch.equal(now[1], below):
            break
        above, below = now
    return torch.minimum(torch.maximum(V, lowest), highest)


def _push(excess: Tensor, inverse: Tensor, held: Tensor) -> Tensor:
    """Return p (G, O, I), zero where not `held`, with p H^-1 = `excess` where held."""
    G, O, I = excess.shape
    width = max(1, int(held.sum(2).max()))
    # The held columns of each row come first; places beyond a row's own number are masked out.
    which = (
        held.to(torch.int8)
        .argsort(dim=2, descending=True, stable=True)[:, :, :width]
        .reshape(-1, width)
    )
    mask, short = held.view(-1, I).gather(1, which), excess.view(-1, I).gather(1, which)
    group = torch.arange(G, device=excess.device).repeat_interleave(O)
    solved = []
    for rows in torch.arange(G * O, device=excess.device).split(max(1, IN_FLIGHT // width**2)):
        place, own = which[rows], mask[rows]
        A = submatrices(inverse, group[rows], place, in_place=False)  # (R, S, S)
        A.masked_fill_(~(own.unsqueeze(2) & own.unsqueeze(1)), 0)
        A.diagonal(dim1=1, dim2=2).masked_fill_(~own, 1)
        solved.append(
            torch.cholesky_solve(short[rows].unsqueeze(2), torch.linalg.cholesky(A)).squeeze(2)
        )
    return (
        torch.zeros_like(excess)
        .view(-1, I)
        .scatter_(1, which, torch.cat(solved) * mask)
        .view(G, O, I)
    )


def descend(W: Tensor, H: Tensor, grid: Grid, codes: Tensor, *, depth: int, rounds: int) -> Tensor:
    """Return codes of lower loss, found by changing up to `depth` codes of a row at a time by one step each.

    Each round and row: take the step that lowers the loss most, or raises it least; then the best
    one given that, and so on, a code once at most; keep the changes up to the point of least loss,
    none if that is the start. A row where a round found nothing starts its next one elsewhere. The
    loss never rises.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I)
    codes : (G, O, I)
    depth : changes tried in a row before the best number of them is kept; 1 is coordinate descent
    rounds : how often

    Returns
    -------
    codes : (G, O, I), of the type of `codes`
    """
    G, O, I = W.shape
    rows = torch.arange(G * O, device=W.device)
    first = rows // O * I  # where the row's Hessian begins in H as (G * I, I)
    # (R, I)
    flat, diagonal = H.reshape(G * I, I), H.diagonal(dim1=1, dim2=2).repeat_interleave(O, 0)
    slope = torch.bmm(W - grid.decode(codes), H).view(-1, 1, I)  # minus half the loss's derivative
    barred = torch.zeros_like(slope)  # infinite where a row's last round began in vain
    with cpu_threads.suited_to(W.numel()):
        for _ in range(rounds):
            move, change, gain = _chain(
                slope.clone(), *_prices(grid, codes, diagonal, barred), flat, first, depth
            )
            moved = F.embedding_bag(
                first.unsqueeze(1) + move, flat, per_sample_weights=change, mode="sum"
            )
            slope -= moved.unsqueeze(1)
            # A row out of changes repeats a place with a change of 0: hence "add".
            steps = torch.zeros_like(diagonal).scatter_add_(1, move, change.sign())
            codes = codes + steps.view_as(W).to(codes.dtype)
            barred[gain > 0] = 0
            barred[rows, 0, move[:, 0]] = torch.where(gain > 0, 0.0, torch.inf).to(W.dtype)
    return codes


def _chain(
    slope: Tensor, change: Tensor, price: Tensor, flat: Tensor, first: Tensor, depth: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best `depth` changes of each row, one after the other: places, changes (R, depth), and the gain (R,).

    Changes past the point of least loss are 0. `slope` (R, 1, I) and `price` are used up.
    """
    R, _, I = slope.shape
    offset = torch.arange(R, device=slope.device) * (2 * I)
    moves, changes, gains, values = [], [], [], torch.empty_like(price)
    for _ in range(depth):
        torch.addcmul(price, change, slope, value=2, out=values)
        best = highest(values.view(R, 2 * I))
        place, column = best + offset, best % I
        own = change.view(-1).index_select(0, place)
        gains.append(values.view(-1).index_select(0, place))
        slope.addcmul_(
            flat.index_select(0, first + column).unsqueeze(1), own.view(R, 1, 1), value=-1
        )
        twice = torch.cat((offset + column, offset + column + I))
        price.view(-1).index_fill_(0, twice, -torch.inf)  # a code once at most
        moves.append(column)
        changes.append(own)
    gain, last = torch.stack(gains, 1).cumsum(1).max(1)
    kept = (gain > 0).unsqueeze(1) & (torch.arange(depth, device=slope.device) <= last.unsqueeze(1))
    return torch.stack(moves, 1), torch.stack(changes, 1) * kept, gain


def _prices(grid: Grid, codes: Tensor, diagonal: Tensor, barred: Tensor) -> tuple[Tensor, Tensor]:
    """Return each weight's changes d by one step down and up, (R, 2, I), and their prices -d^2 H_jj.

    A change lowers the loss by 2 d slope - d^2 H_jj. Where there is none, d is 0 and its price
    minus infinity.
    """
    R, I = diagonal.shape
    down, up = (step.reshape(R, I) for step in grid.steps(codes))
    change = torch.stack((-down, up), 1)
    price = change.square().mul_(diagonal.unsqueeze(1)).neg_().sub_(barred)
    return change.nan_to_num_(posinf=0, neginf=0), price
