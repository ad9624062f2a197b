"""Sequential quantization with compensation: the engine under GPTQ, SensiQuant and OBQ.

All three quantize a column, then move the columns still free to where they best make up for the
error. They differ in the order only: known beforehand (`sweep`), revised now and then (`ranked`),
or chosen anew for every column (sq/solver/greedy_elimination.py). All minimise tr((W - Q) H (W -
Q)^T) greedily.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sq.types.problem import Grid

# rank(error, diagonal): the order (G, A) of the free columns, from their rounding errors (G, O, A)
# and the diagonal of the inverse Hessian (G, A).
Rank = Callable[[Tensor, Tensor], Tensor]


def factor(H: Tensor) -> Tensor:
    """Return R, upper triangular, with H = R R^T: a Cholesky factor taken from the last column backwards.

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite
    """
    lower = torch.linalg.cholesky(H.flip(-1, -2))
    return lower.flip(-1, -2)


def inverse(H: Tensor) -> Tensor:
    """Return H^-1, (G, I, I).

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite
    """
    return torch.cholesky_inverse(torch.linalg.cholesky(H))


def inverse_diagonal(H: Tensor) -> Tensor:
    """Return the diagonal of H^-1, (G, I), without forming H^-1."""
    lower = torch.linalg.cholesky(H)
    eye = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device).expand_as(H)
    return torch.linalg.solve_triangular(lower, eye, upper=False).square_().sum(-2)


def sweep(
    W: Tensor, H: Tensor, grid: Grid, order: Tensor | None, *, block: int
) -> tuple[Tensor, Tensor]:
    """Quantize the columns of `W` in a given order, all rows at once, each error compensated.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I), positive definite
    order : (G, I), a permutation for each group, shared by its rows; None keeps the columns as they
    are
    block : columns compensated one by one before the rest catches up in one matrix product;
        changes speed, not results (beyond rounding)

    Returns
    -------
    Q : (G, O, I), values on the grid; loss : (G, O), each row's (w - q) H (w - q)^T as predicted on
    the way

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite
    """
    if order is None:
        return chain(W, factor(H), grid, block=block)
    Q, loss = chain(columns(W, order), factor(columns(H, order, order)), grid, block=block)
    return torch.empty_like(Q).scatter_(2, order.unsqueeze(1).expand_as(Q), Q), loss


def chain(W: Tensor, R: Tensor, grid: Grid, *, block: int) -> tuple[Tensor, Tensor]:
    """Quantize the columns of `W` from left to right, given R, upper triangular, with H = R R^T.

    The loss is the squared length of (W - Q) R, whose entry j depends on columns 0 .. j only. What
    column j should be after the errors made so far is w_j + sum_{i<j} (w_i - q_i) R_ij / R_jj, the
    very value that GPTQ and SensiQuant reach by downdating the inverse Hessian, here without an
    inverse.

    Returns `Q` and `loss` as `sweep` does.
    """
    assert block >= 1, f"block={block}"
    diagonal = R.diagonal(dim1=-2, dim2=-1)  # (G, I)
    feedback = (R / diagonal.unsqueeze(1)).transpose(1, 2).contiguous()  # [g, j, i] = R_ij / R_jj
    # Rows are the last axis here, so that one column of all rows is one contiguous piece (if G =
    # 1).
    weights = W.transpose(1, 2).contiguous()  # (G, I, O)
    by_column = grid.map(lambda t: t.transpose(1, 2).contiguous())
    target, error = weights.clone(), torch.zeros_like(weights)
    for start in range(0, W.shape[2], block):
        now = slice(start, min(start + block, W.shape[2]))
        if start:  # all earlier errors, in one product
            target[:, now].baddbmm_(feedback[:, now, :start], error[:, :start])
        _one_by_one(
            target[:, now],
            weights[:, now],
            error[:, now],
            feedback[:, now, now].contiguous(),
            by_column,
        )
    Q = by_column.nearest(target)
    loss = ((target - Q) * diagonal.unsqueeze(-1)).square_().sum(1)
    return Q.transpose(1, 2).contiguous(), loss


def _one_by_one(
    target: Tensor, weights: Tensor, error: Tensor, feedback: Tensor, grid: Grid
) -> None:
    """Compensate the columns (G, B, O) of one block in turn, filling `target` and `error` (zero at first).

    A column's arithmetic is a few hundred numbers, so the time goes into starting operations. NumPy
    starts one in a fraction of the time that PyTorch takes: on the CPU this loop is four times
    faster with it.
    """
    if target.device.type == "cpu":
        nearest = grid.on_numpy()
        T, W, E, F = (t.numpy() for t in (target, weights, error, feedback))
        for j in range(T.shape[1]):
            if j:
                T[:, j] += np.matmul(F[:, j, None, :j], E[:, :j])[:, 0]
            np.subtract(W[:, j], nearest(T[:, j]), out=E[:, j])
        return
    parts = (t.split(1, 1) for t in (target, weights, error, feedback))
    for column, weight, own, row in zip(*parts, strict=True):
        column.baddbmm_(row, error)  # errors of this and later columns are still zero
        torch.sub(weight, grid.nearest(column), out=own)


def ranked(
    W: Tensor, inverse: Tensor, grid: Grid, rank: Rank, *, stride: int, block: int
) -> tuple[Tensor, Tensor]:
    """Quantize the `stride` columns ranked first, compensate all others, rank those again, and so on.

    Between a fixed order (`stride` = I) and one chosen anew for every column (`stride` = 1): with P
    the columns ranked first and F the rest, inv_PP = L L^T gives both the chain through P (its
    Hessian, F being free to compensate, is inv_PP^-1) and V = L^-1 inv_PF with inv_FF <- inv_FF -
    V^T V.

    Parameters
    ----------
    W : (G, O, I)
    inverse : (G, I, I), the inverse Hessian
    rank : orders the free columns
    stride : columns quantized between two rankings, at least 1
    block : as in `sweep`

    Returns
    -------
    Q : (G, O, I), values on the grid; loss : (G, O), each row's (w - q) H (w - q)^T as predicted on
    the way
    """
    G, O, I = W.shape
    Q, loss = torch.empty_like(W), W.new_zeros(G, O)
    free = torch.arange(I, device=W.device).expand(G, I)
    eye = torch.eye(min(stride, I), dtype=W.dtype, device=W.device).expand(G, -1, -1)
    while (left := free.shape[1]) > 0:
        order = rank(W - grid.nearest(W), inverse.diagonal(dim1=-2, dim2=-1))
        W, inverse, free = columns(W, order), columns(inverse, order, order), free.gather(1, order)
        P, F = slice(0, min(stride, left)), slice(stride, None)
        L = torch.linalg.cholesky(inverse[:, P, P])
        right = torch.cat((eye[:, P, P], inverse[:, P, F]), 2)
        right = torch.linalg.solve_triangular(L, right, upper=False)
        R, V = right[:, :, P].mT, right[:, :, F]
        values, lost = chain(W[:, :, P], R, grid, block=block)
        Q.scatter_(2, free[:, None, P].expand_as(values), values)
        loss += lost
        # (w - q)_P inv_PP^-1 inv_PF, with inv_PP^-1 inv_PF = R V
        W = torch.baddbmm(W[:, :, F], (W[:, :, P] - values) @ R, V, alpha=-1)
        inverse = torch.baddbmm(inverse[:, F, F], V.mT, V, alpha=-1)
        free = free[:, F]
    return Q, loss


def columns(M: Tensor, chosen: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return columns `chosen` (G, C) of each matrix of `M` (G, R, A), of its rows `rows` (G, B) if given."""
    if rows is not None:
        M = M.gather(1, rows.unsqueeze(2).expand(-1, -1, M.shape[2]))
    return M.gather(2, chosen.unsqueeze(1).expand(-1, M.shape[1], -1))
