"""Re-estimation: replace BatchNorm's running statistics by those of plain calibration images.

This is the papers' choice. It forgets the statistics of training, which came from augmented images,
so it can cost accuracy even where nothing is quantized; `batchnorm` corrects the shift alone.
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
    """Re-estimate the running statistics of `net`, in place, layer after layer, over all of `batch`.

    Each batch is normalised by its own statistics, as in training; their mean, weighted by images,
    is kept.

    Parameters
    ----------
    net : the quantized network, changed in place
    reference : not changed; its logits are what the reported errors compare with
    batch_size : images a batch, 2 or more; None for what suits their size
    guard : keep the new statistics only if they lower the error of the logits on those images; the
    papers keep them

    Returns
    -------
    layers, kept : BatchNorm layers, and how many were replaced; left_alone : layers not called
    exactly once a pass;
        error_before, error_after : relative squared error of the logits, on the calibration images

    Source
    ------
    Frantar et al. 2022 (OBC), arXiv:2208.11580, "batchnorm tuning"; a summary of arXiv:2509.05576
    names it too.
    """
    modules, alone = layer_by_layer.called_once(net, batchnorm_statistics.find(net), batch.x[:1])
    wanted = list(layer_by_layer.outputs(reference, batch.x, batch_size))
    before = layer_by_layer.output_error(net, wanted, batch.x, batch_size)
    original = {
        name: tuple(t.clone() for t in batchnorm_statistics.running(module))
        for name, module in modules.items()
    }
    sums: dict[str, list[Tensor]] = {name: [] for name in modules}
    counts = dict.fromkeys(modules, 0)

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        if not x.numel():  # a router has sent nothing here
            return
        values = batchnorm_statistics.by_channel(x)
        statistics = torch.stack([values.mean(1), values.var(1, unbiased=False)])
        sums[name].append(statistics * len(x))
        counts[name] += len(x)
        batchnorm_statistics.set_running(module, *statistics)

    with hooks.feeding(modules, see):
        for _ in layer_by_layer.outputs(net, batch.x, batch_size):
            pass  # `see` does all
    for name, module in modules.items():
        if counts[name]:
            batchnorm_statistics.set_running(module, *torch.stack(sums[name]).sum(0) / counts[name])
    after, kept = layer_by_layer.output_error(net, wanted, batch.x, batch_size), len(modules)
    if guard and not after < before:
        for name, module in modules.items():
            batchnorm_statistics.set_running(module, *original[name])
        after, kept = before, 0
    return {
        "layers": len(modules),
        "kept": kept,
        "left_alone": alone,
        "error_before": before,
        "error_after": after,
    }
