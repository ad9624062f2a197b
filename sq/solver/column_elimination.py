"""Column-by-column quantization with error compensation: the engine of GPTQ, SensiQuant and OBQ.

All three quantize one column, then move the columns that are still free to where they best
compensate its error. All minimise tr((W - Q) H (W - Q)^T) greedily. They differ in the order of the
columns only: fixed beforehand (`sweep`), revised from time to time (`ranked`), or chosen again for
every column (sq/solver/greedy_elimination.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sq.types.problem import Grid

# rank(error, diagonal): the order (G, A) of the free columns, from their rounding errors (G, O, A)
# and the diagonal of the inverse Hessian (G, A).
Rank = Callable[[Tensor, Tensor], Tensor]


def factor(H: Tensor) -> Tensor:
    """Return R, upper triangular, with H = R R^T: Cholesky from the last column backwards.

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
    block : columns compensated one by one before one matrix product updates the rest; changes
        speed, not results (beyond rounding)

    Returns
    -------
    Q : (G, O, I), values on the grid
    loss : (G, O), (w - q) H (w - q)^T of each row, summed up while quantizing

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite
    """
    if order is None:
        return chain(W, factor(H), grid, block=block)
    R = factor(columns(H, order, order))
    Q_ordered, loss = chain(columns(W, order), R, grid, block=block)
    index = order.unsqueeze(1).expand_as(Q_ordered)
    return torch.empty_like(Q_ordered).scatter_(2, index, Q_ordered), loss


def chain(W: Tensor, R: Tensor, grid: Grid, *, block: int) -> tuple[Tensor, Tensor]:
    """Quantize the columns of `W` from left to right, given R, upper triangular, with H = R R^T.

    The loss is the squared length of (W - Q) R, whose entry j depends on columns 0 .. j only.
    After the errors of the columns before it, column j should be
    w_j + sum_{i<j} (w_i - q_i) R_ij / R_jj. GPTQ and SensiQuant reach the same value by downdating
    the inverse Hessian; no inverse is needed here.

    Returns `Q` and `loss` as `sweep` does.
    """
    assert block >= 1, f"block={block}"
    diagonal = R.diagonal(dim1=-2, dim2=-1)  # (G, I)
    feedback = (R / diagonal.unsqueeze(1)).transpose(1, 2).contiguous()  # [g, j, i] = R_ij / R_jj
    # Rows are the last axis here: if G = 1, one column of all rows is contiguous in memory.
    weights = W.transpose(1, 2).contiguous()  # (G, I, O)
    grid_by_column = grid.map(lambda t: t.transpose(1, 2).contiguous())
    target = weights.clone()
    error = torch.zeros_like(weights)
    width = W.shape[2]
    for start in range(0, width, block):
        now = slice(start, min(start + block, width))
        if start:  # the errors of all blocks before this one, in one product
            target[:, now].baddbmm_(feedback[:, now, :start], error[:, :start])
        _compensate_block(
            target[:, now],
            weights[:, now],
            error[:, now],
            feedback[:, now, now].contiguous(),
            grid_by_column,
        )
    Q = grid_by_column.nearest(target)
    loss = ((target - Q) * diagonal.unsqueeze(-1)).square_().sum(1)
    return Q.transpose(1, 2).contiguous(), loss


def _compensate_block(
    target: Tensor, weights: Tensor, error: Tensor, feedback: Tensor, grid: Grid
) -> None:
    """Fill `target` and `error` (zero at first) of one block's columns (G, B, O), in turn.

    A column takes a few hundred multiplications, so most of the time goes into starting operations.
    NumPy starts one in a fraction of PyTorch's time: on the CPU it makes this loop four times as
    fast.
    """
    if target.device.type == "cpu":
        nearest = grid.on_numpy()
        T, W, E, F = (t.numpy() for t in (target, weights, error, feedback))
        for j in range(T.shape[1]):
            if j:
                T[:, j] += np.matmul(F[:, j, None, :j], E[:, :j])[:, 0]
            np.subtract(W[:, j], nearest(T[:, j]), out=E[:, j])
        return
    by_column = (t.split(1, 1) for t in (target, weights, error, feedback))
    for target_j, weights_j, error_j, feedback_j in zip(*by_column, strict=True):
        target_j.baddbmm_(feedback_j, error)  # errors of this and later columns are still zero
        torch.sub(weights_j, grid.nearest(target_j), out=error_j)


def ranked(
    W: Tensor, inverse: Tensor, grid: Grid, rank: Rank, *, stride: int, block: int
) -> tuple[Tensor, Tensor]:
    """Quantize the `stride` columns ranked first, compensate all others, rank those again, repeat.

    This lies between a fixed order (`stride` = I) and one chosen again for every column
    (`stride` = 1).

    Parameters
    ----------
    W : (G, O, I)
    inverse : (G, I, I), the inverse Hessian
    rank : orders the free columns
    stride : columns quantized between two rankings, at least 1
    block : as in `sweep`

    Returns
    -------
    Q : (G, O, I), values on the grid
    loss : (G, O), (w - q) H (w - q)^T of each row, summed up while quantizing
    """
    G, O, I = W.shape
    Q, loss = torch.empty_like(W), W.new_zeros(G, O)
    free = _FreeColumns(W, inverse, torch.arange(I, device=W.device).expand(G, I))
    while free.count > 0:
        rounding_error = free.W - grid.nearest(free.W)
        free = free.reordered(rank(rounding_error, free.H_inv.diagonal(dim1=-2, dim2=-1)))
        size = min(stride, free.count)
        values, step_loss, compensated = _quantize_first(free, grid, size, block=block)
        Q.scatter_(2, free.index[:, None, :size].expand_as(values), values)
        loss += step_loss
        free = compensated
    return Q, loss


@dataclass(frozen=True)
class _FreeColumns:
    """The columns that are not quantized yet, compensated for those that are."""

    W: Tensor  # (G, O, A)
    H_inv: Tensor  # (G, A, A), the inverse of their Hessian
    index: Tensor  # (G, A), where each one is in the layer

    @property
    def count(self) -> int:
        return self.index.shape[1]

    def reordered(self, order: Tensor) -> _FreeColumns:
        """Return the columns in the given order (G, A)."""
        W = columns(self.W, order)
        H_inv = columns(self.H_inv, order, order)
        return _FreeColumns(W, H_inv, self.index.gather(1, order))


def _quantize_first(
    free: _FreeColumns, grid: Grid, size: int, *, block: int
) -> tuple[Tensor, Tensor, _FreeColumns]:
    """Return the values (G, O, size) of the first columns, their loss (G, O), and the others.

    With P the columns quantized and F the others, inv_PP = L L^T gives two things. R = L^-T is
    the factor of inv_PP^-1, the Hessian of P while F is free to compensate. And V = L^-1 inv_PF
    gives the Schur update inv_FF <- inv_FF - V^T V.
    """
    W, H_inv = free.W, free.H_inv
    P, F = slice(0, size), slice(size, None)
    L = torch.linalg.cholesky(H_inv[:, P, P])
    eye = torch.eye(size, dtype=W.dtype, device=W.device).expand(len(W), -1, -1)
    solved = torch.linalg.solve_triangular(L, torch.cat((eye, H_inv[:, P, F]), 2), upper=False)
    R, V = solved[:, :, P].mT, solved[:, :, F]
    values, loss = chain(W[:, :, P], R, grid, block=block)
    # (w - q)_P inv_PP^-1 inv_PF, with inv_PP^-1 inv_PF = R V
    W_others = torch.baddbmm(W[:, :, F], (W[:, :, P] - values) @ R, V, alpha=-1)
    H_inv_others = torch.baddbmm(H_inv[:, F, F], V.mT, V, alpha=-1)
    return values, loss, _FreeColumns(W_others, H_inv_others, free.index[:, F])


def columns(M: Tensor, chosen: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return columns `chosen` (G, C) of each matrix of `M` (G, R, A), and only `rows` (G, B)."""
    if rows is not None:
        M = M.gather(1, rows.unsqueeze(2).expand(-1, -1, M.shape[2]))
    return M.gather(2, chosen.unsqueeze(1).expand(-1, M.shape[1], -1))
