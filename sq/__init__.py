"""sq: reproducible post-training quantization experiments for vision networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"


def load(file: str | Path) -> nn.Module:
    """Return the network in a file that `export=packed` has written, see `sq.export.packed.load`."""
    from sq.export import packed

    return packed.load(Path(file))
