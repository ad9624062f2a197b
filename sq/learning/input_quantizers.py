"""The input quantizers of all layers of a problem, with or without adaptive steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sq.activation import insertion
from sq.errors import SqError
from sq.grid.uniform_grid import UniformGrid
from sq.learning.adaptive_step import Adapter, AdaptiveGrid, AdaptiveInputQuantizer
from sq.learning.learned_step import InputQuantizer, check_inputs
from sq.network import geometry, hooks
from sq.network.forward import forward
from sq.types.problem import Problem

BETA_IMAGES = 256  # images at most, for the statistics of beta in the record


def check(problem: Problem, adaptive: bool) -> dict[str, UniformGrid]:
    """Return the grids of layer inputs, after a check that their steps can be learned.

    Raises
    ------
    SqError : steps should be `adaptive`, but inputs are in full precision; see
        `sq.learning.learned_step.check_inputs`
    """
    if adaptive and not problem.activations:
        raise SqError(
            "adaptive steps need quantized inputs, and here inputs stay in full precision: set "
            "activation=mse, or choose a quantizer without adapters"
        )
    return check_inputs(problem.activations)


def build(problem: Problem, seed: int | None, static: bool = False) -> dict[str, InputQuantizer]:
    """Return a quantizer for each input that has a grid, by layer name.

    Parameters
    ----------
    problem : one image is passed through its network, to see the number of channels
    seed : of adapters; None builds quantizers without adapters
    static : see `Adapter`

    Raises
    ------
    SqError : see `check`
    """
    grids = check(problem, seed is not None)
    if seed is None:
        return {name: InputQuantizer(grid) for name, grid in grids.items()}
    modules = {name: problem.model.net.get_submodule(name) for name in grids}
    channels = _channels(problem, modules)
    quantizers: dict[str, InputQuantizer] = {}
    for number, (name, grid) in enumerate(grids.items()):
        axis = geometry.channel_axis(modules[name])
        adapter = Adapter(channels[name], seed + number, axis, static)
        quantizers[name] = AdaptiveInputQuantizer(grid, adapter)
    return quantizers


def _channels(problem: Problem, modules: dict[str, nn.Module]) -> dict[str, int]:
    """Return the number of input channels of each of `modules`, seen in one pass."""
    channels: dict[str, int] = {}

    def count(name: str, module: nn.Module, x: Tensor) -> None:
        channels[name] = geometry.channels(module, x)

    with torch.no_grad(), hooks.feeding(modules, count):
        forward(problem.model.net, problem.batch.x[:1])
    for name in modules:
        if name not in channels:
            raise SqError(
                f"layer {name} is not called for every image, but adaptive steps need layers that "
                "are: choose a quantizer without adapters"
            )
    return channels


@torch.no_grad()
def beta_statistics(net: nn.Module, x: Tensor) -> dict[str, list[float]]:
    """Return mean and standard deviation of beta over the first images of `x`, by layer."""
    attached: dict[str, object] = {**insertion.attached(net)}
    grids = {name: grid for name, grid in attached.items() if isinstance(grid, AdaptiveGrid)}
    if not grids:
        return {}
    statistics: dict[str, list[float]] = {}

    def measure(name: str, module: nn.Module, inputs: Tensor) -> None:
        beta = grids[name].adapter(inputs)
        statistics[name] = [float(beta.mean()), float(beta.std(correction=0))]

    modules = {name: net.get_submodule(name) for name in grids}
    with hooks.feeding(modules, measure, first=True):
        forward(net, x[:BETA_IMAGES])
    return statistics
