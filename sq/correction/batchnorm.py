"""BatchNorm correction: undo the shift that quantization causes in what each BatchNorm is fed.

Quantized weights change the mean and variance of a BatchNorm's input. Measured on the same images in both
networks, that change is carried over to the running statistics:

    mean += mean_q - mean_r        variance *= variance_q / variance_r

so an unquantized network is left exactly as it was. Re-estimating from plain images instead (see
`reestimate`) also "corrects" the difference between those images and the augmented ones of training.

This rule is ours. The papers re-estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq import batchnorm, hooks, repair
from sq.samples import Batch
from sq.types import Count


def correct(
    net: nn.Module, reference: nn.Module, batch: Batch, *, images: Count, batch_size: Count | None, rounds: Count
) -> dict:
    """Correct the running statistics of `net` in place, layer by layer where that helps.

    A layer keeps its correction if its output then is closer to full precision on the calibration images. If
    all corrections together do not lower the error of the logits on those images, none is kept.

    Parameters
    ----------
    net : the quantized network, changed in place
    reference : the full-precision network, of the same structure
    batch : calibration images
    images : of the batch, of which the first so many are used; all, if there are fewer
    batch_size : images in one forward pass, None for what suits their size; the first round corrects by the first
        of them already
    rounds : passes over the images; each measures the shift with the corrections before it in force

    Returns
    -------
    layers : BatchNorm layers seen; kept : corrections kept; left_alone : layers not called exactly once a
        pass; error_before, error_after : relative squared error of the logits, on the calibration images

    Source
    ------
    Ours; compare the re-estimation of arXiv:2208.11580 and arXiv:2509.05576.
    """
    return repair.repair(net, reference, batch.x[:images], Statistics, batch_size=batch_size, rounds=rounds)


class Statistics(repair.Repair):
    """The correction of one BatchNorm's running statistics."""

    watching = staticmethod(hooks.feeding)
    find = staticmethod(batchnorm.find)

    def __init__(self, ours: nn.Module, theirs: nn.Module):
        self.ours, self.theirs = ours, theirs
        self.original = tuple(t.clone() for t in batchnorm.running(ours))
        self._measure_anew()

    def _measure_anew(self) -> None:
        mean = self.original[0]
        self.moments, self.expected = Moments(len(mean), mean.device), mean.new_empty(0)

    def expect(self, tensor: Tensor) -> None:
        """Keep the reference's input."""
        self.expected = tensor

    def see(self, tensor: Tensor, at_once: bool) -> None:
        """Add the input; with `at_once`, correct the statistics that it is about to be normalised by."""
        self.moments.add(tensor, self.expected)
        self.expected = tensor.new_empty(0)  # inputs of all layers at once would fill the memory
        if at_once:
            batchnorm.set_running(self.ours, *self.moments.shifted(self.theirs))

    def settle(self) -> bool:
        """Correct the statistics if that brings the output closer to full precision's."""
        plain, shifted = batchnorm.running(self.theirs), self.moments.shifted(self.theirs)
        better = self.moments.error(self.ours, *shifted, *plain) < self.moments.error(self.ours, *plain, *plain)
        batchnorm.set_running(self.ours, *(shifted if better else plain))
        self._measure_anew()
        return better

    def undo(self) -> None:
        """Restore the statistics."""
        batchnorm.set_running(self.ours, *self.original)


class Moments:
    """Sums, per channel, of a BatchNorm's input in both networks (q quantized, r reference)."""

    def __init__(self, width: int, device: torch.device):
        self.count = 0
        self.sums = torch.zeros(5, width, dtype=torch.float64, device=device)  # q, r, qq, rr, qr

    def add(self, x_q: Tensor, x_r: Tensor) -> None:
        """Add inputs (B, C, ...) of the same images in both networks."""
        products = (x_q, x_r, x_q * x_q, x_r * x_r, x_q * x_r)
        self.sums += torch.stack([batchnorm.total(t) for t in products])
        self.count += x_q.numel() // x_q.shape[1]

    def shifted(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the running mean and variance of `module`, moved as its input moved."""
        q, r, qq, rr, _ = self.sums / self.count
        mean, variance = (t.double() for t in batchnorm.running(module))
        eps = float(module.eps)  # type: ignore[arg-type]
        ratio = ((qq - q * q).clamp_min(0) + eps) / ((rr - r * r).clamp_min(0) + eps)
        return mean + q - r, ((variance + eps) * ratio - eps).clamp_min(0)

    def error(self, module: nn.Module, mean: Tensor, variance: Tensor, mean_r: Tensor, variance_r: Tensor) -> float:
        """Return the mean squared error of the output of `module`, summed over channels, with other statistics.

        Both outputs are affine in their inputs, a x + b, so five sums give the error for any statistics.
        """
        eps, gain = float(module.eps), module.weight  # type: ignore[arg-type]
        g = gain.detach().double() if isinstance(gain, Tensor) else torch.ones_like(mean)
        a, a_r = (g / (v.double() + eps).sqrt() for v in (variance, variance_r))
        b, b_r = -a * mean.double(), -a_r * mean_r.double()
        q, r, qq, rr, qr = self.sums / self.count
        c = b - b_r
        squares = a * a * qq + a_r * a_r * rr - 2 * a * a_r * qr + 2 * c * (a * q - a_r * r) + c * c
        return float(squares.sum())
