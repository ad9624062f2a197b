"""The quantizers of what layers are fed, of a whole problem: with steps that adapt to the sample, or without."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.activation import insertion
from sq.errors import SqError
from sq.grid.uniform_grid import UniformGrid
from sq.learning.adaptive_step import Adapter, AdaptiveGrid, AdaptiveInput
from sq.learning.learned_step import Input, check_inputs
from sq.network import geometry, hooks
from sq.network.forward import forward
from sq.types.problem import Problem

SEEN = 256  # images at most, whose steps are told


def check(problem: Problem, adapts: bool) -> dict[str, UniformGrid]:
    """Return the grids of inputs, if they can be learned: their steps, or what `adapts` them to the sample.

    Raises
    ------
    SqError : inputs are in full precision, and steps are to adapt; see
    `sq.learning.learned_step.check_inputs`
    """
    if adapts and not problem.activations:
        raise SqError(
            "adaptive steps are of inputs, which stay in full precision: set activation=mse, or choose a quantizer "
            "without adapters"
        )
    return check_inputs(problem.activations)


def inputs(problem: Problem, seed: int | None, static: bool = False) -> dict[str, Input]:
    """Return a quantizer of each input that has a grid, by layer name.

    Parameters
    ----------
    problem : one image is passed through its network, to see the channels
    seed : of adapters; None has none, and steps are one number
    static : see `Adapter`

    Raises
    ------
    SqError : see `check`
    """
    grids = check(problem, seed is not None)
    if seed is None:
        return {name: Input(grid) for name, grid in grids.items()}
    modules = {name: problem.model.net.get_submodule(name) for name in grids}
    widths: dict[str, int] = {}

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        widths[name] = geometry.channels(module, x)

    with torch.no_grad(), hooks.feeding(modules, see):
        forward(problem.model.net, problem.batch.x[:1])
    if missing := [name for name in modules if name not in widths]:
        raise SqError(
            f"layer {missing[0]} is not called by every image, and steps that adapt to the sample are of layers that "
            "are: choose a quantizer without adapters"
        )
    return {
        name: AdaptiveInput(
            grid, Adapter(widths[name], seed + i, geometry.channel_axis(modules[name]), static)
        )
        for i, (name, grid) in enumerate(grids.items())
    }


@torch.no_grad()
def betas(net: nn.Module, x: Tensor) -> dict[str, list[float]]:
    """Return mean and standard deviation of beta over the first images of `x` (B, C, H, W), for each adapter."""
    every: dict[str, object] = {**insertion.attached(net)}
    grids = {name: grid for name, grid in every.items() if isinstance(grid, AdaptiveGrid)}
    found: dict[str, list[float]] = {}

    def see(name: str, module: nn.Module, fed: Tensor) -> None:
        beta = grids[name].adapter(fed)
        found[name] = [float(beta.mean()), float(beta.std(correction=0))]

    if grids:
        with hooks.feeding({name: net.get_submodule(name) for name in grids}, see, first=True):
            forward(net, x[:SEEN])
    return found
