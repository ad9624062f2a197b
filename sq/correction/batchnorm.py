"""BatchNorm correction: undo the shift that quantization causes in the inputs of BatchNorm layers.

Quantized weights change the mean and variance of a BatchNorm's input. The change is measured on the
same images in both networks and applied to the running statistics:

    mean += mean_q - mean_r        variance *= variance_q / variance_r

So an unquantized network does not change at all. Re-estimating the statistics from calibration
images (see `reestimate`) would also "correct" the difference between those images and the augmented
ones of training.

This rule is ours. The papers re-estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.config.constraints import Count
from sq.correction import layer_by_layer
from sq.network import batchnorm_statistics, hooks
from sq.types.images import Batch


def correct(
    net: nn.Module, reference: nn.Module, batch: Batch, *, images: Count, batch_size: Count | None
) -> dict:
    """Correct the running statistics of `net` in place, layer by layer; undo all if that is worse.

    Parameters
    ----------
    net : the quantized network, changed in place
    reference : the full-precision network, of the same structure
    batch : calibration images
    images : number of images used, the first of the batch; all, if there are fewer
    batch_size : images in one forward pass, None for what suits their size. The first pass already
        corrects layers, so this changes results

    Returns
    -------
    layers : number of BatchNorm layers measured
    kept : number of corrected ones; 0 if all corrections together do not lower the error
    left_alone : layers not called exactly once in a pass
    error_before, error_after : relative squared error of the logits on those images

    Source
    ------
    Ours; compare the re-estimation of arXiv:2208.11580 and arXiv:2509.05576.
    """
    x = batch.x[:images]
    return layer_by_layer.repair(net, reference, x, RunningStatistics, batch_size=batch_size)


class RunningStatistics(layer_by_layer.Repair):
    """The correction of one BatchNorm's running statistics."""

    watching = staticmethod(hooks.feeding)
    find = staticmethod(batchnorm_statistics.find)

    def __init__(self, module: nn.Module, reference: nn.Module):
        self.module, self.reference = module, reference
        self.original = tuple(t.clone() for t in batchnorm_statistics.running(module))
        # Sums of the reference's inputs, for batches that the quantized layer has not had yet.
        self.expected: list[Tensor] = []
        mean, _ = self.original
        # Sums of x and x^2 (second axis) in the quantized network and the reference (first axis).
        self.sums = torch.zeros(2, 2, *mean.shape, dtype=torch.float64, device=mean.device)
        self.count = 0  # of values per channel in `sums`

    def expect(self, tensor: Tensor) -> None:
        """Sum up the reference's input."""
        self.expected.append(_sums(tensor))

    def see(self, tensor: Tensor) -> None:
        """Add an input, and correct the statistics that it is about to be normalised by."""
        self.sums += torch.stack([_sums(tensor), self.expected.pop(0)])
        self.count += tensor.numel() // tensor.shape[1]
        batchnorm_statistics.set_running(self.module, *self.shifted())

    def shifted(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance with the change that the input's have."""
        # Means of x and x^2; variance = mean of x^2 - square of the mean.
        (mean_q, square_q), (mean_r, square_r) = self.sums / self.count
        mean, variance = (t.double() for t in batchnorm_statistics.running(self.reference))
        eps = float(self.reference.eps)  # type: ignore[arg-type]
        variance_q, variance_r = square_q - mean_q * mean_q, square_r - mean_r * mean_r
        # BatchNorm divides by sqrt(variance + eps). Constant inputs have a finite ratio, too.
        ratio = (variance_q.clamp_min(0) + eps) / (variance_r.clamp_min(0) + eps)
        return mean + mean_q - mean_r, ((variance + eps) * ratio - eps).clamp_min(0)

    def changed(self) -> bool:
        """Return whether the statistics differ from the original ones."""
        mean, variance = batchnorm_statistics.running(self.module)
        original_mean, original_variance = self.original
        return not (torch.equal(mean, original_mean) and torch.equal(variance, original_variance))

    def undo(self) -> None:
        """Restore the statistics."""
        batchnorm_statistics.set_running(self.module, *self.original)


def _sums(x: Tensor) -> Tensor:
    """Return the sums of `x` (B, C, ...) and of its squares, (2, C) float64."""
    return torch.stack(
        [batchnorm_statistics.channel_sums(x), batchnorm_statistics.channel_sums(x * x)]
    )
