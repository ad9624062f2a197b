"""Where a benchmark's layers come from: a network and its images, an architecture's shapes, or one shape."""

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
    """A layer to solve. Weight and Hessian are made when they are wanted, so that one layer is held at a time."""

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
    load, data, draw = (
        build(settings.choose(family, words, seed), family)
        for family, words in (("model", model), ("dataset", dataset), ("calibration", calibration))
    )
    own: Model = load()
    own = replace(own, net=own.net.to(device), layers=_named(own.layers, layers, model))

    @cache
    def collected() -> dict[str, Tensor]:
        batch: Batch = draw(own, data())
        found = layer_statistics.collect(
            own, replace(batch, x=batch.x.to(device)), batch_size=batch_size, positions=1.0, seed=0
        )
        return {name: layer.hessian for name, layer in found.layers.items()}

    def make(layer: Layer) -> tuple[Tensor, Tensor]:
        return geometry.weight(layer.module), collected()[layer.name]

    return [Case(layer, 1, partial(make, layer)) for layer in own.layers]


def shapes(
    seed: int,
    device: torch.device,
    *,
    network: str,
    layers: list[str] | None,
    tail: Count,
    inputs: Maps,
) -> list[Case]:
    """Return every distinct layer shape of a timm architecture, untrained, with how many layers have it.

    Weights are heavy-tailed noise and inputs made up (see `features`), so times are real and errors
    are not.

    Parameters
    ----------
    network : its name in timm; nothing is downloaded
    layers : names of shapes (of the first layer that has it); None takes all
    tail : degrees of freedom of the weights' Student t distribution
    inputs : makes the inputs of a layer up

    Raises
    ------
    SqError : timm has no such network, or it no such shape
    """
    torch_setup.import_torchvision()
    import timm

    if network not in timm.list_models():
        raise SqError(
            f"source.network={network}: not in timm; {nearest(network, timm.list_models())}"
        )
    alike: dict[tuple, list[Layer]] = {}  # by shape
    with torch.device("meta"):  # shapes only: no memory, and no time for initial weights
        net = timm.create_model(network, pretrained=False)
    for layer in geometry.find(net)[0]:
        alike.setdefault((layer.kind, layer.groups, layer.outputs, layer.inputs), []).append(layer)
    first = [same[0] for same in alike.values()]
    chosen = {layer.name for layer in _named(first, layers, network)}
    return [
        _made_up(same[0], len(same), (seed, device), tail, inputs)
        for same in alike.values()
        if same[0].name in chosen
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
    """Return one dense convolution of `outputs` x `inputs` weights, made up like those of `shapes`.

    Parameters
    ----------
    outputs, inputs : rows and columns of the weight; columns are channels times kernel^2
    kernel : pixels of the kernel's edge
    tail : degrees of freedom of the weights' Student t distribution
    maps : makes the inputs of the layer up

    Raises
    ------
    SqError : `inputs` is no multiple of kernel^2
    """
    channels, rest = divmod(inputs, kernel**2)
    if rest:
        raise SqError(f"source.inputs={inputs}: not a multiple of source.kernel^2 = {kernel**2}")
    with torch.device("meta"):
        module = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False)
    (layer,), _ = geometry.find(nn.ModuleDict({f"synthetic_{outputs}x{inputs}": module}))
    return [_made_up(layer, 1, (seed, device), tail, maps)]


def _named(found: list[Layer], names: list[str] | None, network: str) -> list[Layer]:
    known = [layer.name for layer in found]
    for name in names or ():
        if name not in known:
            raise SqError(f"source.layers: {network} has no {name}; {nearest(name, known)}")
    return [layer for layer in found if names is None or layer.name in names]


def _made_up(
    layer: Layer, count: int, seeded: tuple[int, torch.device], tail: int, inputs: Maps
) -> Case:
    seed, device = seeded

    def make() -> tuple[Tensor, Tensor]:
        # Of the layer's own name: a layer is the same whichever others there are.
        own = int.from_bytes(hashlib.sha256(f"{seed} {layer.name}".encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(own)
        module = layer.module.to_empty(device=device).eval()
        assert isinstance(module, nn.Conv2d | nn.Linear)
        weight = features.heavy_tailed(module.weight.shape, generator, tail=tail).to(device)
        geometry.set_weight(module, weight / layer.inputs**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        x = inputs(module, generator).to(device)
        alone = [replace(layer, name="0", module=module)]
        model = Model(nn.Sequential(module), alone, tuple(x.shape[1:]), "", prepare=_unused)
        batch = Batch(x, torch.zeros(len(x), dtype=torch.long), [str(i) for i in range(len(x))])
        W = geometry.weight(module).clone()
        H = (
            layer_statistics.collect(model, batch, batch_size=64, positions=1.0, seed=0)
            .layers["0"]
            .hessian
        )
        module.to("meta")
        return W, H

    return Case(layer, count, make)


def _unused(image: Image.Image, resized: bool) -> Tensor:
    raise AssertionError("these inputs are made up: there is no image to prepare")
