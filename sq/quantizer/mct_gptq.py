"""Gradient PTQ as Sony's model-compression-toolkit (MCT) has it, EPTQ: an outside peer. The only file that imports it.

Fairness, in both directions:

* Images, bits, batch, iterations and threads are those of the run; so are the measures of what
comes out.
* Grids are MCT's own: symmetric for each output channel of a weight, and per tensor, with a power
of two as range, of
  what its platform rounds: outputs of layers (of ReLU, where one follows) and of additions, the
  last output too. Ours rounds inputs of layers.
* BatchNorm is folded by MCT, so `fold=true` makes its weights those that errors are told of.
* MCT's default of 100 random vectors for sample-layer attention takes longer than everything else:
`draws`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from sq.config.constraints import Count, Whole
from sq.core import installation
from sq.errors import SqError
from sq.grid.uniform_grid import UniformGrid
from sq.hessian.layer_statistics import relative_error
from sq.network import batchnorm_statistics, geometry
from sq.network.copies import copied
from sq.types.problem import Layer, Problem, QuantizedLayer, QuantizedModel


def quantize(
    problem: Problem, *, iterations: Whole, batch: Count, draws: Count, seed: Whole
) -> QuantizedModel:
    """Quantize the whole network by MCT's gradient PTQ, with its own defaults but for what is given here.

    Parameters
    ----------
    iterations : steps of its optimiser, a whole number of passes over the calibration images; 0 is
    its PTQ without
    batch : images in a step
    draws : random vectors for each image, of sample-layer attention; 100 in MCT
    seed : of all it draws

    Raises
    ------
    SqError : layers of different widths, `iterations` that end within a pass, BatchNorm that has
    not been folded, or
        MCT is not installed

    Source
    ------
    model-compression-toolkit 2.6
    (https://github.com/SonySemiconductorSolutions/mct-model-optimization), called and not copied;
    Gordon et al. 2023 (EPTQ), arXiv 2309.11531.
    """
    mct = _mct()
    bits, wide = (
        _one(problem.bits, "weights"),
        _one(problem.inputs.bits, "inputs") if problem.inputs.bits else None,
    )
    if any(
        isinstance(module, batchnorm_statistics.BATCHNORMS)
        for module in problem.model.net.modules()
    ):
        raise SqError(
            "quantizer=peer/mct_gptq: MCT folds BatchNorm, so errors must be of folded weights: set fold=true"
        )
    x = problem.batch.x
    passes, rest = divmod(iterations * batch, len(x))
    if rest or len(x) % batch:
        raise SqError(
            f"quantizer.iterations={iterations} quantizer.batch={batch}: MCT takes whole passes over the {len(x)} "
            "calibration images, in batches of one size"
        )
    marks: list[float] = []

    def representative() -> Iterator[list[Tensor]]:
        return ([part.clone()] for part in x.split(batch))  # networks may change them in place

    given = (copied(problem.model.net), representative)
    platform = _platform(mct.get_target_platform_capabilities(), bits, wide)
    start, wall = time.process_time(), time.perf_counter()
    with torch.random.fork_rng(), torch.enable_grad(), _drawing(draws):
        torch.manual_seed(seed)
        mct.core.pytorch.pytorch_device_config.set_working_device(x.device.type)
        if passes:
            config = mct.gptq.get_pytorch_gptq_config(
                passes,
                hessian_batch_size=batch,
                log_function=lambda *_: marks.append(time.process_time()),
            )
            learn = mct.gptq.pytorch_gradient_post_training_quantization
            net, _ = learn(*given, gptq_config=config, target_platform_capabilities=platform)
        else:
            net, _ = mct.ptq.pytorch_post_training_quantization(
                *given, target_platform_capabilities=platform
            )
    taken = {"solve_seconds": time.perf_counter() - wall}
    if x.device.type == "cpu":
        taken["solve_cpu_seconds"] = time.process_time() - start
    shares = {name: value / len(problem.model.layers) for name, value in taken.items()}
    done = {layer.name: _read(layer, problem, net, shares) for layer in problem.model.layers}
    report = {
        "method": "mct_gptq",
        "version": version("model-compression-toolkit"),
        "steps": len(marks),
    }
    report |= {"batch": batch, "draws": draws, "cpu_seconds": time.process_time() - start}
    if len(marks) > 1:
        report["cpu_seconds_per_step"] = (marks[-1] - marks[0]) / (len(marks) - 1)
    return QuantizedModel(net.eval(), done, report)


def _mct() -> Any:
    try:
        import model_compression_toolkit
    except ImportError as error:
        raise SqError(
            "quantizer=peer/mct_gptq: model-compression-toolkit cannot be imported "
            f"({error}): {installation.command('bench')}, in an environment of its own"
        ) from error
    return model_compression_toolkit


def _one(bits: Mapping[str, int], what: str) -> int:
    """Return the width that all have."""
    if len(widths := set(bits.values())) != 1:
        raise SqError(
            f"quantizer=peer/mct_gptq: {what} of {', '.join(map(str, sorted(widths)))} bits; it takes one width for "
            "all: set ends=all, allocation=uniform and a whole number of bits"
        )
    return widths.pop()


def _platform(own: Any, bits: int, wide: int | None) -> Any:
    """Return MCT's default platform with weights of `bits` and activations of `wide`; None leaves those as they are."""

    def narrowed(config: Any) -> Any:
        weights = dict(config.attr_weights_configs_mapping)
        if (
            kernel := weights.get("kernel_attr")
        ) is not None and kernel.enable_weights_quantization:
            weights["kernel_attr"] = kernel.model_copy(update={"weights_n_bits": bits})
        changed: dict[str, Any] = {"attr_weights_configs_mapping": weights}
        if wide is None:
            changed["enable_activation_quantization"] = False
        else:
            changed |= {"activation_n_bits": wide, "supported_input_activation_n_bits": (wide,)}
        return config.model_copy(update=changed)

    def one(options: Any) -> Any:
        if options is None:
            return None
        config = narrowed(options.base_config or options.quantization_configurations[0])
        return options.model_copy(
            update={"quantization_configurations": (config,), "base_config": config}
        )

    operators = tuple(
        known.model_copy(update={"qc_options": one(known.qc_options)}) for known in own.operator_set
    )
    return own.model_copy(update={"default_qco": one(own.default_qco), "operator_set": operators})


def _drawing(draws: int) -> Any:
    """Return a context in which MCT takes so many vectors: it has no setting for that, only a default."""
    from model_compression_toolkit.core.common.hessian.hessian_info_service import (
        HessianInfoService,
    )

    return patch.object(HessianInfoService.__init__, "__defaults__", (draws,))


def _read(
    layer: Layer, problem: Problem, net: nn.Module, taken: dict[str, float]
) -> QuantizedLayer:
    """Return the codes and the grid of a layer of MCT's network, which has names of its own."""
    own = layer.name.replace(".", "_")
    found = dict(net.named_modules())
    wrapper: Any = found.get(own)
    if wrapper is None or not hasattr(wrapper, "weights_quantizers"):
        raise SqError(
            f"quantizer=peer/mct_gptq: MCT has merged layer {layer.name} into another, or left it as it was"
        )
    quantizer = wrapper.weights_quantizers["weight"]
    half = 2 ** (quantizer.num_bits - 1)
    shape = (layer.groups, layer.outputs, layer.inputs)
    reach = torch.as_tensor(quantizer.threshold_np, dtype=torch.float32).reshape(
        layer.groups, -1, 1
    )
    ends = torch.full_like(reach, -half), torch.full_like(reach, half - 1)
    scale = (reach / half).to(problem.batch.x.device)
    grid = UniformGrid(scale, ends[0].to(scale), ends[1].to(scale), 2 * half)
    values = wrapper.get_quantized_weights()["weight"].detach().reshape(shape)
    codes = grid.encode(values)
    if not torch.allclose(grid.decode(codes), values, rtol=1e-4, atol=1e-6 * float(reach.max())):
        raise SqError(
            f"quantizer=peer/mct_gptq: weights of layer {layer.name} are not those of its grid: another version?"
        )
    W, hessian = geometry.weight(layer.module), problem.statistics.layers[layer.name].hessian
    error = relative_error(W, grid.decode(codes), hessian)
    return QuantizedLayer(codes, grid, {"fit_seconds": 0.0, **taken, "relative_error": error})
