"""Time X X^T of 3x3 layers by sq/hessian/gram.py, against unfolding and one matrix product.

python -m sq.bench.statistics
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sq.core import closed_pipe
from sq.core.progress import out
from sq.hessian import gram
from sq.network import geometry
from sq.types.problem import Layer

# channels, edge of a map in pixels, images: layers of ResNet-50 on ImageNet, then of ResNet-20
SIZES = (
    (64, 56, 16),
    (128, 28, 32),
    (256, 14, 64),
    (512, 7, 128),
    (16, 32, 128),
    (32, 16, 256),
    (64, 8, 256),
)
REPEATS = 5
CHUNK_ELEMENTS = 2**24  # of unfolded input at a time, the same for both


def plain(layer: Layer, x: Tensor) -> Tensor:
    """Return X X^T (G, I, I) float64 as it is usually summed: unfold some images, multiply, add."""
    total = torch.zeros(layer.groups, layer.inputs, layer.inputs, dtype=torch.float64)
    elements = x[:, 0].numel() * layer.inputs  # a 3x3 layer has an output pixel for each input's
    for chunk in x.chunk(-(-elements // CHUNK_ELEMENTS)):
        X = geometry.inputs(layer.module, chunk)
        total += torch.bmm(X, X.mT)
    return total


def fast(layer: Layer, x: Tensor) -> Tensor:
    """Return the same as `plain`, by sq/hessian/gram.py."""
    total = gram.choose(layer, x, 1.0, 0)
    total.add(x, x[:, 0].numel())
    return total.finish()


@closed_pipe.quiet
def main() -> None:
    """Time both in turns, in one process, and print a table."""
    from rich.table import Table

    table = Table("channels", "map", "images", "unfold s", "sq s", "ratio", "difference")
    for channels, side, images in SIZES:
        (layer,), _ = geometry.find(nn.Sequential(nn.Conv2d(channels, 1, 3, padding=1)))
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(images, channels, side, side, generator=generator).relu()
        plain_seconds: list[float] = []
        fast_seconds: list[float] = []
        for _ in range(REPEATS):
            expected = _timed(plain, layer, x, plain_seconds)
            result = _timed(fast, layer, x, fast_seconds)
        slow, quick = statistics.median(plain_seconds), statistics.median(fast_seconds)
        difference = float((expected - result).abs().max() / expected.abs().max())
        table.add_row(
            str(channels),
            f"{side}x{side}",
            str(images),
            f"{slow:.3f}",
            f"{quick:.3f}",
            f"{slow / quick:.2f}",
            f"{difference:.1e}",
        )
    out.print(table)


def _timed(
    function: Callable[[Layer, Tensor], Tensor], layer: Layer, x: Tensor, seconds: list[float]
) -> Tensor:
    """Return the function's result, and add the time it took to `seconds`."""
    start = time.perf_counter()
    result = function(layer, x)
    seconds.append(time.perf_counter() - start)
    return result


if __name__ == "__main__":
    main()
