"""Greedy elimination: the column to quantize next is chosen anew for every column (OBQ, if rows stand alone).

Each step is Lemma 1 of OBQ: quantize column p, subtract (w_p - q_p) / [H^-1]_pp times row p of H^-1
from the free columns, remove p from H^-1 by a rank-1 downdate H^-1 - u u^T. Done at once that reads
and writes A^2 numbers for every set and step, and memory is what the textbook form waits for. Here
the vectors u are kept and applied a block at a time as one matrix product; between, only row p and
the diagonal are brought up to date. Quantized columns are dropped now and then. The choices are
those of the textbook form.
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

# columns are dropped when fewer than this share of those held are free: copying is not free
DROP = 0.8


def eliminate(
    W: Tensor, inverse: Tensor, grid: Grid, pick: Pick, *, block: int
) -> tuple[Tensor, Tensor]:
    """Quantize the columns of `W` in an order chosen on the way; rows that share an inverse share the order.

    Parameters
    ----------
    W : (R, O, I), R sets of O rows
    inverse : (R, I, I), the inverse Hessian of each set (may be an expanded view)
    grid : its tensors broadcast against W
    pick : chooses the next column of each set
    block : downdates kept before they are applied; changes speed, not results (beyond rounding)

    Returns
    -------
    Q : (R, O, I), values on the grid; loss : (R, O), each row's (w - q) H (w - q)^T as predicted on
    the way
    """
    sets, rows, width = W.shape
    every = torch.arange(sets, device=W.device)
    Q, loss = torch.empty_like(W), W.new_zeros(sets, rows)
    W = W.clone()
    origin = torch.arange(width, device=W.device).expand(sets, width)  # where each column came from
    taken = W.new_zeros(sets, width)
    left = _Inverse(inverse, block)
    diagonal = inverse.diagonal(dim1=-2, dim2=-1).clone()
    with cpu_threads.suited_to(W.numel()) as all_threads:
        for step in range(1, width + 1):
            nearest = grid.nearest(W)
            error = W - nearest
            p = pick(error, diagonal, taken)  # (R,)
            pivot = diagonal[every, p].unsqueeze(1)  # (R, 1)
            row = left.row(every, p)
            chosen = error[every, :, p]  # (R, O)
            Q[every, :, origin[every, p]] = nearest[every, :, p]
            loss += chosen.square() / pivot
            # Columns taken are changed as well: by rounding errors, and nobody looks at them again.
            W.addcmul_((chosen / pivot).unsqueeze(2), row.unsqueeze(1), value=-1)
            u = torch.div(row, pivot.sqrt(), out=left.next())
            diagonal.addcmul_(u, u, value=-1)
            taken[every, p], diagonal[every, p] = torch.inf, 1.0
            if left.full and step < width:
                with cpu_threads.use(all_threads):
                    if width - step < DROP * W.shape[2] or left.borrowed:
                        keep = (taken == 0).nonzero()[:, 1].view(sets, -1)
                        left.keep(keep)
                        W = W.gather(2, keep.unsqueeze(1).expand(-1, rows, -1))
                        origin, diagonal = origin.gather(1, keep), diagonal.gather(1, keep)
                        taken = torch.zeros_like(diagonal)
                    left.apply()
    return Q, loss


class _Inverse:
    """The inverse Hessians (R, A, A) of the columns held: `base`, less U^T U for the downdates U kept, (R, t, A)."""

    def __init__(self, inverse: Tensor, block: int):
        self.base, self.borrowed = inverse, True  # the caller's is never written to
        self.kept = inverse.new_empty(inverse.shape[0], block, inverse.shape[2])
        self.pending = 0

    @property
    def full(self) -> bool:
        return self.pending == self.kept.shape[1]

    def row(self, every: Tensor, p: Tensor) -> Tensor:
        """Return row `p` of each inverse, up to date, (R, A)."""
        row = self.base[every, p]
        if not self.pending:
            return row
        U = self.kept[:, : self.pending]
        return torch.baddbmm(row.unsqueeze(1), U[every, :, p].unsqueeze(1), U, alpha=-1).squeeze(1)

    def next(self) -> Tensor:
        """Return where the next downdate is to be written, (R, A)."""
        self.pending += 1
        return self.kept[:, self.pending - 1]

    def keep(self, columns: Tensor) -> None:
        """Drop all columns but `columns` (R, B)."""
        every = torch.arange(len(columns), device=columns.device)
        self.kept = self.kept.gather(2, columns.unsqueeze(1).expand(-1, self.kept.shape[1], -1))
        self.base, self.borrowed = (
            submatrices(self.base, every, columns, in_place=not self.borrowed),
            False,
        )

    def apply(self) -> None:
        """Bring all of the inverses up to date."""
        self.base.baddbmm_(self.kept.mT, self.kept, alpha=-1)
        self.pending = 0


def submatrices(M: Tensor, which: Tensor, chosen: Tensor, *, in_place: bool) -> Tensor:
    """Return rows and columns `chosen` (R, B) of symmetric matrices number `which` (R,) of `M` (G, A, A), as (R, B, B).

    With `in_place` they are moved to the front of M's own memory; `which` is then 0, 1, 2, ...
    """
    R, B = chosen.shape
    if M.device.type != "cpu":
        return M[which.view(-1, 1, 1), chosen.unsqueeze(2), chosen.unsqueeze(1)]
    # LAPACK leaves columns whole, and NumPy would copy all of such a matrix for every row
    if M.stride(2) != 1:
        M = M.mT
    # Rows are whole pieces of memory, and NumPy takes columns from a matrix still in the cache
    # three times as fast as PyTorch gathers from all. Matrices move towards the front, so none is
    # written over before it is read.
    source, places = M.numpy(), chosen.numpy()
    out = M.view(-1)[: R * B * B].view(R, B, B) if in_place else M.new_empty(R, B, B)
    target = out.numpy()
    for row, matrix in enumerate(which.tolist()):
        source[matrix].take(places[row], 0).take(places[row], 1, out=target[row], mode="clip")
    return out
