"""A network as one file of codes in their true bits, scales and other tensors.

`sq.load` builds the network from its config, without its checkpoint, and fills it with the content
of the file. On the same machine its outputs are those that were measured, bit by bit.
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
from sq.export.finished_run import FinishedRun
from sq.export.tensor_codec import Entry, Reader, Writer
from sq.network import batchnorm_folding, copies, geometry, plain_layers, residual_adds
from sq.network.forward import forward
from sq.network.resource_counts import code_bits
from sq.records import migrations, record
from sq.runtime import batching
from sq.types.problem import QuantizedLayer

SUFFIX = "sq.safetensors"
# Settings of models that would read other files.
FORBIDDEN_SETTINGS = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


def write(run: FinishedRun) -> dict[str, Any]:
    """Write the network of a run, load the file, and check that it is the one that was measured.

    Returns
    -------
    the file's name under `outputs`, its bytes, and the figures of the loaded network

    Raises
    ------
    SqError : the file cannot hold something, which is named; the disk is full; the loaded network
        differs
    """
    file, writer = run.file(SUFFIX), Writer()
    names = [layer.name for layer in run.problem.model.layers]
    quantized = {name: run.quantized.layers[name] for name in names}
    entries = put(writer, run.quantized.net, quantized)
    config = {name: value for name, value in run.config.items() if name not in record.BOOKKEEPING}
    layout = {
        "key": record.key(run.config),
        "config": config,
        "rewritten": list(run.whole.rewritten),
        "folded": [list(pair) for pair in run.whole.folded],
        **entries,
    }
    with run.written(file) as part:
        container.write(part, layout, writer.tensors())
        return {"format": "packed", "file": run.name(file)} | _verify(run, part)


def put(writer: Writer, net: nn.Module, quantized: dict[str, QuantizedLayer]) -> Entry:
    """Put all that a network with `quantized` layers computes with; return the entries for `fill`.

    Raises
    ------
    SqError : the file cannot hold something, which is named
    """
    weights: list[Entry] = []
    for name, layer in quantized.items():
        codes = writer.put_codes(layer.codes, code_bits(layer.grid))
        weights.append({"layer": name, "codes": codes, "grid": writer.put_grid(layer.grid, name)})
    inputs: list[Entry] = []
    grids = insertion.attached(net) | residual_adds.attached(net)
    for name, grid in grids.items():
        inputs.append({"name": name, "grid": writer.put_grid(grid, name)})
    state: list[Entry] = []
    for name, tensor in _other_tensors(net, list(quantized)).items():
        state.append({"name": name, **writer.put(tensor, name)})
    return {"weights": weights, "inputs": inputs, "state": state}


def load(file: Path, packages: Sequence[str] = ()) -> nn.Module:
    """Return the network in a file of `write`, in eval mode, on the CPU.

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
        net = _build(layout)
        fill(net, layout, Reader(tensors))
    except plugins.NotAllowed as error:
        raise SqError(f"{file}: {error} (in Python, sq.load(FILE, plugins=[NAME]))") from error
    except Exception as error:  # a forged layout can raise anything
        raise SqError(
            f"{file} does not fit the network it names ({one_line(error)[:160]}): it was written "
            "with another version of sq or of the network's library; export it again"
        ) from error
    return net.eval()


def _build(layout: dict[str, Any]) -> nn.Module:
    """Return the network that a layout names, rewritten and folded as in its run."""
    written = {"config": layout["config"], "choices": {}}
    # An older file lacks newer settings, and has the old names of functions.
    migrations.complete(written)
    config: dict[str, Any] = written["config"]
    _check_plain(config["model"])
    with data_paths.architecture_alone():
        model = build(config["model"], "model")()
    net = copies.channels_last(model.net).requires_grad_(False)
    x = torch.rand(1, *model.input, generator=torch.Generator().manual_seed(0))
    rewritten = layout.get("rewritten")  # older files have none
    if rewritten:
        # The run compared outputs on images; no other changes are made here.
        model = plain_layers.rewrite_model(model, x, rewritten)
        net = model.net.requires_grad_(False)
        if [*model.rewritten] != rewritten:
            differing = {*model.rewritten} ^ {*rewritten}
            raise ValueError(f"other modules are plain layers: {', '.join(differing)}")
    if config["fold"] and "folded" in layout:
        pairs = [batchnorm_folding.Pair(*names) for names in layout["folded"]]
        batchnorm_folding.fold_pairs(net, pairs)
    elif config["fold"]:  # an older file: what one image reaches was folded
        batchnorm_folding.fold(net, x)
    return net


