"""Uniform: every layer gets the same bits."""

from sq.errors import SqError
from sq.types import Layer


def allocate(cost: dict[str, dict[int, float]], layers: list[Layer], budget: float) -> dict[str, int]:
    """Give each layer `budget` bits; prices are not looked at.

    Parameters
    ----------
    budget : bits of every weight, a whole number

    Raises
    ------
    SqError : `budget` is not whole
    """
    if budget != int(budget):
        raise SqError(f"bits={budget}: allocation=uniform takes whole bits; a mean of {budget} needs mixed precision")
    return {layer.name: int(budget) for layer in layers}
