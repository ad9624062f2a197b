"""SensiQuant: quantize sensitive columns first, all rows at once, sharing one inverse Hessian.

The saliency of a weight, (w - Q(w))^2 / (2 [H^-1]_jj), has a denominator that depends on the column
only, so sensitivities cluster by column. Summed over rows they give one order for all rows: most
sensitive first, while all other columns are still free to compensate. With one order there is one
inverse Hessian and one update for the whole layer, where OBQ needs one for each row.

The body of the paper was not available to us. The formulas are our reading of its abstract. What
the abstract leaves open (score, aggregation, re-ranking, clustering) is a setting.
"""

from typing import Literal

import torch
from torch import Tensor

from sq.config.constraints import Count
from sq.solver import column_elimination, greedy_elimination
from sq.solver.argmin import row_argmin
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
    order : "static" ranks columns once; "dynamic" ranks the free columns again from time to time;
        "grouped" clusters the columns' log sensitivity (1-D k-means) and keeps the natural order
        within a cluster
    direction : "descending" is the method; "ascending" serves to show that the order matters
    score : of a weight. "saliency" (w - Q(w))^2 / [H^-1]_jj; "weight" w^2 / [H^-1]_jj; "inverse" 1
        / [H^-1]_jj; "activation" H_jj. "dynamic" requires "saliency"
    aggregate : "sum" or "max" of a column's scores over rows
    rankings : how many times "dynamic" ranks a layer's columns, evenly spread; None ranks again
        after every column, which costs far more and gains little over a few (measured:
        results/LOG.md)
    clusters : number of clusters, for "grouped"
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
            pick = _picker(direction, aggregate)
            Q, _ = greedy_elimination.eliminate(W, inverse, grid, pick, block=block)
        else:
            rank = _ranker(direction, aggregate)
            stride = -(-W.shape[2] // rankings)
            Q, _ = column_elimination.ranked(W, inverse, grid, rank, stride=stride, block=block)
    else:
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
    if score == "saliency":
        values = W - grid.nearest(W)
    elif score == "weight":
        values = W
    else:
        values = torch.ones_like(W)
    return _aggregate(values.square(), aggregate) / column_elimination.inverse_diagonal(H)


def cluster(S: Tensor, clusters: int, iterations: int = 50) -> Tensor:
    """Return the log sensitivity of each column's cluster, (G, I), from sensitivities S (G, I).

    The clusters are those of 1-D k-means on log S, which starts from quantiles.
    """
    logs = S.clamp_min(torch.finfo(S.dtype).tiny).log()
    shares = torch.linspace(0, 1, clusters, dtype=S.dtype, device=S.device)
    centres = logs.quantile(shares, dim=-1).T.contiguous()
    for _ in range(iterations):
        member = (logs.unsqueeze(-1) - centres.unsqueeze(1)).abs().argmin(-1)  # (G, I)
        count = torch.zeros_like(centres).scatter_add_(1, member, torch.ones_like(logs))
        total = torch.zeros_like(centres).scatter_add_(1, member, logs)
        # An empty cluster keeps its centre.
        means = torch.where(count > 0, total / count.clamp_min(1), centres)
        if torch.equal(means, centres):
            break
        centres = means
    return centres.gather(1, member)


def _aggregate(scores: Tensor, aggregate: str) -> Tensor:
    return scores.sum(1) if aggregate == "sum" else scores.amax(1)


def _ranker(direction: str, aggregate: str) -> column_elimination.Rank:
    def rank(error: Tensor, diagonal: Tensor) -> Tensor:
        S = _aggregate(error.square_(), aggregate) / diagonal
        return S.argsort(dim=-1, descending=direction == "descending", stable=True)

    return rank


def _picker(direction: str, aggregate: str) -> greedy_elimination.Pick:
    sign = -1 if direction == "descending" else 1

    def pick(error: Tensor, diagonal: Tensor, taken: Tensor) -> Tensor:
        saliency = _aggregate(error.square(), aggregate).div_(diagonal)
        return row_argmin(saliency.mul_(sign).add_(taken))

    return pick
