"""Bytes and operations of a network at given bits, counted alike for records and for budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from sq.config.constraints import FLOAT
from sq.network import geometry
from sq.types.problem import Grid, Layer, Model, Problem


def code_bytes(layer: Layer, bits: int) -> int:
    """Return the bytes of a layer's codes."""
    return -(-layer.weights * bits // 8)  # rounded up


def code_bits(grid: Grid) -> int:
    """Return the bits of a code of `grid`: 5 for the 17 levels of POST at 4 bits, for instance."""
    return (grid.levels - 1).bit_length()


def weight_bytes(layer: Layer, grid: Grid) -> int:
    """Return the bytes of a layer's weights: its codes, and the grid's parameters in 32 bits."""
    return code_bytes(layer, code_bits(grid)) + grid.parameters() * FLOAT // 8


def bops(layer: Layer, bits: int, inputs: int) -> int:
    """Return multiply-accumulates times weight bits times input bits, for one image."""
    return layer.macs * bits * inputs


def parameter_count(net: nn.Module) -> int:
    """Return the number of stored floating-point numbers of a network; shared ones count once."""
    tensors = {id(tensor): tensor for tensor in net.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


def size_function(problem: Problem) -> Callable[[Layer, int], int]:
    """Return a function of a layer and bits that gives `weight_bytes` before anything is solved."""
    # A grid has as many levels and scales for one input as for all of them, and fitting it to one
    # input takes almost no time.
    importance = {name: values[..., :1] for name, values in problem.importance.items()}
    one_input = replace(problem, importance=importance)
    sizes: dict[tuple[str, int], int] = {}

    def size(layer: Layer, bits: int) -> int:
        key = (layer.name, bits)
        if key not in sizes:
            weight = geometry.weight(layer.module)[..., :1]
            sizes[key] = weight_bytes(layer, one_input.grid(layer.name, weight, bits))
        return sizes[key]

    return size


def full_precision_rest(model: Model, quantized: Iterable[Layer]) -> dict[str, int]:
    """Return the bytes and BOPs of what stays in full precision if `quantized` layers do not."""
    names = {layer.name for layer in quantized}
    parameters = parameter_count(model.net)
    operations = 0
    for layer in model.layers:
        if layer.name in names:
            parameters -= layer.weights
        else:
            operations += bops(layer, FLOAT, FLOAT)
    return {"bytes": parameters * FLOAT // 8, "bops": operations}
