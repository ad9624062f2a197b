"""What keeps a network from being differentiated, said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sq.errors import SqError

# Of autograd's messages, by what they begin with or hold, and what each means of a network.
MEANINGS = {
    "modified by an inplace operation": "it changes in place what a gradient needs",
    "does not require grad and does not have a grad_fn": "its outputs do not depend on layers in a way that can be "
    "differentiated (detach, torch.no_grad or argmax in its forward)",
    "a view and is being modified inplace": "it changes in place a view of what a gradient needs",
    "a view of a leaf Variable that requires grad is being used in an in-place operation": "it changes a weight, or "
    "what it is fed, in place",
    "appears to not have been used in the graph": "its forward takes gradients itself, and what is rounded has none",
    "is not implemented": "one of its operations has no gradient, or none of the order that is asked for",
}


@contextmanager
def explained(net: nn.Module) -> Iterator[None]:
    """Say why a gradient of `net` cannot be taken, where the block finds that out.

    Raises
    ------
    SqError : it cannot
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        meaning = next((told for known, told in MEANINGS.items() if known in text), None)
        if meaning is None:
            raise
        raise SqError(
            f"{type(net).__name__} cannot be differentiated: {meaning} ({text[:100]}): choose "
            "sensitivity=output_error, weight_mse or kl, and quantizer=sensiquant, which take no gradients, or write "
            "its forward without that"
        ) from error
