"""Re-estimation: replace BatchNorm's running statistics by those of plain calibration images.

This is the papers' choice. It forgets the statistics of training, which came from augmented images, so it can
cost accuracy even where nothing is quantized; `batchnorm` corrects the shift alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq import batchnorm
from sq.types import Split


def correct(net: nn.Module, reference: nn.Module, batch: Split, *, batch_size: int) -> dict:
    """Re-estimate the running statistics of `net`, in place, layer after layer, over all of `batch`.

    Each batch is normalised by its own statistics, as in training; the mean over batches is kept.

    Parameters
    ----------
    net : the quantized network, changed in place
    reference : not changed; its logits are what the reported errors compare with
    batch_size : images a batch, 2 or more

    Returns
    -------
    layers, kept : BatchNorm layers, all replaced; error_before, error_after : relative squared
        error of the logits, on the calibration images

    Source
    ------
    Frantar et al. 2022 (OBC), arXiv:2208.11580, "batchnorm tuning"; a summary of arXiv:2509.05576 names it too.
    """
    modules = batchnorm.find(net)
    before = batchnorm.logit_error(net, reference, batch.x, batch_size)
    sums: dict[str, list[Tensor]] = {name: [] for name in modules}

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        values = batchnorm.channels(x)
        statistics = torch.stack([values.mean(1), values.var(1, unbiased=False)])
        sums[name].append(statistics)
        batchnorm.set_running(module, *statistics)

    with torch.no_grad(), batchnorm.feeding(modules, see):
        for part in batch.x.split(batch_size):
            net(part)
    for name, module in modules.items():
        batchnorm.set_running(module, *torch.stack(sums[name]).mean(0))
    after = batchnorm.logit_error(net, reference, batch.x, batch_size)
    return {"layers": len(modules), "kept": len(modules), "error_before": before, "error_after": after}
