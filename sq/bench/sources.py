"""Sources of a benchmark's layers: a trained network, an architecture's shapes, or one shape."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from sq.bench import features, settings
from sq.config.constraints import Count
from sq.config.instantiate import build
from sq.config.schema import nearest
from sq.errors import SqError
from sq.hessian import layer_statistics
from sq.network import geometry
from sq.runtime import torch_setup
from sq.types.images import Batch
from sq.types.problem import Layer, Model

Maps = Callable[[nn.Module, Generator], Tensor]  # maps(module, generator) -> inputs


@dataclass(frozen=True)
class Case:
    """A layer to solve; its weight and Hessian are computed on demand, one layer at a time."""

    layer: Layer
    count: int  # how many layers of the network it stands for
    # W (G, O, I) float32 and H (G, I, I) float64, undamped
    make: Callable[[], tuple[Tensor, Tensor]]


def network(
    seed: int,
    device: torch.device,
    *,
    model: str,
    dataset: str,
    calibration: str,
    layers: list[str] | None,
    batch_size: Count,
) -> list[Case]:
    """Return the layers of a trained network, with H from its calibration images.

    Parameters
    ----------
    model, dataset, calibration : choices of conf/, with settings: "subset images=64"
    layers : their names; None takes all
    batch_size : images in one forward pass

    Raises
    ------
    SqError : no such choice, setting or layer
    """
    load = build(settings.choose("model", model, seed), "model")
    load_data = build(settings.choose("dataset", dataset, seed), "dataset")
    draw = build(settings.choose("calibration", calibration, seed), "calibration")
    whole: Model = load()
    chosen = _select(whole.layers, layers, model)
    measured = replace(whole, net=whole.net.to(device), layers=chosen)

    @cache  # one pass collects the Hessians of all layers
    def hessians() -> dict[str, Tensor]:
        batch: Batch = draw(measured, load_data())
        batch = replace(batch, x=batch.x.to(device))
        statistics = layer_statistics.collect(
            measured, batch, batch_size=batch_size, positions=1.0, seed=0
        )
        return {name: layer.hessian for name, layer in statistics.layers.items()}

    def make(layer: Layer) -> tuple[Tensor, Tensor]:
        return geometry.weight(layer.module), hessians()[layer.name]

    return [Case(layer, 1, partial(make, layer)) for layer in chosen]


def shapes(
    seed: int,
    device: torch.device,
    *,
    network: str,
    layers: list[str] | None,
    tail: Count,
    inputs: Maps,
) -> list[Case]:
    """Return every distinct layer shape of an untrained timm architecture, with its count.

    Weights are heavy-tailed noise and inputs are synthetic (see `features`), so times are real and
    errors are not.

    Parameters
    ----------
    network : its name in timm; nothing is downloaded
    layers : names of shapes, each that of the first layer that has it; None takes all
    tail : degrees of freedom of the weights' Student t distribution
    inputs : draws the inputs of a layer

    Raises
    ------
    SqError : timm has no such network, or the network no such shape
    """
    torch_setup.import_torchvision()
    import timm

    if network not in timm.list_models():
        raise SqError(
            f"source.network={network}: not in timm; {nearest(network, timm.list_models())}"
        )
    with torch.device("meta"):  # shapes only: no memory, and no time for initial weights
        net = timm.create_model(network, pretrained=False)
    by_shape: dict[tuple, list[Layer]] = {}
    for layer in geometry.find(net)[0]:
        shape = (layer.kind, layer.groups, layer.outputs, layer.inputs)
        by_shape.setdefault(shape, []).append(layer)
    counts = {same[0].name: len(same) for same in by_shape.values()}
    first = [same[0] for same in by_shape.values()]
    return [
        _synthetic_case(layer, counts[layer.name], (seed, device), tail, inputs)
        for layer in _select(first, layers, network)
    ]


def synthetic(
    seed: int,
    device: torch.device,
    *,
    outputs: Count,
    inputs: Count,
    kernel: Count,
    tail: Count,
    maps: Maps,
) -> list[Case]:
    """Return one dense convolution of `outputs` x `inputs` weights, synthetic as those of `shapes`.

    Parameters
    ----------
    outputs, inputs : rows and columns of the weight; columns are channels times kernel^2
    kernel : pixels of the kernel's edge
    tail : degrees of freedom of the weights' Student t distribution
    maps : draws the inputs of the layer

    Raises
    ------
    SqError : `inputs` is no multiple of kernel^2
    """
    # Columns of a convolution's weight: channels times pixels of the kernel.
    channels, remainder = divmod(inputs, kernel**2)
    if remainder:
        raise SqError(f"source.inputs={inputs}: not a multiple of source.kernel^2 = {kernel**2}")
    with torch.device("meta"):
        module = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False)
    (layer,), _ = geometry.find(nn.ModuleDict({f"synthetic_{outputs}x{inputs}": module}))
    return [_synthetic_case(layer, 1, (seed, device), tail, maps)]


def _select(layers: list[Layer], names: list[str] | None, network: str) -> list[Layer]:
    """Return the `layers` of these names; all of them without names."""
    if names is None:
        return layers
    layer_names = {layer.name for layer in layers}
    for name in names:
        if name not in layer_names:
            raise SqError(f"source.layers: {network} has no {name}; {nearest(name, layer_names)}")
    return [layer for layer in layers if layer.name in names]


def _synthetic_case(
    layer: Layer, count: int, seeded: tuple[int, torch.device], tail: int, inputs: Maps
) -> Case:
    """Return a case of random weights and inputs for a layer whose module is on the meta device."""
    seed, device = seeded

    def make() -> tuple[Tensor, Tensor]:
        # Seeded by the layer's name: a layer is the same whichever others there are.
        digest = hashlib.sha256(f"{seed} {layer.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        module = layer.module.to_empty(device=device).eval()
        assert isinstance(module, nn.Conv2d | nn.Linear)
        weight = features.heavy_tailed(module.weight.shape, generator, tail=tail).to(device)
        geometry.set_weight(module, weight / layer.inputs**0.5)  # outputs about as large as inputs
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        x = inputs(module, generator).to(device)
        W = geometry.weight(module).clone()
        H = _hessian(replace(layer, name="0", module=module), x)
        module.to("meta")  # its memory is free again
        return W, H

    return Case(layer, count, make)


def _hessian(layer: Layer, x: Tensor) -> Tensor:
    """Return H of a layer named "0", from inputs `x`."""
    net = nn.Sequential(layer.module)
    model = Model(net, [layer], tuple(x.shape[1:]), "", prepare=_no_image)
    ids = list(map(str, range(len(x))))
    batch = Batch(x, torch.zeros(len(x), dtype=torch.long), ids)
    statistics = layer_statistics.collect(model, batch, batch_size=64, positions=1.0, seed=0)
    return statistics.layers["0"].hessian


def _no_image(image: Image.Image, resized: bool) -> Tensor:
    raise AssertionError("these inputs are synthetic: there is no image to prepare")
