"""Measured: the true increase of the loss when one layer alone is rounded. The reference for cheaper prices."""

from typing import Literal

from torch import Tensor

from sq.config.constraints import Count, InputWidths, Widths
from sq.network import single_layer_changes
from sq.network.rounding_sites import Sites, price
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
    """Price each layer at each width by l(that layer rounded to nearest, all else as it is) - l(full precision).

    One forward pass for each layer and width, of which what comes before the layer is not computed
    again.

    Parameters
    ----------
    bits, input_bits : widths to price, of weights and of inputs
    images : of the calibration batch, of which the first so many are used; all, if there are fewer
    loss : "cross_entropy" with the images' labels, or "kl" divergence from full precision, which
    needs none

    Returns
    -------
    cost : in nats an image. Cross-entropy may fall: such a cost is negative

    Raises
    ------
    SqError : images without labels where `loss` needs them; the network returns no logits
    """
    x = problem.batch.x[:images]
    y = losses.labels(problem.batch, images, "measured") if loss == "cross_entropy" else None

    def increase(outputs: Tensor, reference: Tensor, place: slice) -> Tensor:
        if y is None:
            return losses.kl(outputs, reference)
        return losses.cross_entropy(outputs, y[place]) - losses.cross_entropy(reference, y[place])

    def one(sites: Sites) -> Rows:
        return sites.rows(
            single_layer_changes.measure(
                problem.model, single_layer_changes.rounding(sites), x, increase
            )
        )

    return Cost(*price(problem, bits, input_bits, one), unit="kl" if y is None else "loss")
