"""A network as one file of codes in their true bits, scales, and all else it computes with; and the way back.

`sq.load` builds the network from its config, without its checkpoint, and gives it what the file
holds: its outputs are those that were measured, bit by bit, on the same machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sq.activation import insertion
from sq.config import data_paths
from sq.config.instantiate import build
from sq.core import plugins
from sq.errors import SqError, one_line
from sq.export import container
from sq.export.finished_run import Finished
from sq.export.tensor_codec import Reader, Words, Writer
from sq.network import batchnorm_folding, copies, geometry, plain_layers, residual_adds
from sq.network.forward import forward
from sq.network.resource_counts import code_bits
from sq.records import migrations, record
from sq.runtime import batching
from sq.types.problem import QuantizedLayer

SUFFIX = "sq.safetensors"
# would read other files
FOREIGN = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


def write(done: Finished) -> dict[str, Any]:
    """Write the network of a run, read it back, and see that it is the one that was measured.

    Returns
    -------
    the file's name under `outputs`, its bytes, and the figures of what was read back

    Raises
    ------
    SqError : what the file cannot hold, named; the disk is full; what is read back is not what was
    written
    """
    file, out = done.file(SUFFIX), Writer()
    named = {layer.name: done.quantized.layers[layer.name] for layer in done.problem.model.layers}
    held = put(out, done.quantized.net, named)
    config = {name: value for name, value in done.config.items() if name not in record.BOOKKEEPING}
    whole = {
        "rewritten": list(done.whole.rewritten),
        "folded": [list(pair) for pair in done.whole.folded],
    }
    layout = {"key": record.key(done.config), "config": config, **whole, **held}
    with done.written(file) as part:
        container.write(part, layout, out.tensors())
        return {"format": "packed", "file": done.name(file)} | _verify(done, part)


def put(out: Writer, net: nn.Module, quantized: dict[str, QuantizedLayer]) -> Words:
    """Put all that a network with `quantized` layers computes with; return where it is, for `fill`.

    Raises
    ------
    SqError : what the file cannot hold, named
    """
    weights: list[Words] = []
    for name, own in quantized.items():
        codes = out.put_codes(own.codes, code_bits(own.grid))
        weights.append({"layer": name, "codes": codes, "grid": out.put_grid(own.grid, name)})
    fed = insertion.attached(net) | residual_adds.attached(net)
    inputs = [{"name": name, "grid": out.put_grid(grid, name)} for name, grid in fed.items()]
    state = [
        {"name": name, **out.put(own, name)} for name, own in _others(net, list(quantized)).items()
    ]
    return {"weights": weights, "inputs": inputs, "state": state}


def load(file: Path, packages: Sequence[str] = ()) -> nn.Module:
    """Return the network in a file that `write` left, in eval mode, on the CPU.

    Parameters
    ----------
    packages : whose code the file may name; see `sq.core.plugins`

    Raises
    ------
    SqError : the file is missing, damaged or of another version; its network cannot be built here,
    or is another
    """
    layout, tensors = container.read(file)
    with plugins.allowing(packages):
        return _load(file, layout, tensors)


def _load(file: Path, layout: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    try:
        written = {"config": layout["config"], "choices": {}}
        # an earlier file lacks later settings, and names functions as they were called
        migrations.complete(written)
        config: dict[str, Any] = written["config"]
        _check_plain(config["model"])
        with data_paths.architecture_alone():
            model = build(config["model"], "model")()
        net = copies.channels_last(model.net).requires_grad_(False)
        x = torch.rand(1, *model.input, generator=torch.Generator().manual_seed(0))
        if rewritten := layout.get("rewritten"):  # earlier files have networks as they were built
            # The run compared outputs on images; no other changes are made here.
            model = plain_layers.rewrite_model(model, x, rewritten)
            net = model.net.requires_grad_(False)
            if [*model.rewritten] != rewritten:
                raise ValueError(
                    f"other modules are plain layers: {', '.join({*model.rewritten} ^ {*rewritten})}"
                )
        if config["fold"] and "folded" in layout:
            batchnorm_folding.fold_pairs(
                net, [batchnorm_folding.Pair(*names) for names in layout["folded"]]
            )
        elif config["fold"]:  # an earlier file: what one image reaches was folded
            batchnorm_folding.fold(net, x)
        fill(net, layout, Reader(tensors))
    except plugins.NotAllowed as error:
        raise SqError(f"{file}: {error} (in Python, sq.load(FILE, plugins=[NAME]))") from error
    except Exception as error:  # whatever a layout that was made up leads to
        raise SqError(
            f"{file} does not fit the network it names ({one_line(error)[:160]}): it was written with another version "
            "of sq or of the network's library; export it again"
        ) from error
    return net.eval()


def _check_plain(part: dict[str, Any]) -> None:
    """See that what names the network is a model of sq or of a plugin that is allowed, and plain values.

    Of those nothing is looked up or called, but the constructor of a checkpoint's network, which
    may be in a plugin.
    """
    target = str(part["_target_"])
    if not re.fullmatch(r"sq\.model\.\w+\.load", target):
        if target.startswith("sq."):
            raise ValueError(f"{target} is no model of sq")
        plugins.check(target, "model._target_")

    def check(value: Any) -> None:
        if isinstance(value, dict):
            if strange := [key for key in value if str(key).startswith("_") or key in FOREIGN]:
                raise ValueError(f"a setting {strange[0]} of the network")
            for own in value.values():
                check(own)
        elif isinstance(value, list):
            for own in value:
                check(own)
        elif isinstance(value, str) and "${" in value:
            raise ValueError("a setting of the network that is to be looked up")

    check({name: value for name, value in part.items() if name not in ("_target_", "_partial_")})


def fill(net: nn.Module, layout: dict[str, Any], given: Reader) -> None:
    """Give `net` what was stored, in the order it was.

    Raises
    ------
    ValueError, AttributeError : it is of another network, or was made up
    """
    names = [own["layer"] for own in layout["weights"]]
    for own in layout["weights"]:
        module = net.get_submodule(own["layer"])
        if math.prod(own["codes"]["shape"]) != module.weight.numel():  # type: ignore[operator]
            raise ValueError(f"the weight of {own['layer']} is of another size")
        codes, grid = given.take_codes(own["codes"]), given.take_grid(own["grid"])
        if int(codes.max()) >= grid.levels:
            raise ValueError(f"{own['layer']} has codes that its grid has not")
        geometry.set_weight(module, grid.decode(codes))  # type: ignore[union-attr]
    inputs = {own["name"]: given.take_grid(own["grid"]) for own in layout["inputs"]}
    for own in layout["state"]:
        _make_room(net, own["name"], own["shape"])
    others = _others(net, names)
    if [*others] != [own["name"] for own in layout["state"]]:
        strange = {own["name"] for own in layout["state"]} ^ {*others}
        raise ValueError(f"parameters differ: {', '.join(sorted(strange)[:3]) or 'their order'}")
    for own in layout["state"]:
        value, place = given.take(own), others[own["name"]]
        if value.shape != place.shape or value.dtype != place.dtype:
            raise ValueError(f"{own['name']} is of another shape")
        place.detach().copy_(value)
    insertion.attach(net, inputs)  # type: ignore[arg-type]


def _make_room(net: nn.Module, name: str, shape: list[int]) -> None:
    """Give a layer without a bias the one that was stored: `correction=bias` gives it to some."""
    layer, _, kind = name.rpartition(".")
    module = net.get_submodule(layer) if kind == "bias" else None
    if isinstance(module, geometry.QUANTIZABLE) and module.bias is None:
        module.bias = nn.Parameter(torch.zeros(shape), requires_grad=False)


def _others(net: nn.Module, quantized: list[str]) -> dict[str, Tensor]:
    """Return every tensor of the network's state by name, once, but for the weights of `quantized` layers."""
    seen = {id(net.get_submodule(name)._parameters["weight"]) for name in quantized}
    found: dict[str, Tensor] = {}
    for name, own in net.state_dict(keep_vars=True).items():
        if id(own) not in seen:
            seen.add(id(own))
            found[name] = own
    return found


def _verify(done: Finished, file: Path) -> dict[str, Any]:
    """Return the figures of the network in `file`, which must be the one that was measured."""
    net, x = done.quantized.net, done.problem.batch.x
    again = load(file).to(x.device)
    for name, own in net.state_dict().items():
        if not torch.equal(own, again.state_dict()[name]):
            raise SqError(
                f"export=packed: {name} was not read back from {file} as it was written: nothing is kept"
            )
    with torch.no_grad():
        for part in batching.split(x, None):
            if not torch.equal(forward(net, part), forward(again, part)):
                raise SqError(
                    f"export=packed: what was read back from {file} returns something else: nothing is kept"
                )
    return {"bytes": file.stat().st_size, "figures": done.measure(again).figures}
