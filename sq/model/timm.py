"""timm: any image classifier of the timm library, with the transform that goes with its weights.

The tag behind the dot pins the weights: `resnet50.tv_in1k` are torchvision's first (76.1 % on
ImageNet, what OBC used), `resnet50.a1_in1k` others of the same network (80.4 %). Rows of different
weights are never comparable.
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
from sq.model.transforms import Evaluation, check, span
from sq.network import geometry
from sq.network.reparameterize import apply as fused
from sq.runtime import torch_setup
from sq.types.problem import Model, digest

SETTING = "model.reparameterize=false"


def load(
    *,
    name: str,
    weights: str | None,
    reparameterize: bool,
    data: dict[str, Any] | None,
    expected: Expected,
) -> Model:
    """Load a trained network, ready to evaluate.

    Parameters
    ----------
    name : timm's, with the tag of the weights: ARCHITECTURE.TAG
    weights : a .safetensors, .pth or .pt state dict; a relative path is looked for here, then in
    $SQ_DATA. None
        downloads the tag's from timm's hub
    reparameterize : fuse the branches of networks that offer it (RepVGG, MobileOne, FastViT,
    RepGhost, ...) first
    data : settings of the evaluation transform that differ from the tag's own: input_size,
    interpolation, crop_pct,
        crop_mode, mean, std
    expected : full-precision figures by image set, see `sq.evaluation.expected_accuracy`

    Raises
    ------
    SqError : timm has no such network or tag; the weights are missing, damaged or of another
    network, or cannot be
        downloaded; a setting in `data` that makes no sense; fusing branches changes the outputs
    """
    torch_setup.import_torchvision()
    import timm
    from timm.data import resolve_data_config

    _check_name(name, weights)
    check(data or {})
    # Found before the network is built: that takes seconds.
    path = find(weights, "model.weights") if weights else None
    net = (
        timm.create_model(name, pretrained=False) if path or without_weights() else _download(name)
    )
    net = net.float().eval()
    checkpoint = load_into(net, path) if path else digest(net.state_dict().values())
    settings = resolve_data_config({}, model=net) | (data or {})
    settings["input_size"] = tuple(settings["input_size"])
    if reparameterize:
        net = fused(
            net,
            torch.rand(1, *settings["input_size"], generator=torch.Generator().manual_seed(0)),
            SETTING,
        )
    found, skipped = geometry.find(net)
    levels = span(settings["mean"], settings["std"])
    return Model(
        net,
        found,
        settings["input_size"],
        checkpoint,
        Evaluation(settings),
        skipped,
        expected or {},
        span=levels,
    )


def _check_name(name: str, weights: str | None) -> None:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise SqError(
            f"model.name={name}: timm has no such network; {nearest(architecture, timm.list_models())}"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise SqError(
            f"model.name={name}: {architecture} has no weights of that tag; tags: {', '.join(tags) or 'none'}"
        )
    if not tag and not weights:
        raise SqError(
            f"model.name={name}: name its weights too, {architecture}.TAG; tags: {', '.join(tags) or 'none'}"
        )


def _download(name: str) -> nn.Module:
    import timm

    say(f"downloading the weights of {name} from timm's hub, unless they are in its cache")
    try:
        with _quiet_hub():
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the network, the hub or a proxy raises
        raise SqError(
            f"model.name={name}: its weights cannot be had from timm's hub ({one_line(_cause(error))[:160]}): go "
            "online, or give a state dict by model.weights=PATH (relative: here, then in $SQ_DATA)"
        ) from error


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the hub's client from telling each of its attempts: what comes of them is told in one line."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _cause(error: BaseException) -> BaseException:
    """Return what `error` goes back to: the hub's own says only that a file is neither there nor here."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
