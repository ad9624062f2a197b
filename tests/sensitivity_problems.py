"""Small networks with everything that makes one layer at a time hard, and problems of them."""

from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from sq.activation import insertion, mse
from sq.grid import uniform
from sq.hessian import layer_statistics
from sq.network import geometry, tracing
from sq.types.images import Calibration
from sq.types.problem import Model, Problem

FIT = partial(
    uniform.fit, symmetric=False, range="minmax", norm=2.0, steps=2, shrink=0.5, hessian=None
)


class Block(nn.Module):
    """A residual block that works in place, and calls one of its layers twice."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(
            width, width, 3, padding=1, groups=2
        )  # its bias keeps sums off zero, where ReLU has no slope

    def forward(self, x):
        y = self.act(self.norm(self.first(x)))
        y = self.second(input=self.second(y))
        y += x
        return self.act(y)


class Tricky(nn.Module):
    """Overwritten outputs, a layer called twice, a module used in two places, inputs by name."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.again = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.again(self.act(self.stem(x)))  # the stem's output is overwritten
        y = F.relu_(self.again(self.blocks(y)))
        return self.head(y.mean((2, 3)))


def tricky(seed=0):
    torch.manual_seed(seed)
    net = Tricky().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net


def problem(net, x, y, bits=None):
    """Return the problem of `net` on images `x` with labels `y`; inputs have grids of `bits` where that is given."""
    found, skipped = geometry.find(net)
    model = tracing.trace(Model(net, found, tuple(x.shape[1:]), "", None, skipped), x[:1])
    batch = Calibration(x, y, [str(i) for i in range(len(x))])
    made = Problem(
        model,
        batch,
        layer_statistics.collect(model, batch, batch_size=4, positions=1.0, seed=0),
        FIT,
    )
    if bits is None:
        return made
    names = [layer.name for layer in model.layers]
    observe = partial(insertion.observe, images=100, batch_size=None, bins=64, adds=False)
    fit = partial(mse.fit, symmetric=False, norm=2.0, steps=8)
    return replace(
        made, inputs=insertion.quantize(net, names, x, bits=bits, observe=observe, fit=fit)
    )


def images(count, seed=1):
    return torch.randn(count, 2, 7, 7, generator=torch.Generator().manual_seed(seed))


def labels(count, classes=3):
    return torch.arange(count) % classes
