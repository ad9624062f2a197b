"""Greedy elimination: the next column to quantize is chosen again after every column.

With one row in each set this is OBQ. Each step is Lemma 1 of OBQ: quantize column p, subtract
(w_p - q_p) / [H^-1]_pp times row p of H^-1 from the free columns, and remove p from H^-1 by the
rank-1 downdate H^-1 - u u^T.

The textbook form applies each downdate at once. That reads and writes A^2 numbers for every set and
step, and it is limited by memory bandwidth. Here the vectors u are collected and applied a block at
a time as one matrix product. In between, only row p and the diagonal are brought up to date.
Quantized columns are dropped from time to time. The choices are those of the textbook form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sq.runtime import cpu_threads
from sq.types.problem import Grid

# pick(error, diagonal, taken): the position (R,) to quantize next, from the rounding errors (R, O,
# A), the diagonal of the inverse Hessian (R, A) and `taken` (R, A): 0 where a column is free,
# infinite where not.
Pick = Callable[[Tensor, Tensor, Tensor], Tensor]

# Columns are dropped when fewer than this share of those held are free: copying is not free.
DROP_BELOW = 0.8


def eliminate(
    W: Tensor, inverse: Tensor, grid: Grid, pick: Pick, *, block: int
) -> tuple[Tensor, Tensor]:
    """Quantize the columns of `W` in a greedy order, which rows of one set share.

    Parameters
    ----------
    W : (R, O, I), R sets of O rows
    inverse : (R, I, I), the inverse Hessian of each set (may be an expanded view)
    grid : its tensors broadcast against W
    pick : chooses the next column of each set
    block : downdates collected before they are applied; changes speed, not results (beyond
        rounding)

    Returns
    -------
    Q : (R, O, I), values on the grid
    loss : (R, O), (w - q) H (w - q)^T of each row, summed up while quantizing
    """
    sets, rows, width = W.shape
    Q, loss = torch.empty_like(W), W.new_zeros(sets, rows)
    state = _Elimination(W, inverse, block)
    with cpu_threads.suited_to(W.numel()) as all_threads:
        for free in reversed(range(width)):  # columns free after this step
            column, values, step_loss = state.step(grid, pick)
            Q[state.sets, :, column] = values
            loss += step_loss
            if free and state.inverse.full:
                with cpu_threads.use(all_threads):
                    state.update_inverse(free)
    return Q, loss


class _Elimination:
    """The columns held: the free ones, and quantized ones that have not been dropped yet."""

    def __init__(self, W: Tensor, inverse: Tensor, block: int):
        sets, _, width = W.shape
        self.sets = torch.arange(sets, device=W.device)  # (R,), to index with
        self.W = W.clone()  # (R, O, A)
        self.inverse = _LazyInverse(inverse, block)
        self.diagonal = inverse.diagonal(dim1=-2, dim2=-1).clone()  # (R, A)
        self.taken = W.new_zeros(sets, width)  # (R, A): infinite where a column is quantized
        self.index = torch.arange(width, device=W.device).expand(
            sets, width
        )  # columns of the layer

    def step(self, grid: Grid, pick: Pick) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize one column of each set; return its index (R,), its values and loss (R, O)."""
        sets = self.sets
        nearest = grid.nearest(self.W)
        error = self.W - nearest
        p = pick(error, self.diagonal, self.taken)  # (R,)
        pivot = self.diagonal[sets, p].unsqueeze(1)  # (R, 1)
        row = self.inverse.row(sets, p)  # (R, A)
        error_p = error[sets, :, p]  # (R, O)
        # Quantized columns change as well, by rounding errors; they are not read again.
        self.W.addcmul_((error_p / pivot).unsqueeze(2), row.unsqueeze(1), value=-1)
        u = torch.div(row, pivot.sqrt(), out=self.inverse.next_update())
        self.diagonal.addcmul_(u, u, value=-1)
        self.taken[sets, p] = torch.inf
        self.diagonal[sets, p] = 1.0
        return self.index[sets, p], nearest[sets, :, p], error_p.square() / pivot

    def update_inverse(self, free: int) -> None:
        """Apply the downdates, after dropping quantized columns if only so many are `free`."""
        if free < DROP_BELOW * self.W.shape[2] or self.inverse.borrowed:
            self._compact()
        self.inverse.apply()

    def _compact(self) -> None:
        """Drop the quantized columns."""
        rows = self.W.shape[1]
        free = (self.taken == 0).nonzero()[:, 1].view(len(self.sets), -1)  # (R, B) positions
        self.inverse.select(free)
        self.W = self.W.gather(2, free.unsqueeze(1).expand(-1, rows, -1))
        self.index = self.index.gather(1, free)
        self.diagonal = self.diagonal.gather(1, free)
        self.taken = torch.zeros_like(self.diagonal)


