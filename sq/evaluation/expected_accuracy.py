"""Stop a run whose full-precision accuracy is not the one known for its image set.

Most figures that cannot be reproduced were never those of the network, but of another checkpoint,
resize or label order.
"""

from __future__ import annotations

from collections.abc import Mapping

from sq.errors import SqError
from sq.types.problem import Model

WITHIN = "within"


def check(model: Model, images: str, figures: Mapping[str, float]) -> dict[str, float] | None:
    """Compare full-precision `figures` with the expected ones of `model` on an image set.

    Parameters
    ----------
    model : its `expected` holds, by image set, figures by name and `within`, the tolerance of all
    images : name of the image set

    Returns
    -------
    expected : None if nothing is known for this image set

    Raises
    ------
    SqError : a figure is further off, or is not measured here
    """
    expected = model.expected.get(images)
    if expected is None:
        return None
    for name, value in expected.items():
        if name == WITHIN:
            continue
        if name not in figures or WITHIN not in expected:
            raise SqError(
                f"model.expected.{images} needs `{WITHIN}` beside figures of this metric "
                f"({', '.join(figures)}), got {', '.join(expected)}: correct it"
            )
        tolerance = expected[WITHIN]
        if abs(figures[name] - value) > tolerance:
            raise SqError(
                f"full precision: {name} is {figures[name]:.4g} on {images}, expected {value:g} +- "
                f"{tolerance:g}: {_likely_cause(figures[name], value)}; if these are weights or "
                f"images of your own, set model.expected.{images}=null"
            )
    return dict(expected)


def _likely_cause(measured: float, expected: float) -> str:
    # Wrong labels leave next to nothing, wrong weights a part, and a wrong resize most of it.
    if measured < 0.1 * expected:
        return (
            "suspect the order of the labels (dataset.classes) first, then the weights "
            "(model.weights)"
        )
    if measured < 0.8 * expected:
        return "suspect the weights (model.weights) first, or their transform (mean, std)"
    return (
        "suspect the transform (resize, crop, interpolation) first, then the version of the "
        "weights, then labels"
    )
