"""Re-estimation: replace BatchNorm's running statistics by those of calibration images.

This is what the papers do. It drops the statistics of training, which are of augmented images, so
it can reduce accuracy even if nothing is quantized. `batchnorm` corrects only the shift.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from sq.correction import layer_by_layer
from sq.network import batchnorm_statistics, hooks
from sq.types.images import Batch


def correct(
    net: nn.Module,
    reference: nn.Module,
    batch: Batch,
    *,
    batch_size: Annotated[int, Ge(2)] | None,
    guard: bool,
) -> dict:
    """Re-estimate the running statistics of `net` in place, layer by layer, from all of `batch`.

    Each batch is normalised by its own statistics, as in training. The new running statistics are
    their mean, weighted by images.

    Parameters
    ----------
    net : the quantized network, changed in place
    reference : not changed; errors are relative to its logits
    batch_size : images in a batch, 2 or more; None for what suits their size
    guard : keep the new statistics only if they lower the error of the logits on those images; the
        papers always keep them

    Returns
    -------
    layers, kept : number of BatchNorm layers, and how many have new statistics
    left_alone : layers not called exactly once in a pass
    error_before, error_after : relative squared error of the logits on the calibration images

    Source
    ------
    Frantar et al. 2022 (OBC), arXiv:2208.11580, "batchnorm tuning"; a summary of arXiv:2509.05576
    names it too.
    """
    modules, left_alone = layer_by_layer.called_once(
        net, batchnorm_statistics.find(net), batch.x[:1]
    )
    targets = list(layer_by_layer.outputs(reference, batch.x, batch_size))
    error_before = layer_by_layer.output_error(net, targets, batch.x, batch_size)
    original = {}
    for name, module in modules.items():
        original[name] = tuple(t.clone() for t in batchnorm_statistics.running(module))
    _reestimate(net, modules, batch.x, batch_size)
    replaced = len(modules)
    error_after = layer_by_layer.output_error(net, targets, batch.x, batch_size)
    if guard and not error_after < error_before:
        for name, module in modules.items():
            batchnorm_statistics.set_running(module, *original[name])
        error_after, replaced = error_before, 0
    return {
        "layers": len(modules),
        "kept": replaced,
        "left_alone": left_alone,
        "error_before": error_before,
        "error_after": error_after,
    }


def _reestimate(
    net: nn.Module, modules: dict[str, nn.Module], x: Tensor, batch_size: int | None
) -> None:
    """Set the running statistics of `modules` to those of their inputs for images `x`."""
    sums: dict[str, list[Tensor]] = {name: [] for name in modules}
    counts = dict.fromkeys(modules, 0)

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        if not x.numel():  # a router has sent no images here
            return
        values = batchnorm_statistics.by_channel(x)
        statistics = torch.stack([values.mean(1), values.var(1, unbiased=False)])
        sums[name].append(statistics * len(x))
        counts[name] += len(x)
        # Set before this batch is normalised, so that it is normalised by its own statistics.
        batchnorm_statistics.set_running(module, *statistics)

    with hooks.feeding(modules, see):
        for _ in layer_by_layer.outputs(net, x, batch_size):
            pass  # `see` does the work
    for name, module in modules.items():
        if counts[name]:
            batchnorm_statistics.set_running(module, *torch.stack(sums[name]).sum(0) / counts[name])
