"""What each format holds, found by trying: every kind of layer on every grid, at many widths, written and read back.

``PYTHONPATH=tests python tests/export/supported.py`` writes the table in sq/export/SUPPORTED.md;
tests try every cell.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import grids
import torch
from timm.layers import Conv2dSame
from torch import nn

from sq.activation import insertion
from sq.errors import SqError
from sq.export import container, onnx_export, onnx_session, packed
from sq.export.onnx_session import MIN_SNR, MIN_SNR_ROUNDED, snr
from sq.export.tensor_codec import Reader, Writer
from sq.grid.level_grid import LevelGrid
from sq.grid.uniform_grid import per_tensor
from sq.learning.adaptive_step import Adapter, AdaptiveGrid
from sq.network import geometry, residual_adds
from sq.types.problem import Model, QuantizedLayer

FILE = Path(packed.__file__).with_name("SUPPORTED.md")
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16)


class Twice(nn.Module):
    """One layer, called twice."""

    def __init__(self):
        super().__init__()
        self.own = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.own(self.own(x).relu())


class Sum(nn.Module):
    """An addition of two feature maps."""

    def __init__(self):
        super().__init__()
        self.own = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.own(x) + x


def shared():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    net[2].weight = net[0].weight
    return net


IMAGE = (4, 6, 6)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution 3x3": (lambda: nn.Conv2d(4, 6, 3), IMAGE),
    "1x1": (lambda: nn.Conv2d(4, 6, 1), IMAGE),
    "3x3 grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), IMAGE),
    "3x3 depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), IMAGE),
    "3x3 of stride 2, dilated": (
        lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2),
        IMAGE,
    ),
    "3x3, padding by TensorFlow's SAME": (lambda: Conv2dSame(4, 6, 3, stride=2), IMAGE),
    "3x3, padding by reflection": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        IMAGE,
    ),
    "1-D convolution": (lambda: nn.Conv1d(4, 6, 3), (4, 12)),
    "linear": (lambda: nn.Linear(12, 5), (12,)),
    "linear, of tokens": (lambda: nn.Linear(12, 5), (7, 12)),
    "a layer called twice": (Twice, IMAGE),
    "a weight that two layers share": (shared, IMAGE),
}
GRIDS = {
    "uniform, affine": lambda W, bits: grids.fit("uniform", range="minmax")(W, bits),
    "uniform, symmetric": lambda W, bits: grids.fit("uniform", range="minmax", symmetric=True)(
        W, bits
    ),
    **{name: lambda W, bits, name=name: grids.fit(name)(W, bits) for name in grids.LEVELS},
}
INPUTS = {
    "inputs, affine": lambda bits: per_tensor(-1.0, 2.0, bits, False),
    "inputs, symmetric": lambda bits: per_tensor(-2.0, 2.0, bits, True),
    "inputs, of a table of levels": lambda bits: LevelGrid(
        torch.tensor(0.1), torch.arange(2.0**bits)
    ),
    "inputs, steps that adapt": lambda bits: AdaptiveGrid(
        per_tensor(-1.0, 2.0, bits, False), Adapter(4, 2, 1)
    ),
    "operands of additions": lambda bits: per_tensor(-1.0, 2.0, bits, False),
}
FORMATS = ("packed", "onnx")


def net_of(make):
    torch.manual_seed(0)
    own = nn.Sequential()
    own.add_module("net", make())
    return own.eval().requires_grad_(False)


class Trial:
    """A small network and what it takes to try formats on it."""

    def __init__(self, make, shape):
        self.net = net_of(make)
        self.x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
        found, _ = geometry.find(self.net)
        self.model = Model(self.net, found, shape, "", None)
        self.frame = None

    def try_weights(self, format, fit, bits):
        """Return whether a format holds the network with its weights on a grid of these bits."""
        try:
            made = {}
            for layer in self.model.layers:
                W = geometry.weight(layer.module)
                grid = fit(W, bits)
                made[layer.name] = QuantizedLayer(grid.encode(W), grid, {})
        except SqError:  # the grid itself has no such width
            return False
        return self._holds(format, made, {})

    def try_inputs(self, format, grid, name, bits):
        """Return whether a format holds the network with a grid of these bits on what goes by `name`."""
        try:
            return self._holds(format, {}, {name: grid(bits)})
        except SqError:
            return False

    def _holds(self, format, made, fed):
        net = copy.deepcopy(self.net)
        for name, own in made.items():
            geometry.set_weight(net.get_submodule(name), own.grid.decode(own.codes))
        insertion.attach(net, fed)
        wanted = net(self.x)
        try:
            got = getattr(self, f"_{format}")(net, made)
        except SqError as error:
            if "use export=packed" not in str(error):  # a refusal names the format that holds it
                raise
            return False
        if format == "packed":
            assert torch.equal(got, wanted), "packed files are exact"
        least = MIN_SNR_ROUNDED if fed else MIN_SNR
        assert snr(wanted, got) > least, "a format that holds it computes it"
        return True

    def _packed(self, net, made):
        out = Writer()
        held = packed.put(out, net, made)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "network"
            container.write(file, held, out.tensors())
            layout, tensors = container.read(file)
        again = copy.deepcopy(self.net)
        packed.fill(again, layout, Reader(tensors))
        return again(self.x)

    def _onnx(self, net, made):
        names = {layer.name for layer in self.model.layers}
        if self.frame is None:
            self.frame = onnx_export.frame(self.net, self.model, self.model.layers, self.x)
        weights = {name: (own.codes, own.grid) for name, own in made.items()}
        grids_of = onnx_export.Parts(weights, insertion.attached(net), residual_adds.attached(net))
        model = self.frame.quantized(grids_of)
        for name, own in (
            onnx_session.weights_in(model, made, self.x).items() if names <= {*made} else ()
        ):
            assert torch.equal(own, onnx_export.weight(net, name)), (
                "weights of the file are ours, bit by bit"
            )
        return onnx_session.Session(model.SerializeToString())(self.x)


def widths(works):
    """Return the widths that work, in words."""
    runs = []
    for k, width in enumerate(WIDTHS):
        if works(width):
            runs.append([width]) if k == 0 or not runs or runs[-1][-1] != WIDTHS[k - 1] else runs[
                -1
            ].append(width)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "no"


def weights_row(layer, format):
    """Return a line of the table of weights: widths by grid."""
    trial = Trial(*LAYERS[layer])
    return [
        widths(lambda bits, fit=fit: trial.try_weights(format, fit, bits)) for fit in GRIDS.values()
    ]


def inputs_row(kind):
    """Return a line of the table of inputs: widths by format."""
    trial = (
        Trial(Sum, IMAGE)
        if kind == "operands of additions"
        else Trial(lambda: nn.Conv2d(4, 6, 3), IMAGE)
    )
    name = "add.0.left" if kind == "operands of additions" else "net"
    return [
        widths(lambda bits, f=f: trial.try_inputs(f, INPUTS[kind], name, bits)) for f in FORMATS
    ]


def lines(head, rows):
    every = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in every)


def text():
    """Return what SUPPORTED.md says."""
    parts = [
        "# What files hold",
        "Bits that were written, read back and compared, of 1 to 9, 12 and 16: outputs of packed files are equal bit "
        "by bit, weights of ONNX files too. Where a run asks for what its format does not hold, it says so before or "
        "at the export, and names the format that does. Written by "
        "`PYTHONPATH=tests python tests/export/supported.py`; tests try every cell.",
    ]
    for format in FORMATS:
        rows = [[layer, *weights_row(layer, format)] for layer in LAYERS]
        parts += [f"## Weights, `export={format}`", lines(["layer", *GRIDS], rows)]
    rows = [[kind, *inputs_row(kind)] for kind in INPUTS]
    parts += ["## What layers are fed", lines(["grid", *(f"`export={f}`" for f in FORMATS)], rows)]
    parts += [
        "Layers of other kinds (transposed convolutions, embeddings, attention's joint projections, ...) stay in "
        "full precision, in the network and in its files."
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
