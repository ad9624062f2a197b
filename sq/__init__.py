"""sq: reproducible post-training quantization experiments for vision networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sq.errors import SqError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["SqError", "load", "quantize"]
__version__ = "0.1.0"


def load(file: str | Path, *, plugins: Sequence[str] = ()) -> nn.Module:
    """Return the network in a file that `export=packed` has written, see `sq.export.packed.load`.

    Parameters
    ----------
    plugins : packages whose code the file may name; without them, and without `SQ_PLUGINS`, none is
        imported for it
    """
    from sq.export import packed

    return packed.load(Path(file), plugins)


def quantize(
    net: nn.Module,
    images: Tensor,
    *overrides: str,
    quantizer: str = "sensiquant",
    bits: float = 4,
    reparameterize: bool = True,
) -> nn.Module:
    """Return a quantized copy of `net`, calibrated on `images` (N, C, H, W): `sq.api.quantize`."""
    from sq import api
    from sq.runtime import torch_setup

    torch_setup.import_torch()
    return api.quantize(
        net, images, *overrides, quantizer=quantizer, bits=bits, reparameterize=reparameterize
    )
