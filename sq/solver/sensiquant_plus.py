"""SensiQuant plus: the layer error of OBQ, or better, from one shared order and a local search.

Where SensiQuant loses to OBQ, three things are missing. Each has a cheap remedy for all rows at
once. Weights beyond the grid are clipped before anything is quantized, and the others compensate.
Codes are revised after all columns are quantized, several of a row at a time. The scales of the
grid are refitted to the codes.
"""

from torch import Tensor

from sq.config.constraints import Count, NotNegative, Share, Whole
from sq.solver import column_elimination, local_search
from sq.types.problem import Grid


def solve(
    W: Tensor,
    H: Tensor,
    grid: Grid,
    *,
    revisions: Whole,
    hold: Share,
    effort: NotNegative,
    least: Whole,
    depth: Count,
    refits: Whole,
    block: Count,
) -> tuple[Tensor, Grid]:
    """Minimise tr((W - Q) H (W - Q)^T) over Q on the grid, then over codes and scales in turn.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I), positive definite
    revisions : of the set of weights clipped at the start, see `local_search.fit_within_bounds`; 0
        clips nothing
    hold : share of a row's weights that may be in that set; others are clipped without compensation
    effort : changes of codes tried in each row, as a share of its weights
    least : changes tried in a row, at least. Narrow rows are cheap to revise, and for the nine
        weights of a depthwise kernel a sweep alone can leave ten times the error (measured:
        results/LOG.md)
    depth : codes of a row that may change together; see `local_search.descend`
    refits : how often scales are refitted, evenly spread over the search; 0 leaves the grid as it
        is
    block : columns compensated together; changes speed, not results (beyond rounding)

    Returns
    -------
    codes : (G, O, I) int32
    grid : the grid passed in, with other scales

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite

    Source
    ------
    Ours. It starts from our reading of Zheng et al. 2025, arXiv:2509.05576 (static order, saliency,
    sum).
    """
    inverse = column_elimination.inverse(H)
    V = local_search.fit_within_bounds(W, inverse, grid.bounds(), revisions=revisions, hold=hold)
    saliency = (V - grid.nearest(V)).square().sum(1) / inverse.diagonal(dim1=-2, dim2=-1)
    order = saliency.argsort(dim=-1, descending=True, stable=True)
    Q, _ = column_elimination.sweep(V, H, grid, order, block=block)
    codes = grid.encode(Q)
    total_rounds = max(effort * W.shape[2], least) / depth  # not a whole number
    stages = max(1, refits)
    for stage in range(stages):
        # Rounded running totals, so that the stages together make `total_rounds`.
        rounds = round(total_rounds * (stage + 1) / stages) - round(total_rounds * stage / stages)
        codes = local_search.descend(W, H, grid, codes, depth=depth, rounds=rounds)
        if refits:
            grid = grid.refit(W, H, codes)
    return codes, grid
