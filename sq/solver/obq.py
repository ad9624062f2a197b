"""OBQ: each row quantizes its cheapest weight next and re-optimises the rest, exactly and row by row."""

from functools import partial

import torch
from torch import Tensor

from sq import elimination
from sq.types import Count, Grid, Positive


def solve(W: Tensor, H: Tensor, grid: Grid, *, outliers: bool, memory_gib: Positive, block: Count) -> Tensor:
    """Minimise tr((W - Q) H (W - Q)^T) greedily over Q on the grid, every row in its own order.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I), positive definite
    outliers : quantize a weight that lies outside the grid (error beyond half a step) at once, the
        worst first, while others can still make up for it
    memory_gib : for the inverse Hessians of the rows in flight, I^2 numbers a row and as many while
        copying; at least one row is in flight. Changes speed, not results (beyond rounding)
    block : rank-1 downdates applied together; changes speed, not results (beyond rounding)

    Returns
    -------
    codes : (G, O, I) int32

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite

    Source
    ------
    Frantar et al. 2022 (OBC), arXiv:2208.11580: OBQ and its rule for outliers.
    The blocked downdates are ours; the choices made are those of the published form.
    """
    G, O, I = W.shape
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    rows = W.reshape(G * O, 1, I)
    row_grid = grid.map(lambda t: t.expand(G, O, -1).reshape(G * O, 1, -1))
    group = torch.arange(G, device=W.device).repeat_interleave(O)
    in_flight = max(1, int(memory_gib * 2**30 / (2 * I * I * W.element_size())))
    quantized = []
    for some in torch.arange(G * O, device=W.device).split(in_flight):
        part = row_grid.map(partial(torch.index_select, dim=0, index=some))
        own = inverse.expand(len(some), I, I) if G == 1 else inverse[group[some]]
        limit = part.half_step().squeeze(2) * (1 + 1e-5) if outliers else None  # (R, 1)
        Q, _ = elimination.greedy(rows[some], own, part, partial(pick, limit=limit), block=block)
        quantized.append(Q)
    return grid.encode(torch.cat(quantized).view(G, O, I))


def pick(error: Tensor, diagonal: Tensor, free: Tensor, *, limit: Tensor | None) -> Tensor:
    """Return each row's free column of least saliency error^2 / [H^-1]_pp; outliers beyond `limit` go first."""
    size = error.squeeze(1).abs()
    score = torch.where(free, size.square() / diagonal, torch.inf)
    if limit is None:
        return score.argmin(1)
    beyond = torch.where(free & (size > limit), -size, 0.0)  # < 0 exactly where the rule applies
    return torch.where((beyond < 0).any(1), beyond.argmin(1), score.argmin(1))
