"""What flows between the families: plain data, no behaviour beyond a few derived figures.

Axis letters, everywhere in `sq`: G groups, O outputs of a group, I inputs of a group (input
channels of the group times kernel taps), N positions (images times output pixels). Weights are (G,
O, I), inputs (G, I, N), so a layer is ``weight @ inputs`` whether dense, grouped, depthwise or
linear.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sq.types.grid_protocol import Grid
from sq.types.images import Calibration, Images, Prepare

# decode(raw) -> boxes (B, N, 4), left, top, right, bottom in pixels of the network's input, and
# scores (B, N, classes)
Decode = Callable[[Tensor], "tuple[Tensor, Tensor]"]
# of an image, its lowest and highest values: one, or one a channel
Span = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Layer:
    """A layer whose weight can be quantized: its name in the network, its module and its sizes."""

    name: str
    module: nn.Module
    kind: str  # "3x3", "1x1 grouped", "3x3 depthwise", "linear", ...
    groups: int
    outputs: int  # of one group
    inputs: int  # of one group, times kernel taps
    # output pixels of one image, all calls; 0 as long as the network has not been traced
    positions: int = 0
    # the first layer with the same input tensor, itself if none before it has it; "" until traced
    fed: str = ""

    @property
    def weights(self) -> int:
        """Return the number of weights."""
        return self.groups * self.outputs * self.inputs

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates for one image."""
        return self.weights * self.positions


@dataclass(frozen=True)
class Model:
    """A trained network, what of it can be quantized, and what it expects as input."""

    # maps a batch of images to one tensor: logits (B, K), or raw predictions (B, boxes, ...)
    net: nn.Module
    layers: list[Layer]
    input: tuple[int, ...]  # (C, H, W) of one image
    checkpoint: str  # sha256 of the weights file, in hex
    prepare: Prepare
    skipped: list[str] = field(default_factory=list)  # layers with weights that sq cannot quantize
    # by image set; see `expected_accuracy`
    expected: Mapping[str, Mapping[str, float] | None] = field(default_factory=dict)
    decode: Decode | None = None  # of a detector
    # names of the first and last layers; () takes the first and last that are called
    ends: tuple[str, ...] = ()
    # black and white as `net` takes them; by default, of standardised values
    span: Span = ((-2.0,), (2.0,))
    # names, in the order of its outputs, where the checkpoint tells them
    classes: tuple[str, ...] = ()
    # modules that are plain layers now, see `sq.network.plain_layers`
    rewritten: tuple[str, ...] = ()
    # modules that could not be made plain layers, and why
    refused: tuple[tuple[str, str], ...] = ()
    # layer and BatchNorm that is in its weight now, see `sq.network.batchnorm_folding`
    folded: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of a layer's inputs X (G, I, N): H = 2 X X^T / N, (G, I, I) float64, and N."""

    hessian: Tensor
    positions: int


@dataclass(frozen=True)
class Statistics:
    """Per-layer statistics by layer name, and the number of images they come from."""

    layers: dict[str, LayerStatistics]
    images: int

    def digest(self) -> str:
        """Return a hash of every Hessian: equal digests mean two runs solved the same problem."""
        return digest(layer.hessian for layer in self.layers.values())


# fit(W, bits) -> Grid, or fit(W, bits, h) where the grid asks for h, see `weight_importance`
Fit = Callable[..., Grid]
# solve(W, H, grid) -> codes, or codes and the grid they are of where the solver moved it
Solve = Callable[[Tensor, Tensor, Grid], "Tensor | tuple[Tensor, Grid]"]


def solution(result: Tensor | tuple[Tensor, Grid], grid: Grid) -> tuple[Tensor, Grid]:
    """Return the codes in the `result` of a solver, and their grid: `grid` unless it moved it."""
    if isinstance(result, Tensor):
        return result, grid
    return result


@dataclass(frozen=True)
class Plan:
    """What solving a layer takes.

    A solver may define ``plan(layer, element_size, *, knobs) -> Plan`` beside its `solve`.
    """

    bytes: int  # at most at a time
    operations: int  # floating-point, in all


@dataclass(frozen=True)
class Inputs:
    """Inputs of layers, and operands of additions, that can have a grid of any bit-width."""

    # of each, unless an allocation decides; {} leaves all as is
    bits: dict[str, int] = field(default_factory=dict)
    fit: Callable[[str, int], Grid] | None = None  # fit(name, bits) -> Grid

    def grid(self, name: str, bits: int) -> Grid:
        """Return the grid of `bits` for the input or operand `name`."""
        assert self.fit is not None
        return self.fit(name, bits)

    def grids(self, bits: Mapping[str, int] | None = None) -> dict[str, Grid]:
        """Return the grid of each name; `bits` take the place of its default bits."""
        widths = self.bits | dict(bits or {})
        return {name: self.grid(name, width) for name, width in widths.items()}


@dataclass(frozen=True)
class Problem:
    """All a sensitivity metric or quantizer may look at. Never changed by either."""

    model: Model
    batch: Calibration
    statistics: Statistics
    fit: Fit
    bits: dict[str, int] = field(default_factory=dict)  # by layer name; empty before the allocation
    # grids of layer inputs; none stay full precision
    activations: dict[str, Grid] = field(default_factory=dict)
    # what `activations` are chosen from, for metrics that score them
    inputs: Inputs = field(default_factory=Inputs)
    # bits of weights and inputs that are fixed, by layer name
    fixed: dict[str, int] = field(default_factory=dict)
    # h (G, O, I) of weights, if `fit` asks for it
    importance: dict[str, Tensor] = field(default_factory=dict)
    train: Images | None = None  # the training split, for what trains the network
    # a folder for checkpoints, from which long work is resumed
    scratch: str | None = None
    scratch_gib: float = 1.0  # its limit

    def grid(self, name: str, W: Tensor, bits: int) -> Grid:
        """Return the grid of `bits` for the weight W (G, O, I) of the layer `name`."""
        if name in self.importance:
            return self.fit(W, bits, self.importance[name])
        return self.fit(W, bits)


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer's codes and grid, and what choosing them cost (seconds) and left (errors)."""

    codes: Tensor  # (G, O, I) int32
    grid: Grid
    report: dict[str, Any]


@dataclass(frozen=True)
class QuantizedModel:
    """A network with grid values in place of its weights, and the codes they decode from."""

    net: nn.Module
    layers: dict[str, QuantizedLayer]
    # of how it was learned, if it was; see `sq.learning.setup`
    report: dict[str, Any] = field(default_factory=dict)
    trained: bool = False  # on labels: not to be brought back to what full precision returns

    def digest(self) -> str:
        """Return a hash of all codes: equal digests mean identical quantized weights."""
        return digest(layer.codes for layer in self.layers.values())


def digest(tensors: Iterable[Tensor]) -> str:
    """Return the sha256 over dtype, shape and bytes of `tensors`, as 16 hex digits."""
    sha = hashlib.sha256()
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous()
        content = data.flatten().view(torch.uint8).numpy().tobytes()
        sha.update(f"{data.dtype}{tuple(data.shape)}".encode() + content)
    return sha.hexdigest()[:16]
