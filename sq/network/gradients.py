"""One-line errors for networks that cannot be differentiated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sq.errors import SqError

# By a part of autograd's message: what it means for the network.
MEANINGS = {
    "modified by an inplace operation": "it changes in place what a gradient needs",
    "does not require grad and does not have a grad_fn": (
        "its outputs do not depend on layers in a way that can be differentiated (detach, "
        "torch.no_grad or argmax in its forward)"
    ),
    "a view and is being modified inplace": ("it changes in place a view of what a gradient needs"),
    "a view of a leaf Variable that requires grad is being used in an in-place operation": (
        "it changes a weight, or the input of a layer, in place"
    ),
    "appears to not have been used in the graph": (
        "its forward takes gradients itself, and rounded values have none"
    ),
    "is not implemented": (
        "one of its operations has no gradient, or none of the order that is asked for"
    ),
}


@contextmanager
def explained(net: nn.Module) -> Iterator[None]:
    """Turn autograd's errors within the block into an error that says what to change.

    Raises
    ------
    SqError : a gradient of `net` cannot be computed
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        meaning = _meaning(text)
        if meaning is None:
            raise
        raise SqError(
            f"{type(net).__name__} cannot be differentiated: {meaning} ({text[:100]}): choose "
            "sensitivity=output_error, weight_mse or kl, and quantizer=sensiquant, which take no "
            "gradients, or write its forward without that"
        ) from error


def _meaning(message: str) -> str | None:
    for part, meaning in MEANINGS.items():
        if part in message:
            return meaning
    return None
