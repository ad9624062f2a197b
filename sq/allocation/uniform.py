"""Uniform: every layer gets the same bits."""

from sq.errors import SqError
from sq.types.costs import Budget, Cost, Widths
from sq.types.problem import Layer


def allocate(cost: Cost, layers: list[Layer], budget: Budget) -> Widths:
    """Give each layer the budget's bits, except layers with fixed bits; sensitivities are not used.

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
            f"bits={bits}: allocation=uniform takes a whole number; for a mean of {bits} bits use "
            "allocation=ilp"
        )
    return Widths({layer.name: int(bits) for layer in layers} | budget.fixed)
