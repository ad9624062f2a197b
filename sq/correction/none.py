"""No correction: the network stays as the quantizer returned it."""

from torch import nn

from sq.types.images import Batch


def correct(net: nn.Module, reference: nn.Module, batch: Batch) -> dict:
    """Change nothing."""
    return {"kept": 0}
