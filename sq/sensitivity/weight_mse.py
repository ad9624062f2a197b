"""Weight MSE: how far rounding moves the weights themselves. No images, no network: the simplest price."""

from sq.config.constraints import InputWidths, Widths
from sq.network.rounding_sites import Sites, price, refuse_inputs, weight
from sq.types.costs import Cost, Rows
from sq.types.problem import Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths) -> Cost:
    """Price each layer at each width by the mean over its weights of (Q(w) - w)^2.

    Parameters
    ----------
    bits : widths to price
    input_bits : has to be []: squares of weights and of inputs do not add up

    Raises
    ------
    SqError : inputs are to be priced
    """
    refuse_inputs("weight_mse", input_bits)

    def one(sites: Sites) -> Rows:
        errors = (sites.error(layer, b, weight(layer)) for layer, b in sites.choices())
        return sites.rows([float(error.double().square().mean()) for error in errors])

    return Cost(*price(problem, bits, [], one), unit="squared weight")
