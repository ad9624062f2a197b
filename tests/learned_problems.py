"""Small problems for learned quantizers, and the settings their tests share."""

from dataclasses import replace
from functools import partial

import torch
from cli_helpers import compose
from sensitivity_problems import FIT
from torch import nn

from sq.activation import insertion, mse
from sq.config.instantiate import build
from sq.hessian import layer_statistics
from sq.learning.reconstruction import learn
from sq.network import geometry, tracing
from sq.quantizer import layerwise
from sq.solver import rtn
from sq.types.images import Calibration
from sq.types.problem import Model, Problem

START = partial(layerwise.quantize, solve=rtn.solve, damp=0.01)
LEARN = {
    "iterations": 12,
    "batch": 8,
    "forward": "soft",
    "optimizer": "adam",
    "rates": {"rounding": 0.05, "bias": 0.0, "scale": 0.0, "input": 0.0},
    "weight": 0.01,
    "warm_up": 0.2,
    "early": True,
    "beta": [20.0, 2.0],
    "keep": "none",
    "share": 0.0,
    "precision": "float32",
}


def settings(_, **changes):
    """Return `learn` with cheap settings and these `changes`."""
    return partial(learn, **(LEARN | changes))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def residual():
    """A stem, two residual blocks and a linear layer, without BatchNorm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(inplace=True),
        Block(4),
        Block(4),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).eval()


def problem(net, images=32, bits=3, activation_bits=None, scratch=None, fit=FIT):
    """Return the problem of `net`, which takes images (2, 6, 6) or, if its first layer is linear, rows of features."""
    found, skipped = geometry.find(net)
    first = found[0].module
    shape = (first.in_features,) if isinstance(first, nn.Linear) else (2, 6, 6)
    x = torch.randn(images, *shape, generator=torch.Generator().manual_seed(0))
    return problem_of(
        Model(net, found, shape, "", None, skipped), x, bits, activation_bits, scratch, fit
    )


def problem_of(model, x, bits, activation_bits=None, scratch=None, fit=FIT):
    """Return the problem of a model with images `x`."""
    model, images, net = tracing.trace(model, x[:1]), len(x), model.net
    batch = Calibration(x, torch.zeros(images).long(), [str(i) for i in range(images)])
    measured = layer_statistics.collect(model, batch, batch_size=8, positions=1.0, seed=0)
    widths = {layer.name: bits for layer in model.layers}
    made = Problem(model, batch, measured, fit, widths, scratch=scratch)
    if activation_bits is None:
        return made
    observe = partial(insertion.observe, images=100, batch_size=8, bins=64, adds=False)
    choose = partial(mse.fit, symmetric=False, norm=2.0, steps=8)
    given = insertion.quantize(
        net, list(widths), x, bits=activation_bits, observe=observe, fit=choose
    )
    return replace(made, inputs=given, activations=given.grids())


def quantizer(name, *changes):
    """Return the quantizer that the command line gives for `name` with `changes`, with few steps of small batches."""
    cheap = ["learn.batch=8", "learn.iterations=12", "checkpoint_every=5"]
    if name == "brecq":
        cheap += ["then.batch=8", "then.iterations=6"]
    given = {word.partition("=")[0] for word in changes}
    words = [word for word in cheap if word.partition("=")[0] not in given] + list(changes)
    config, _ = compose(f"quantizer={name}", *(f"quantizer.{word}" for word in words))
    return build(config["quantizer"], "quantizer")
