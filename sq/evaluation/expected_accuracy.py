"""The gate: a run goes on only if full precision reaches what is known of it on this image set.

Most figures that cannot be reproduced were never those of the network: another checkpoint, resize
or label order.
"""

from __future__ import annotations

from collections.abc import Mapping

from sq.errors import SqError
from sq.types.problem import Model

WITHIN = "within"


def check(model: Model, images: str, figures: Mapping[str, float]) -> dict[str, float] | None:
    """Compare full-precision `figures` with what `model` is expected to reach on the image set `images`.

    `model.expected` holds, by image set, figures by name and `within`, how far off they may be.

    Returns
    -------
    what was expected; None where nothing is known of this image set

    Raises
    ------
    SqError : a figure is further off, or is not measured here
    """
    known = model.expected.get(images)
    if known is None:
        return None
    for name, wanted in known.items():
        if name == WITHIN:
            continue
        if name not in figures or WITHIN not in known:
            raise SqError(
                f"model.expected.{images} needs `{WITHIN}` beside figures of this metric ({', '.join(figures)}), "
                f"got {', '.join(known)}: correct it"
            )
        if abs(figures[name] - wanted) > known[WITHIN]:
            raise SqError(
                f"full precision: {name} is {figures[name]:.4g} on {images}, expected {wanted:g} +- {known[WITHIN]:g}: "
                + _suspect(figures[name], wanted)
                + f"; if these are weights or images of your own, set model.expected.{images}=null"
            )
    return dict(known)


def _suspect(found: float, wanted: float) -> str:
    if found < 0.1 * wanted:
        return "suspect the order of the labels (dataset.classes) first, then the weights (model.weights)"
    if found < 0.8 * wanted:
        return "suspect the weights (model.weights) first, or their transform (mean, std)"
    return "suspect the transform (resize, crop, interpolation) first, then the version of the weights, then labels"
