"""Mask KL: how far the answers move when the weights that few bits cannot tell from zero are zero."""

from collections.abc import Callable

from torch import Tensor

from sq.config.constraints import Count, InputWidths, Widths
from sq.network import single_layer_changes
from sq.network.rounding_sites import Sites, price, refuse_inputs
from sq.sensitivity import losses
from sq.types.costs import Cost, Rows
from sq.types.problem import Layer, Problem


def score(problem: Problem, *, bits: Widths, input_bits: InputWidths, images: Count) -> Cost:
    """Price each layer at each width by KL(f(x) || f(x) with those of its weights zero that round to zero).

    Parameters
    ----------
    bits : widths to price
    input_bits : has to be []: what is masked is weights
    images : of the calibration batch, of which the first so many are used; all, if there are fewer

    Returns
    -------
    cost : in nats an image

    Raises
    ------
    SqError : inputs are to be priced; the network returns no logits

    Source
    ------
    Huang et al. 2023 (OHQ), arXiv 2309.01945: part of a layer's weights masked, KL of the outputs.
    **Our reading**: its formula was not available. Which weights are masked, and that this is how
    bits enter, is ours.
    """
    refuse_inputs("mask_kl", input_bits)

    def one(sites: Sites) -> Rows:
        changes = [
            single_layer_changes.Change("weights", layer, _masked(sites, layer, b))
            for layer, b in sites.choices()
        ]
        x = problem.batch.x[:images]
        return sites.rows(
            single_layer_changes.measure(
                problem.model, changes, x, lambda y, y0, _: losses.kl(y, y0)
            )
        )

    return Cost(*price(problem, bits, [], one), unit="kl")


def _masked(sites: Sites, layer: Layer, bits: int) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight * (sites.nearest(layer, bits, weight) != 0)
