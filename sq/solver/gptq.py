"""GPTQ: quantize columns in a fixed order; the columns still free compensate each error."""

from typing import Literal

from torch import Tensor

from sq.config.constraints import Count
from sq.solver import column_elimination
from sq.types.problem import Grid


def solve(
    W: Tensor, H: Tensor, grid: Grid, *, order: Literal["natural", "act"], block: Count
) -> Tensor:
    """Minimise tr((W - Q) H (W - Q)^T) greedily over Q on the grid, columns in a fixed order.

    Parameters
    ----------
    W : (G, O, I)
    H : (G, I, I), positive definite
    order : "natural" keeps the order of the columns; "act" sorts them by falling diagonal of H
        (act-order)
    block : columns in one block, at least 1; changes speed, not results

    Returns
    -------
    codes : (G, O, I) int32

    Raises
    ------
    torch.linalg.LinAlgError : H is not positive definite

    Source
    ------
    Frantar et al. 2022, arXiv:2210.17323, Algorithm 1; act-order from the authors' README.
    """
    permutation = None
    if order == "act":
        permutation = H.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
    Q, _ = column_elimination.sweep(W, H, grid, permutation, block=block)
    return grid.encode(Q)
