"""Textbook OBQ: each row has a copy of the inverse Hessian, which every step downdates in full.

It serves as the reference of sq/solver/obq.py, in codes (they must be equal) and in speed.
"""

from functools import partial

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
    rows : solved together, each with its copy of the inverse; changes speed, not results

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
        for chunk in torch.arange(W.shape[1], device=W.device).split(rows):
            grids = grid.map(partial(_grid_rows, group=g, rows=chunk))
            Q[g, chunk] = _solve_rows(W[g, chunk], inverse, grids, outliers)
    return grid.encode(Q)


def _grid_rows(t: Tensor, *, group: int, rows: Tensor) -> Tensor:
    """Return the tensor (G, O, 1) of a grid for some rows of a group, (R, 1, 1)."""
    return t[group, rows].unsqueeze(1)


def _solve_rows(W: Tensor, inverse: Tensor, grid: Grid, outliers: bool) -> Tensor:
    """Return the grid values of rows `W` (R, I), which start from the same `inverse` (I, I)."""
    R, I = W.shape
    rows = torch.arange(R, device=W.device)
    W, Q = W.clone(), torch.empty_like(W)
    inverses = inverse.expand(R, I, I).clone()
    free = torch.ones(R, I, dtype=torch.bool, device=W.device)
    limit = grid.half_step().squeeze(2) * TOLERANCE
    for _ in range(I):
        nearest = grid.nearest(W.unsqueeze(1)).squeeze(1)
        error = W - nearest
        saliency = error.square() / inverses.diagonal(dim1=1, dim2=2)
        p = torch.where(free, saliency, torch.inf).argmin(1)
        if outliers:
            size = torch.where(free, error.abs(), 0)
            p = torch.where((size > limit).any(1), size.argmax(1), p)
        Q[rows, p] = nearest[rows, p]
        free[rows, p] = False
        row, pivot = inverses[rows, p], inverses[rows, p, p].unsqueeze(1)
        W -= error[rows, p].unsqueeze(1) / pivot * row
        inverses.baddbmm_((row / pivot).unsqueeze(2), row.unsqueeze(1), alpha=-1)
    return Q