class _LazyInverse:
    """The inverse Hessians (R, A, A) of the columns held, as `base` - U^T U.

    U (R, t, A) are the downdates that have not been applied to `base` yet.
    """

    def __init__(self, inverse: Tensor, block: int):
        self.base = inverse
        self.borrowed = True  # `base` is the caller's, which is never written to
        self.updates = inverse.new_empty(inverse.shape[0], block, inverse.shape[2])
        self.pending = 0  # rows of `updates` that are used

    @property
    def full(self) -> bool:
        return self.pending == self.updates.shape[1]

    def row(self, sets: Tensor, p: Tensor) -> Tensor:
        """Return row `p` of each inverse, up to date, (R, A)."""
        row = self.base[sets, p]
        if not self.pending:
            return row
        U = self.updates[:, : self.pending]
        U_p = U[sets, :, p].unsqueeze(1)  # (R, 1, t)
        return torch.baddbmm(row.unsqueeze(1), U_p, U, alpha=-1).squeeze(1)

    def next_update(self) -> Tensor:
        """Return where the next downdate is to be written, (R, A)."""
        self.pending += 1
        return self.updates[:, self.pending - 1]

    def select(self, columns: Tensor) -> None:
        """Drop all columns but `columns` (R, B)."""
        block = self.updates.shape[1]
        self.updates = self.updates.gather(2, columns.unsqueeze(1).expand(-1, block, -1))
        sets = torch.arange(len(columns), device=columns.device)
        self.base = submatrices(self.base, sets, columns, in_place=not self.borrowed)
        self.borrowed = False

    def apply(self) -> None:
        """Apply all downdates to `base`."""
        self.base.baddbmm_(self.updates.mT, self.updates, alpha=-1)
        self.pending = 0


def submatrices(M: Tensor, which: Tensor, chosen: Tensor, *, in_place: bool) -> Tensor:
    """Return rows and columns `chosen` (R, B) of matrices `which` (R,) of `M`, as (R, B, B).

    The matrices of `M` (G, A, A) are symmetric. With `in_place` the results are moved to the front
    of M's own memory; `which` is then 0, 1, 2, ...
    """
    R, B = chosen.shape
    if M.device.type != "cpu":
        return M[which.view(-1, 1, 1), chosen.unsqueeze(2), chosen.unsqueeze(1)]
    # LAPACK returns matrices in column-major order, and NumPy would copy such a matrix as a whole
    # for every row.
    if M.stride(2) != 1:
        M = M.mT
    # Rows are contiguous, and NumPy takes columns from a matrix still in the cache three times as
    # fast as PyTorch gathers from all. Matrices move towards the front, so none is overwritten
    # before it is read.
    source, indices = M.numpy(), chosen.numpy()
    out = M.view(-1)[: R * B * B].view(R, B, B) if in_place else M.new_empty(R, B, B)
    target = out.numpy()
    for row, matrix in enumerate(which.tolist()):
        rows = source[matrix].take(indices[row], 0)
        rows.take(indices[row], 1, out=target[row], mode="clip")
    return out
