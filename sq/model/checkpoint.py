"""checkpoint: a network built by a constructor, with the weights of a state dict."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from sq.config.constraints import Expected
from sq.config.data_paths import find
from sq.config.schema import nearest
from sq.core import plugins
from sq.errors import SqError, one_line
from sq.model.state_dict import load_into
from sq.model.transforms import EvaluationTransform, check, span
from sq.network import geometry
from sq.network.reparameterize import apply as fused
from sq.runtime import torch_setup
from sq.types.problem import Model

REQUIRED_SETTINGS = ("input_size", "interpolation", "crop_pct", "mean", "std")


def load(
    *,
    constructor: str,
    arguments: dict[str, Any] | None,
    weights: str,
    reparameterize: bool,
    data: dict[str, Any],
    expected: Expected,
) -> Model:
    """Build a network and read its weights.

    The constructor is looked up by name: in torchvision's registry, in timm's, or in a package that
    the user allows (`sq.core.plugins`). Nothing else that a config names is imported.

    Parameters
    ----------
    constructor : a name in torchvision's registry of models, "timm/NAME", or "mynet.MyNet" in a
        plugin
    arguments : of the constructor, such as num_classes
    weights : a .safetensors, .pth or .pt state dict; a relative path is looked for here, then in
        $SQ_DATA
    reparameterize : first fuse the branches of networks that offer it (timm's RepVGG, MobileOne,
        FastViT, ...)
    data : the evaluation transform: input_size (C, H, W), interpolation, crop_pct (share of the
        shorter side that is kept), mean and std of values from 0 to 1; and, if it is not "center",
        crop_mode
    expected : full-precision figures by image set, see `sq.evaluation.expected_accuracy`

    Raises
    ------
    SqError : there is no such constructor, it does not take the arguments, the weights are missing,
        damaged or do not fit, or fusing branches changes the outputs
    """
    missing = [name for name in REQUIRED_SETTINGS if name not in data]
    if missing:
        raise SqError(
            f"model.data has {', '.join(data) or 'nothing'}: it lacks {', '.join(missing)}"
        )
    check(data)
    path = find(weights, "model.weights")
    net = _build(constructor, arguments or {}).float().eval()
    checkpoint = load_into(net, path)
    settings = dict(data) | {"input_size": tuple(data["input_size"])}
    if reparameterize:
        x = torch.rand(1, *settings["input_size"], generator=torch.Generator().manual_seed(0))
        net = fused(net, x, "model.reparameterize=false")
    layers, skipped = geometry.find(net)
    return Model(
        net,
        layers,
        settings["input_size"],
        checkpoint,
        EvaluationTransform(settings),
        skipped,
        expected or {},
        span=span(settings["mean"], settings["std"]),
    )


def _build(constructor: str, arguments: dict[str, Any]) -> Any:
    torch_setup.import_torchvision()
    import timm
    from torchvision import models

    if plugins.is_dotted(constructor):
        return _of_plugin(constructor, arguments)
    library, _, name = constructor.rpartition("/")
    registries = {"": models.list_models(models), "timm": timm.list_models()}
    if name not in registries.get(library, []):
        choices = registries.get(library)
        if choices is None:
            choices = registries[""] + [f"timm/{choice}" for choice in registries["timm"]]
        raise SqError(
            f"model.constructor={constructor}: torchvision (or timm/) has none; "
            f"{_suggestion(name, choices)}; a class of your own is MODULE.CLASS, in a package that "
            "plugins=[MODULE] allows"
        )
    try:
        if library:
            return timm.create_model(name, **arguments)
        return models.get_model(name, weights=None, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SqError(
            f"model.arguments={arguments}: {constructor} does not take them ({one_line(error)})"
        ) from error


def _of_plugin(constructor: str, arguments: dict[str, Any]) -> nn.Module:
    """Return the network of a class or function in a plugin."""
    function = plugins.find(constructor, "model.constructor")
    is_module = inspect.isclass(function) and issubclass(function, nn.Module)
    if not is_module and not inspect.isfunction(function):
        raise SqError(
            f"model.constructor={constructor}: neither a class of torch.nn.Module nor a function"
        )
    try:
        net = function(**arguments)
    except SqError:
        raise
    except Exception as error:  # the code of a plugin can raise anything
        raise SqError(
            f"model.arguments={arguments}: {constructor} fails with them ({one_line(error)})"
        ) from error
    if not isinstance(net, nn.Module):
        raise SqError(
            f"model.constructor={constructor}: returns {type(net).__name__}, not a torch.nn.Module"
        )
    return net


def _suggestion(name: str, choices: list[str]) -> str:
    suggestion = nearest(name, choices)
    if suggestion.startswith("nearest"):
        return suggestion
    # The list of all names would be too long.
    return "see torchvision.models.list_models() and timm.list_models()"