def _check_plain(part: dict[str, Any]) -> None:
    """Check that a config names a model of sq or of an allowed plugin, and has only plain values.

    Nothing among the values is looked up or called, except the constructor of a checkpoint's
    network, which may be in a plugin.
    """
    target = str(part["_target_"])
    if not re.fullmatch(r"sq\.model\.\w+\.load", target):
        if target.startswith("sq."):
            raise ValueError(f"{target} is no model of sq")
        plugins.check(target, "model._target_")
    settings = {name: part[name] for name in part if name not in ("_target_", "_partial_")}
    _check_value(settings)


def _check_value(value: Any) -> None:
    if isinstance(value, dict):
        for name in value:
            if str(name).startswith("_") or name in FORBIDDEN_SETTINGS:
                raise ValueError(f"a setting {name} of the network")
        for inner in value.values():
            _check_value(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner)
    elif isinstance(value, str) and "${" in value:
        raise ValueError("a setting of the network that is to be looked up")


def fill(net: nn.Module, layout: dict[str, Any], reader: Reader) -> None:
    """Fill `net` with the stored tensors, in the order in which they were put.

    Raises
    ------
    ValueError, AttributeError : the layout is of another network, or forged
    """
    for entry in layout["weights"]:
        _fill_weight(net, entry, reader)
    inputs = {entry["name"]: reader.take_grid(entry["grid"]) for entry in layout["inputs"]}
    for entry in layout["state"]:
        _add_missing_bias(net, entry["name"], entry["shape"])
    tensors = _other_tensors(net, [entry["layer"] for entry in layout["weights"]])
    names = [entry["name"] for entry in layout["state"]]
    if [*tensors] != names:
        differing = sorted({*names} ^ {*tensors})
        raise ValueError(f"parameters differ: {', '.join(differing[:3]) or 'their order'}")
    for entry in layout["state"]:
        value, tensor = reader.take(entry), tensors[entry["name"]]
        if value.shape != tensor.shape or value.dtype != tensor.dtype:
            raise ValueError(f"{entry['name']} is of another shape")
        tensor.detach().copy_(value)
    insertion.attach(net, inputs)  # type: ignore[arg-type]


def _fill_weight(net: nn.Module, entry: Entry, reader: Reader) -> None:
    """Decode the stored weight of one layer into `net`."""
    name = entry["layer"]
    module = net.get_submodule(name)
    # Before the codes are unpacked: a forged shape could take all memory.
    if math.prod(entry["codes"]["shape"]) != module.weight.numel():  # type: ignore[operator]
        raise ValueError(f"the weight of {name} is of another size")
    codes, grid = reader.take_codes(entry["codes"]), reader.take_grid(entry["grid"])
    if int(codes.max()) >= grid.levels:
        raise ValueError(f"{name} has codes that its grid has not")
    geometry.set_weight(module, grid.decode(codes))  # type: ignore[union-attr]


def _add_missing_bias(net: nn.Module, name: str, shape: list[int]) -> None:
    """Add the bias `name` of a layer without one: `correction=bias` has given it to some."""
    layer, _, kind = name.rpartition(".")
    if kind != "bias":
        return
    module = net.get_submodule(layer)
    if isinstance(module, geometry.QUANTIZABLE) and module.bias is None:
        module.bias = nn.Parameter(torch.zeros(shape), requires_grad=False)


def _other_tensors(net: nn.Module, quantized: list[str]) -> dict[str, Tensor]:
    """Return the state of a network, each tensor once, without weights of `quantized` layers."""
    seen = {id(net.get_submodule(name)._parameters["weight"]) for name in quantized}
    tensors: dict[str, Tensor] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def _verify(run: FinishedRun, file: Path) -> dict[str, Any]:
    """Return the figures of the network in `file`, after a check that it is the measured one."""
    net, x = run.quantized.net, run.problem.batch.x
    loaded = load(file).to(x.device)
    for name, tensor in net.state_dict().items():
        if not torch.equal(tensor, loaded.state_dict()[name]):
            raise SqError(
                f"export=packed: {name} was not read back from {file} as it was written: nothing "
                "is kept"
            )
    with torch.no_grad():
        for images in batching.split(x, None):
            if not torch.equal(forward(net, images), forward(loaded, images)):
                raise SqError(
                    f"export=packed: what was read back from {file} returns something else: "
                    "nothing is kept"
                )
    return {"bytes": file.stat().st_size, "figures": run.measure(loaded).figures}
