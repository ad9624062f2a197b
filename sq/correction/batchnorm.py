"""BatchNorm correction: undo the shift that quantization causes in what each BatchNorm is fed.

Quantized weights change the mean and variance of a BatchNorm's input. Measured on the same images
in both networks, that change is carried over to the running statistics:

    mean += mean_q - mean_r        variance *= variance_q / variance_r

so an unquantized network is left exactly as it was. Re-estimating from plain images instead (see
`reestimate`) also "corrects" the difference between those images and the augmented ones of
training.

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
    """Correct the running statistics of `net` in place, layer after layer; undo it all if that does not help.

    Parameters
    ----------
    net : the quantized network, changed in place
    reference : the full-precision network, of the same structure
    batch : calibration images
    images : of the batch, of which the first so many are used; all, if there are fewer
    batch_size : images in one forward pass, None for what suits their size; layers are corrected by
    the first of
        them already

    Returns
    -------
    layers : BatchNorm layers seen; kept : corrected ones, 0 if all corrections together do not
    lower the error of
        the logits on those images; left_alone : layers not called exactly once a pass;
        error_before, error_after : relative squared error of the logits, on those images

    Source
    ------
    Ours; compare the re-estimation of arXiv:2208.11580 and arXiv:2509.05576.
    """
    return layer_by_layer.repair(
        net, reference, batch.x[:images], Statistics, batch_size=batch_size
    )


class Statistics(layer_by_layer.Repair):
    """The correction of one BatchNorm's running statistics."""

    watching = staticmethod(hooks.feeding)
    find = staticmethod(batchnorm_statistics.find)

    def __init__(self, ours: nn.Module, theirs: nn.Module):
        self.ours, self.theirs = ours, theirs
        self.original = tuple(t.clone() for t in batchnorm_statistics.running(ours))
        self.expected: list[Tensor] = []  # sums of the reference's inputs, of batches not yet seen
        self.sums = torch.zeros(
            2, 2, *self.original[0].shape, dtype=torch.float64, device=self.original[0].device
        )
        self.count = 0

    def expect(self, tensor: Tensor) -> None:
        """Sum up the reference's input."""
        self.expected.append(_sums(tensor))

    def see(self, tensor: Tensor) -> None:
        """Add the input, and correct the statistics that it is about to be normalised by."""
        self.sums += torch.stack([_sums(tensor), self.expected.pop(0)])
        self.count += tensor.numel() // tensor.shape[1]
        batchnorm_statistics.set_running(self.ours, *self.shifted())

    def shifted(self) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance, moved as the layer's input moved."""
        (mean_q, square_q), (mean_r, square_r) = self.sums / self.count
        mean, variance = (t.double() for t in batchnorm_statistics.running(self.theirs))
        eps = float(self.theirs.eps)  # type: ignore[arg-type]
        variance_q, variance_r = square_q - mean_q * mean_q, square_r - mean_r * mean_r
        ratio = (variance_q.clamp_min(0) + eps) / (variance_r.clamp_min(0) + eps)
        return mean + mean_q - mean_r, ((variance + eps) * ratio - eps).clamp_min(0)

    def changed(self) -> bool:
        """Return whether the statistics differ from what they were."""
        return any(
            not torch.equal(a, b)
            for a, b in zip(batchnorm_statistics.running(self.ours), self.original, strict=True)
        )

    def undo(self) -> None:
        """Restore the statistics."""
        batchnorm_statistics.set_running(self.ours, *self.original)


def _sums(x: Tensor) -> Tensor:
    """Return the sums of `x` (B, C, ...) and of its squares, (2, C) float64."""
    return torch.stack(
        [batchnorm_statistics.channel_sums(x), batchnorm_statistics.channel_sums(x * x)]
    )
