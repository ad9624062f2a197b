"""Uniform: every layer gets the same bits."""

from sq.errors import SqError
from sq.types.costs import Budget, Cost, Widths
from sq.types.problem import Layer


def allocate(cost: Cost, layers: list[Layer], budget: Budget) -> Widths:
    """Give each layer the budget's bits, but for those whose bits are settled; prices are not looked at.

    Parameters
    ----------
    budget : `bits` is a whole number

    Raises
    ------
    SqError : the budget is not whole
    """
    bits = budget.bits
    if bits != int(bits):
        raise SqError(
            f"bits={bits}: allocation=uniform takes whole bits; a mean of {bits} needs allocation=ilp"
        )
    return Widths({layer.name: int(bits) for layer in layers} | budget.fixed)
