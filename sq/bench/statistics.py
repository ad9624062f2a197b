"""Statistics of one 3x3 layer: sq/hessian/gram.py against unfold and one matrix product, interleaved in one process.

python -m sq.bench.statistics
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

from sq.core import closed_pipe
from sq.core.progress import out
from sq.hessian import gram
from sq.network import geometry
from sq.types.problem import Layer

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
PIECE = 2**24  # elements of unfolded input at a time, the same for both


def plain(layer: Layer, x: Tensor) -> Tensor:
    """Return X X^T (G, I, I) float64 as it is usually summed: unfold some images, multiply, add."""
    total = torch.zeros(layer.groups, layer.inputs, layer.inputs, dtype=torch.float64)
    for part in x.chunk(-(-x[:, 0].numel() * layer.inputs // PIECE)):
        X = geometry.inputs(layer.module, part)
        total += torch.bmm(X, X.mT)
    return total


def fast(layer: Layer, x: Tensor) -> Tensor:
    """Return the same by sq/hessian/gram.py."""
    way = gram.choose(layer, x, 1.0, 0)
    way.add(x, x[:, 0].numel())
    return way.finish()


@closed_pipe.quiet
def main() -> None:
    """Time both on layers of ResNet-50's and ResNet-20's sizes and print a table."""
    from rich.table import Table

    table = Table("channels", "map", "images", "unfold s", "sq s", "ratio", "difference")
    for channels, side, images in SIZES:
        (layer,), _ = geometry.find(nn.Sequential(nn.Conv2d(channels, 1, 3, padding=1)))
        x = torch.randn(
            images, channels, side, side, generator=torch.Generator().manual_seed(0)
        ).relu()
        seconds: dict[str, list[float]] = {"plain": [], "fast": []}
        for _ in range(REPEATS):
            results = []
            for way in (plain, fast):
                start = time.perf_counter()
                results.append(way(layer, x))
                seconds[way.__name__].append(time.perf_counter() - start)
        slow, quick = (statistics.median(taken) for taken in seconds.values())
        apart = float((results[0] - results[1]).abs().max() / results[0].abs().max())
        cells = (f"{slow:.3f}", f"{quick:.3f}", f"{slow / quick:.2f}", f"{apart:.1e}")
        table.add_row(str(channels), f"{side}x{side}", str(images), *cells)
    out.print(table)


if __name__ == "__main__":
    main()
