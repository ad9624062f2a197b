"""OBQ as it stands in the textbook: a copy of the inverse Hessian for each row, downdated in full at every step.

Kept for two uses: the codes of sq/solver/obq.py must equal these, and its speed is measured against
this.
"""

import torch
from torch import Tensor

from sq.config.constraints import Count
from sq.solver import column_elimination
from sq.solver.obq import TOLERANCE
from sq.types.problem import Grid


def solve(W: Tensor, H: Tensor, grid: Grid, *, outliers: bool, rows: Count) -> Tensor:
    """Minimise tr((W - Q) H (W - Q)^T) greedily over Q on the grid, every row in its own order.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I), positive definite
    outliers : quantize a weight that lies outside the grid (error beyond half a step) at once, the
    worst first
    rows : in flight at a time, each with its copy of the inverse; changes speed, not results

    Returns
    -------
    codes : (G, O, I) int32

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite

    Source
    ------
    Frantar et al. 2022 (OBC), arXiv:2208.11580, Lemma 1 and Section 5; 32 rows at a time as in
    their experiments.
    """
    Q = torch.empty_like(W)
    for g, inverse in enumerate(column_elimination.inverse(H)):
        for some in torch.arange(W.shape[1], device=W.device).split(rows):
            part = grid.map(lambda t, g=g, some=some: t[g, some].unsqueeze(1))  # type: ignore[misc]
            Q[g, some] = _rows(W[g, some], inverse, part, outliers)
    return grid.encode(Q)


def _rows(W: Tensor, inverse: Tensor, grid: Grid, outliers: bool) -> Tensor:
    """Return the grid values of rows `W` (R, I), which share the `inverse` (I, I) they start from."""
    R, I = W.shape
    every = torch.arange(R, device=W.device)
    W, Q = W.clone(), torch.empty_like(W)
    own = inverse.expand(R, I, I).clone()
    free = torch.ones(R, I, dtype=torch.bool, device=W.device)
    limit = grid.half_step().squeeze(2) * TOLERANCE
    for _ in range(I):
        nearest = grid.nearest(W.unsqueeze(1)).squeeze(1)
        error = W - nearest
        p = torch.where(free, error.square() / own.diagonal(dim1=1, dim2=2), torch.inf).argmin(1)
        if outliers:
            size = torch.where(free, error.abs(), 0)
            p = torch.where((size > limit).any(1), size.argmax(1), p)
        Q[every, p], free[every, p] = nearest[every, p], False
        row, pivot = own[every, p], own[every, p, p].unsqueeze(1)
        W -= error[every, p].unsqueeze(1) / pivot * row
        own.baddbmm_((row / pivot).unsqueeze(2), row.unsqueeze(1), alpha=-1)
    return Q
