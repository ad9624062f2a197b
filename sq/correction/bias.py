"""Bias correction: take off the mean shift that quantization causes in each layer's output.

Quantized weights W + E return W x + E x in place of W x. The mean of E x over images and positions,
one number per output channel, acts as a bias that nobody asked for; measured as the mean difference
of the layer's output from full precision's on the same images, it is taken off the bias the layer
has, or is given:

    b -= mean(y_q) - mean(y_r)

What is left of the layer's error then has mean 0, and its square has fallen by that of the shift.
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
    """Correct the biases of `net` in place, layer after layer; undo it all if that does not help.

    Parameters
    ----------
    net : the quantized network, changed in place; with BatchNorm layers or after folding them
    reference : the full-precision network, of the same structure
    batch : calibration images
    images : of the batch, of which the first so many are used; all, if there are fewer
    batch_size : images in one forward pass, None for what suits their size; layers are corrected by
    the first of
        them already

    Returns
    -------
    layers : convolutions and linear layers seen; kept : corrected ones, 0 if all corrections
    together do not lower
        the error of the outputs on those images; left_alone : layers not called exactly once a
        pass; error_before,
        error_after : relative squared error of the outputs, on those images

    Source
    ------
    Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv
    1906.04721, section 4.2, with means over images as in appendix D. Undoing what does not help is
    ours.
    """
    return layer_by_layer.repair(net, reference, batch.x[:images], Bias, batch_size=batch_size)


class Bias(layer_by_layer.Repair):
    """The correction of one layer's bias."""

    watching = staticmethod(hooks.returning)

    def __init__(self, ours: nn.Module, theirs: nn.Module):
        own, plain = ours.weight, ours.bias
        assert isinstance(own, Tensor)
        assert plain is None or isinstance(plain, nn.Parameter)
        self.module, self.weight, self.plain = ours, own, plain
        # of the channels in an output: the last of a linear layer, else before the positions
        self.axis = 1 - own.ndim
        # what is off the bias now
        self.off = torch.zeros(len(own), dtype=torch.float64, device=own.device)
        self.expected: list[Tensor] = []  # sums of the reference's outputs, of batches not yet seen
        # of ours, as they are uncorrected, less theirs
        self.sum, self.count = torch.zeros_like(self.off), 0

    @staticmethod
    def find(net: nn.Module) -> dict[str, nn.Module]:
        """Return the convolutions and linear layers."""
        return {layer.name: layer.module for layer in geometry.find(net)[0]}

    def _total(self, y: Tensor) -> Tensor:
        return y.movedim(self.axis, 0).flatten(1).sum(1, dtype=torch.float64)

    def expect(self, tensor: Tensor) -> None:
        """Sum up the reference's output."""
        self.expected.append(self._total(tensor))

    def see(self, tensor: Tensor) -> Tensor | None:
        """Add the output as it is without a correction; correct the layer, and this very output."""
        positions, before = tensor.numel() // len(self.off), self.off
        self.sum += self._total(tensor) + positions * before - self.expected.pop(0)
        self.count += positions
        self._take_off(self.shift())
        more = (self.off - before).to(tensor.dtype)
        return tensor - more.view(-1, *[1] * (-1 - self.axis)) if more.any() else None

    def shift(self) -> Tensor:
        """Return the mean difference of the outputs so far, (C,)."""
        return self.sum / self.count

    def _take_off(self, shift: Tensor) -> None:
        if not shift.any():
            self.module.bias, self.off = self.plain, shift  # a layer without a bias gets none
            return
        plain = torch.zeros_like(shift) if self.plain is None else self.plain.detach().double()
        bias = (plain - shift).to(self.weight.dtype)
        self.module.bias = nn.Parameter(bias, requires_grad=self.weight.requires_grad)
        self.off = plain - bias.double()  # `shift`, but for rounding

    def changed(self) -> bool:
        """Return whether anything is off the bias."""
        return bool(self.off.any())

    def undo(self) -> None:
        """Restore the bias."""
        self._take_off(torch.zeros_like(self.off))
