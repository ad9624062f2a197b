"""OBQ: each row quantizes its cheapest weight next and re-optimises its other weights exactly."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sq.config.constraints import Count, Positive
from sq.errors import SqError
from sq.runtime import out_of_memory
from sq.solver import column_elimination, greedy_elimination
from sq.solver.argmin import row_argmin
from sq.types.problem import Grid, Layer, Plan

# By how much the error of an outlier must exceed half a step: rounding alone can reach half a step.
TOLERANCE = 1 + 1e-5


def solve(
    W: Tensor, H: Tensor, grid: Grid, *, outliers: bool, memory_gib: Positive, block: Count
) -> Tensor:
    """Minimise tr((W - Q) H (W - Q)^T) greedily over Q on the grid, every row in its own order.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I), positive definite
    outliers : quantize a weight that lies outside the grid (error beyond half a step) at once, the
        worst first, while others can still compensate
    memory_gib : for the inverse Hessians of the rows solved together, I^2 numbers a row; changes
        speed, not results (beyond rounding)
    block : rank-1 downdates applied together; changes speed, not results (beyond rounding)

    Returns
    -------
    codes : (G, O, I) int32

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite
    SqError : `memory_gib` does not hold the inverse Hessian of a single row

    Source
    ------
    Frantar et al. 2022 (OBC), arXiv:2208.11580: OBQ and its rule for outliers.
    The blocked downdates are ours; the choices made are those of the published form.
    """
    G, O, I = W.shape
    inverse = column_elimination.inverse(H)
    W_rows = W.reshape(G * O, 1, I)
    row_grid = grid.map(lambda t: t.expand(G, O, -1).reshape(G * O, 1, -1))
    group = torch.arange(G, device=W.device).repeat_interleave(O)

    def solve_rows(rows: Tensor) -> Tensor:
        grids = row_grid.map(partial(torch.index_select, dim=0, index=rows))
        inverses = inverse.expand(len(rows), I, I) if G == 1 else inverse[group[rows]]
        limit = grids.half_step().squeeze(2) * TOLERANCE if outliers else None  # (R, 1)
        pick_next = partial(pick, limit=limit)
        Q, _ = greedy_elimination.eliminate(W_rows[rows], inverses, grids, pick_next, block=block)
        return Q

    def solve_all(in_flight: int) -> Tensor:
        chunks = torch.arange(G * O, device=W.device).split(in_flight)
        return torch.cat([solve_rows(rows) for rows in chunks])

    in_flight = min(G * O, rows_in_flight(I, memory_gib, W.element_size()))
    Q = out_of_memory.fitting(f"rows of {I} columns", solve_all, in_flight)
    return grid.encode(Q.view(G, O, I))


def rows_in_flight(I: int, memory_gib: float, element_size: int) -> int:
    """Return for how many rows `memory_gib` holds the inverse Hessians.

    Raises
    ------
    SqError : it does not hold that of a single row
    """
    gib = I * I * element_size / 2**30
    if gib > memory_gib:
        enough = math.ceil(100 * gib) / 100
        raise SqError(
            f"{I} columns: one row's inverse Hessian takes {gib:.2g} GiB, more than "
            f"memory_gib={memory_gib:g}; set quantizer.solve.memory_gib={enough:g} or more"
        )
    return int(memory_gib / gib)


def plan(layer: Layer, element_size: int, *, memory_gib: float, **_: Any) -> Plan:
    """Return the memory and operations of solving `layer`: 2/3 I^3 a row, for the downdates.

    Raises
    ------
    SqError : `memory_gib` does not hold the inverse Hessian of a single row
    """
    rows = min(layer.groups * layer.outputs, rows_in_flight(layer.inputs, memory_gib, element_size))
    operations = 2 * layer.groups * layer.outputs * layer.inputs**3 // 3
    return Plan(rows * layer.inputs**2 * element_size, operations)


def pick(error: Tensor, diagonal: Tensor, taken: Tensor, *, limit: Tensor | None) -> Tensor:
    """Return each row's free column of least error^2 / [H^-1]_pp; outliers go first.

    An outlier has an error above `limit`; with None the rule is off.
    """
    size = error.squeeze(1).abs()
    cheapest = row_argmin(size.square().div_(diagonal).add_(taken))
    if limit is None:
        return cheapest
    within = torch.sub(limit, size).add_(taken)  # < 0 exactly where the rule applies
    worst = row_argmin(within)
    return torch.where(within.gather(1, worst.unsqueeze(1)).squeeze(1) < 0, worst, cheapest)
