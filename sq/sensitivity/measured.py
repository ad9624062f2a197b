"""Measured sensitivity: the increase of the loss when one layer is rounded."""

from typing import Literal

from sq.config.constraints import Count, InputWidths, Widths
from sq.network import single_layer_changes
from sq.network.rounding_sites import Sites, score_sites
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Problem


def score(
    problem: Problem,
    *,
    bits: Widths,
    input_bits: InputWidths,
    images: Count,
    loss: Literal["cross_entropy", "kl"],
) -> Cost:
    """Score each layer at each width by the loss with that layer rounded, less the loss without.

    It takes one forward pass for each layer and width, in which the calls before the layer are not
    repeated.

    Parameters
    ----------
    bits, input_bits : widths to score, of weights and of inputs
    images : the number of calibration images to use, from the first; all, if there are fewer
    loss : "cross_entropy" with the images' labels, or "kl" divergence from full precision, which
        needs no labels

    Returns
    -------
    cost : in nats per image. Cross-entropy may fall: such a cost is negative

    Raises
    ------
    SqError : images without labels if `loss` needs them; the network returns no logits
    """
    x = problem.batch.x[:images]
    figure: single_layer_changes.Figure
    if loss == "kl":
        figure, unit = losses.kl_of_change, "kl"
    else:
        y = losses.labels(problem.batch, images, "measured")
        figure, unit = losses.cross_entropy_increase(y), "loss"

    def score_kind(sites: Sites) -> Rows:
        changes = single_layer_changes.rounding_changes(sites)
        return sites.rows(single_layer_changes.measure(problem.model, changes, x, figure))

    return Cost(*score_sites(problem, bits, input_bits, score_kind), unit=unit)
