"""timm: any image classifier of the timm library, with the transform of its weights.

The tag after the dot selects the weights: `resnet50.tv_in1k` are torchvision's first (76.1 % on
ImageNet, used by OBC), `resnet50.a1_in1k` others of the same network (80.4 %). Results of different
weights are not comparable.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sq.config.constraints import Expected
from sq.config.data_paths import find, without_weights
from sq.config.schema import nearest
from sq.core.progress import say
from sq.errors import SqError, one_line
from sq.model.state_dict import load_into
from sq.model.transforms import EvaluationTransform, check, span
from sq.network import geometry
from sq.network.reparameterize import apply as fused
from sq.runtime import torch_setup
from sq.types.problem import Model, digest

NO_FUSION = "model.reparameterize=false"  # the setting that avoids it


def load(
    *,
    name: str,
    weights: str | None,
    reparameterize: bool,
    data: dict[str, Any] | None,
    expected: Expected,
) -> Model:
    """Load a trained network in eval mode.

    Parameters
    ----------
    name : in timm, with the tag of the weights: ARCHITECTURE.TAG
    weights : a .safetensors, .pth or .pt state dict; a relative path is looked for here, then in
        $SQ_DATA. None downloads those of the tag from timm's hub
    reparameterize : first fuse the branches of networks that offer it (RepVGG, MobileOne, FastViT,
        RepGhost, ...)
    data : settings of the evaluation transform that differ from those of the tag: input_size,
        interpolation, crop_pct, crop_mode, mean, std
    expected : full-precision figures by image set, see `sq.evaluation.expected_accuracy`

    Raises
    ------
    SqError : timm has no such network or tag; the weights are missing, damaged or of another
        network, or cannot be downloaded; a setting in `data` is invalid; fusing branches changes
        the outputs
    """
    torch_setup.import_torchvision()
    import timm
    from timm.data import resolve_data_config

    _check_name(name, weights)
    check(data or {})
    # Before the network is built, which takes seconds.
    path = find(weights, "model.weights") if weights else None
    downloads = path is None and not without_weights()
    net = _download(name) if downloads else timm.create_model(name, pretrained=False)
    net = net.float().eval()
    checkpoint = load_into(net, path) if path else digest(net.state_dict().values())
    # Settings of the tag, unless `data` has others.
    settings = resolve_data_config({}, model=net) | (data or {})
    settings["input_size"] = tuple(settings["input_size"])
    if reparameterize:
        x = torch.rand(1, *settings["input_size"], generator=torch.Generator().manual_seed(0))
        net = fused(net, x, NO_FUSION)
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


def _check_name(name: str, weights: str | None) -> None:
    """Raise an `SqError` unless timm has the network and the tag, which `weights` can replace."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise SqError(
            f"model.name={name}: timm has no such network; "
            f"{nearest(architecture, timm.list_models())}"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    choices = ", ".join(tags) or "none"
    if tag and tag not in tags:
        raise SqError(
            f"model.name={name}: {architecture} has no weights of that tag; tags: {choices}"
        )
    if not tag and not weights:
        raise SqError(
            f"model.name={name}: name its weights too, {architecture}.TAG; tags: {choices}"
        )


def _download(name: str) -> nn.Module:
    import timm

    say(f"downloading the weights of {name} from timm's hub, unless they are in its cache")
    try:
        with _quiet_hub():
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # the network, the hub or a proxy can raise anything
        reason = one_line(_root_cause(error))[:160]
        raise SqError(
            f"model.name={name}: its weights cannot be had from timm's hub ({reason}): go "
            "online, or give a state dict by model.weights=PATH (relative: here, then in $SQ_DATA)"
        ) from error


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Silence the hub's client, which logs each attempt: the result is reported in one line."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _root_cause(error: BaseException) -> BaseException:
    """Return the first cause of `error`: the hub's own error says only that there is no file."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
