"""SensiQuant: quantize sensitive columns first, all rows at once, sharing one inverse Hessian.

The saliency of a weight, (w - Q(w))^2 / (2 [H^-1]_jj), has a denominator that depends on the column
alone, so sensitivities cluster by column. Summed over rows they give one order for all rows: most
sensitive first, while every other column is still free to compensate. With one order there is one
inverse Hessian and one update for the whole layer, where OBQ needs one for each row.

The paper's body was not available to us. The formulas here are our reading of its abstract; what it
leaves open (score, aggregation, re-ranking, clustering) is a setting.
"""

from typing import Literal

import torch
from torch import Tensor

from sq.config.constraints import Count
from sq.solver import column_elimination, greedy_elimination
from sq.solver.argmin import lowest
from sq.types.problem import Grid

Score = Literal["saliency", "weight", "inverse", "activation"]


def solve(
    W: Tensor,
    H: Tensor,
    grid: Grid,
    *,
    order: Literal["static", "dynamic", "grouped"],
    direction: Literal["descending", "ascending"],
    score: Score,
    aggregate: Literal["sum", "max"],
    rankings: Count | None,
    clusters: Count,
    block: Count,
) -> Tensor:
    """Minimise tr((W - Q) H (W - Q)^T) greedily over Q on the grid, sensitive columns first.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I), positive definite
    order : "static" ranks columns once; "dynamic" ranks the free columns again on the way;
        "grouped" clusters the columns' log sensitivity (1-D k-means) and keeps natural order inside
        a cluster
    direction : "descending" is the method; "ascending" is there to show that the order matters
    score : of a weight. "saliency" (w - Q(w))^2 / [H^-1]_jj; "weight" w^2 / [H^-1]_jj;
        "inverse" 1 / [H^-1]_jj; "activation" H_jj. "dynamic" takes "saliency" alone
    aggregate : "sum" or "max" of a column's scores over rows
    rankings : how many times a layer's columns are ranked in "dynamic", evenly spread; None ranks
    again after
        every column, which costs far more and gains little over a few (measured: results/LOG.md)
    clusters : how many, for "grouped"
    block : columns compensated together; changes speed, not results (beyond rounding)

    Returns
    -------
    codes : (G, O, I) int32

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite
    ValueError : "dynamic" with another score than "saliency"

    Source
    ------
    Zheng et al. 2025, arXiv:2509.05576: our reading of its abstract.
    """
    if order == "dynamic":
        if score != "saliency":
            raise ValueError(f"order=dynamic ranks by score=saliency, got score={score}")
        inverse = column_elimination.inverse(H)
        if rankings is None:
            Q, _ = greedy_elimination.eliminate(
                W, inverse, grid, _picker(direction, aggregate), block=block
            )
        else:
            stride = -(-W.shape[2] // rankings)
            Q, _ = column_elimination.ranked(
                W, inverse, grid, _ranker(direction, aggregate), stride=stride, block=block
            )
        return grid.encode(Q)
    S = sensitivity(W, H, grid, score, aggregate)
    if order == "grouped":
        S = cluster(S, clusters)
    ranking = S.argsort(dim=-1, descending=direction == "descending", stable=True)
    Q, _ = column_elimination.sweep(W, H, grid, ranking, block=block)
    return grid.encode(Q)


def sensitivity(W: Tensor, H: Tensor, grid: Grid, score: Score, aggregate: str) -> Tensor:
    """Return each column's sensitivity (G, I): the score of its weights, aggregated over rows."""
    if score == "activation":
        return H.diagonal(dim1=-2, dim2=-1)
    weights = {
        "saliency": lambda: W - grid.nearest(W),
        "weight": lambda: W,
        "inverse": lambda: torch.ones_like(W),
    }
    squares = weights[score]().square()
    return _aggregate(squares, aggregate) / column_elimination.inverse_diagonal(H)


def cluster(S: Tensor, clusters: int, iterations: int = 50) -> Tensor:
    """Replace each column's sensitivity (G, I) by its cluster's: 1-D k-means on log S, from quantile centres."""
    logs = S.clamp_min(torch.finfo(S.dtype).tiny).log()
    centres = logs.quantile(
        torch.linspace(0, 1, clusters, dtype=S.dtype, device=S.device), dim=-1
    ).T.contiguous()
    for _ in range(iterations):
        member = (logs.unsqueeze(-1) - centres.unsqueeze(1)).abs().argmin(-1)  # (G, I)
        count = torch.zeros_like(centres).scatter_add_(1, member, torch.ones_like(logs))
        total = torch.zeros_like(centres).scatter_add_(1, member, logs)
        moved = torch.where(count > 0, total / count.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres.gather(1, member)


def _aggregate(scores: Tensor, how: str) -> Tensor:
    return scores.sum(1) if how == "sum" else scores.amax(1)


def _ranker(direction: str, aggregate: str) -> column_elimination.Rank:
    def rank(error: Tensor, diagonal: Tensor) -> Tensor:
        S = _aggregate(error.square_(), aggregate) / diagonal
        return S.argsort(dim=-1, descending=direction == "descending", stable=True)

    return rank


def _picker(direction: str, aggregate: str) -> greedy_elimination.Pick:
    sign = -1 if direction == "descending" else 1

    def pick(error: Tensor, diagonal: Tensor, taken: Tensor) -> Tensor:
        return lowest(_aggregate(error.square(), aggregate).div_(diagonal).mul_(sign).add_(taken))

    return pick
