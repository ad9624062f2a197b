"""Weight MSE sensitivity: the mean squared rounding error of the weights. No images are used."""

from sq.config.constraints import InputWidths, Widths
from sq.network.rounding_sites import Sites, refuse_inputs, score_sites
from sq.network.weight_swap import original_weight
from sq.types.costs import Cost, Rows
from sq.types.problem import Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths) -> Cost:
    """Score each layer at each width by the mean over its weights of (Q(w) - w)^2.

    Parameters
    ----------
    bits : widths to score
    input_bits : has to be []: squares of weights and of inputs do not add up

    Raises
    ------
    SqError : there are `input_bits`
    """
    refuse_inputs("weight_mse", input_bits)

    def score_kind(sites: Sites) -> Rows:
        means = []
        for layer, width in sites.choices():
            error = sites.error(layer, width, original_weight(layer))
            means.append(float(error.double().square().mean()))
        return sites.rows(means)

    return Cost(*score_sites(problem, bits, [], score_kind), unit="squared weight")
