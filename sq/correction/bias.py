"""Bias correction: subtract the mean shift that quantization causes in each layer's output.

Quantized weights W + E return W x + E x in place of W x. The mean of E x over images and positions,
one number per output channel, acts as an unwanted bias. It is measured as the mean difference of
the layer's output from that in full precision on the same images, and subtracted from the bias (a
layer without a bias gets one):

    b -= mean(y_q) - mean(y_r)

The error that remains has mean 0, and its mean square is lower by the square of the shift.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.config.constraints import Count
from sq.correction import layer_by_layer
from sq.network import geometry, hooks
from sq.types.images import Batch


def correct(
    net: nn.Module, reference: nn.Module, batch: Batch, *, images: Count, batch_size: Count | None
) -> dict:
    """Correct the biases of `net` in place, layer by layer; undo all if that is worse.

    Parameters
    ----------
    net : the quantized network, changed in place; BatchNorm layers may be folded or not
    reference : the full-precision network, of the same structure
    batch : calibration images
    images : number of images used, the first of the batch; all, if there are fewer
    batch_size : images in one forward pass, None for what suits their size. The first pass already
        corrects layers, so this changes results

    Returns
    -------
    layers : number of convolutions and linear layers measured
    kept : number of corrected ones; 0 if all corrections together do not lower the error
    left_alone : layers not called exactly once in a pass
    error_before, error_after : relative squared error of the outputs on those images

    Source
    ------
    Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv
    1906.04721, section 4.2, with means over images as in appendix D. Undoing the correction if it
    does not help is ours.
    """
    return layer_by_layer.repair(net, reference, batch.x[:images], Bias, batch_size=batch_size)


class Bias(layer_by_layer.Repair):
    """The correction of one layer's bias."""

    watching = staticmethod(hooks.returning)

    def __init__(self, module: nn.Module, reference: nn.Module):
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, nn.Parameter)
        self.module, self.weight, self.original = module, weight, bias
        # Of the channels in an output: the last axis of a linear layer, else before the positions.
        self.channel_axis = 1 - weight.ndim
        # What is subtracted from the bias now, (C,).
        self.correction = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        # Sums of the reference's outputs, for batches that the quantized layer has not had yet.
        self.expected: list[Tensor] = []
        # Sum of the uncorrected outputs minus those of the reference, and values per channel in it.
        self.difference, self.count = torch.zeros_like(self.correction), 0

    @staticmethod
    def find(net: nn.Module) -> dict[str, nn.Module]:
        """Return the convolutions and linear layers."""
        return {layer.name: layer.module for layer in geometry.find(net)[0]}

    def _total(self, y: Tensor) -> Tensor:
        return y.movedim(self.channel_axis, 0).flatten(1).sum(1, dtype=torch.float64)

    def expect(self, tensor: Tensor) -> None:
        """Sum up the reference's output."""
        self.expected.append(self._total(tensor))

    def see(self, tensor: Tensor) -> Tensor | None:
        """Add an output, as it would be uncorrected; correct the layer, and this output as well."""
        before = self.correction
        positions = tensor.numel() // len(before)
        # Adding `before` back gives the sum of the uncorrected output.
        self.difference += self._total(tensor) + positions * before - self.expected.pop(0)
        self.count += positions
        self._subtract(self.shift())
        # This output still has the bias of `before`.
        more = (self.correction - before).to(tensor.dtype)
        if not more.any():
            return None
        return tensor - more.view(-1, *[1] * (-1 - self.channel_axis))

    def shift(self) -> Tensor:
        """Return the mean difference of the outputs so far, (C,)."""
        return self.difference / self.count

    def _subtract(self, shift: Tensor) -> None:
        """Set the bias to the original one minus `shift`."""
        if not shift.any():
            # A layer that had no bias has none again.
            self.module.bias, self.correction = self.original, shift
            return
        original = torch.zeros_like(shift)
        if self.original is not None:
            original = self.original.detach().double()
        bias = (original - shift).to(self.weight.dtype)
        self.module.bias = nn.Parameter(bias, requires_grad=self.weight.requires_grad)
        self.correction = original - bias.double()  # `shift`, up to rounding

    def changed(self) -> bool:
        """Return whether the bias is corrected."""
        return bool(self.correction.any())

    def undo(self) -> None:
        """Restore the bias."""
        self._subtract(torch.zeros_like(self.correction))
