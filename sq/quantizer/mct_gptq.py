"""Gradient PTQ of Sony's model-compression-toolkit (MCT), EPTQ, as an outside peer.

No other file imports MCT. Conditions of the comparison:

* Images, bits, batch, iterations and threads are those of the run. So are the measures of the
  result.
* Grids are MCT's own: symmetric, one per output channel of a weight, and one per tensor with a
power
  of two as range for activations. Its platform rounds outputs of layers (of the ReLU, if one
  follows) and of additions, the last output too. Ours rounds inputs of layers.
* MCT folds BatchNorm, so errors are reported for folded weights: `fold=true`.
* MCT's default of 100 random vectors for sample-layer attention takes longer than everything else:
  see `draws`.
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

PEER = "quantizer=peer/mct_gptq"


def quantize(
    problem: Problem, *, iterations: Whole, batch: Count, draws: Count, seed: Whole
) -> QuantizedModel:
    """Quantize the whole network by MCT's gradient PTQ, with MCT's defaults for all else.

    Parameters
    ----------
    iterations : steps of the optimizer, a whole number of passes over the calibration images; 0 is
        MCT's PTQ without gradient steps
    batch : images in a step
    draws : random vectors per image for sample-layer attention; 100 in MCT
    seed : of all random draws

    Raises
    ------
    SqError : layers have different widths, `iterations` end within a pass, BatchNorm is not folded,
        or MCT is not installed

    Source
    ------
    model-compression-toolkit 2.6
    (https://github.com/SonySemiconductorSolutions/mct-model-optimization), called and not copied;
    Gordon et al. 2023 (EPTQ), arXiv 2309.11531.
    """
    mct = _mct()
    bits = _common_width(problem.bits, "weights")
    input_bits = _common_width(problem.inputs.bits, "inputs") if problem.inputs.bits else None
    if any(
        isinstance(module, batchnorm_statistics.BATCHNORMS)
        for module in problem.model.net.modules()
    ):
        raise SqError(
            f"{PEER}: MCT folds BatchNorm, so errors must be of folded weights: set fold=true"
        )
    x = problem.batch.x
    passes, rest = divmod(iterations * batch, len(x))
    if rest or len(x) % batch:
        raise SqError(
            f"quantizer.iterations={iterations} quantizer.batch={batch}: MCT takes whole passes "
            f"over the {len(x)} calibration images, in batches of one size"
        )
    net = copied(problem.model.net)
    platform = _platform(mct.get_target_platform_capabilities(), bits, input_bits)
    cpu_start, start = time.process_time(), time.perf_counter()
    with torch.random.fork_rng(), torch.enable_grad(), _drawing(draws):
        torch.manual_seed(seed)
        mct.core.pytorch.pytorch_device_config.set_working_device(x.device.type)
        net, step_times = _run(mct, net, x, platform, passes, batch)
    times = {"solve_seconds": time.perf_counter() - start}
    if x.device.type == "cpu":
        times["solve_cpu_seconds"] = time.process_time() - cpu_start
    layers = problem.model.layers
    time_per_layer = {name: value / len(layers) for name, value in times.items()}
    quantized = {layer.name: _read(layer, problem, net, time_per_layer) for layer in layers}
    report = {
        "method": "mct_gptq",
        "version": version("model-compression-toolkit"),
        "steps": len(step_times),
        "batch": batch,
        "draws": draws,
        "cpu_seconds": time.process_time() - cpu_start,
    }
    if len(step_times) > 1:
        report["cpu_seconds_per_step"] = (step_times[-1] - step_times[0]) / (len(step_times) - 1)
    return QuantizedModel(net.eval(), quantized, report)


def _run(
    mct: Any, net: nn.Module, x: Tensor, platform: Any, passes: int, batch: int
) -> tuple[nn.Module, list[float]]:
    """Return MCT's quantized network, and the CPU time of the process at each gradient step."""
    step_times: list[float] = []

    def representative_data() -> Iterator[list[Tensor]]:
        # Copies, because networks may change their input in place.
        return ([images.clone()] for images in x.split(batch))

    if passes == 0:
        quantized, _ = mct.ptq.pytorch_post_training_quantization(
            net, representative_data, target_platform_capabilities=platform
        )
        return quantized, step_times
    config = mct.gptq.get_pytorch_gptq_config(
        passes,
        hessian_batch_size=batch,
        log_function=lambda *_: step_times.append(time.process_time()),
    )
    quantized, _ = mct.gptq.pytorch_gradient_post_training_quantization(
        net, representative_data, gptq_config=config, target_platform_capabilities=platform
    )
    return quantized, step_times


def _mct() -> Any:
    try:
        import model_compression_toolkit
    except ImportError as error:
        raise SqError(
            f"{PEER}: model-compression-toolkit cannot be imported ({error}): "
            f"{installation.command('bench')}, in an environment of its own"
        ) from error
    return model_compression_toolkit


def _common_width(bits: Mapping[str, int], kind: str) -> int:
    """Return the bit-width that all layers have."""
    widths = sorted(set(bits.values()))
    if len(widths) != 1:
        raise SqError(
            f"{PEER}: {kind} of {', '.join(map(str, widths))} bits; it takes one width for all: "
            "set ends=all, allocation=uniform and a whole number of bits"
        )
    return widths[0]


def _platform(platform: Any, bits: int, input_bits: int | None) -> Any:
    """Return MCT's default `platform` with weights of `bits` and activations of `input_bits`.

    With None, activations stay in full precision.
    """
    operators = []
    for operator in platform.operator_set:
        options = _with_widths(operator.qc_options, bits, input_bits)
        operators.append(operator.model_copy(update={"qc_options": options}))
    default = _with_widths(platform.default_qco, bits, input_bits)
    return platform.model_copy(update={"default_qco": default, "operator_set": tuple(operators)})


def _with_widths(options: Any, bits: int, input_bits: int | None) -> Any:
    """Return the quantization options of an operator with one configuration: these widths."""
    if options is None:
        return None
    config = options.base_config or options.quantization_configurations[0]
    weights = dict(config.attr_weights_configs_mapping)
    kernel = weights.get("kernel_attr")
    if kernel is not None and kernel.enable_weights_quantization:
        weights["kernel_attr"] = kernel.model_copy(update={"weights_n_bits": bits})
    changes: dict[str, Any] = {"attr_weights_configs_mapping": weights}
    if input_bits is None:
        changes["enable_activation_quantization"] = False
    else:
        changes["activation_n_bits"] = input_bits
        changes["supported_input_activation_n_bits"] = (input_bits,)
    config = config.model_copy(update=changes)
    return options.model_copy(
        update={"quantization_configurations": (config,), "base_config": config}
    )


def _drawing(draws: int) -> Any:
    """Return a context in which MCT draws `draws` vectors; MCT has no setting but a default."""
    from model_compression_toolkit.core.common.hessian.hessian_info_service import (
        HessianInfoService,
    )

    return patch.object(HessianInfoService.__init__, "__defaults__", (draws,))


def _read(
    layer: Layer, problem: Problem, net: nn.Module, times: dict[str, float]
) -> QuantizedLayer:
    """Return the codes and the grid of a layer of MCT's network, which has other module names."""
    modules = dict(net.named_modules())
    wrapper: Any = modules.get(layer.name.replace(".", "_"))
    if wrapper is None or not hasattr(wrapper, "weights_quantizers"):
        raise SqError(
            f"{PEER}: MCT has merged layer {layer.name} into another, or left it as it was"
        )
    quantizer = wrapper.weights_quantizers["weight"]
    half = 2 ** (quantizer.num_bits - 1)  # codes below zero
    threshold = torch.as_tensor(quantizer.threshold_np, dtype=torch.float32)
    threshold = threshold.reshape(layer.groups, -1, 1)
    scale = (threshold / half).to(problem.batch.x.device)
    low, high = torch.full_like(threshold, -half), torch.full_like(threshold, half - 1)
    grid = UniformGrid(scale, low.to(scale), high.to(scale), 2 * half)
    values = wrapper.get_quantized_weights()["weight"].detach()
    values = values.reshape(layer.groups, layer.outputs, layer.inputs)
    codes = grid.encode(values)
    tolerance = 1e-6 * float(threshold.max())
    if not torch.allclose(grid.decode(codes), values, rtol=1e-4, atol=tolerance):
        raise SqError(
            f"{PEER}: weights of layer {layer.name} are not those of its grid: another version?"
        )
    W = geometry.weight(layer.module)
    hessian = problem.statistics.layers[layer.name].hessian
    error = relative_error(W, grid.decode(codes), hessian)
    return QuantizedLayer(codes, grid, {"fit_seconds": 0.0, **times, "relative_error": error})
