"""Quantize one network from Python: what a run does, without loading and evaluating."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from sq import pipeline
from sq.config.instantiate import build
from sq.config.schema import FAMILIES, problems
from sq.core import plugins
from sq.errors import SqError, one_line
from sq.network import (
    checks,
    copies,
    geometry,
)
from sq.network.forward import forward
from sq.network.reparameterize import apply as fused
from sq.runs import incompatible_settings, loader, messages
from sq.runs.sweep import expand
from sq.runtime import batching, cpu_threads, out_of_memory, torch_setup
from sq.runtime.phase_timer import Clock
from sq.storage.store import Store
from sq.types.images import Calibration
from sq.types.problem import Model

APART = (
    "model",
    "dataset",
    "metric",
    "trials",
    "tracker",
    "export",
    "latency",
    "calibration",
)  # a call has none of them

_lock = threading.Lock()  # Hydra has one state for all threads


def quantize(
    net: nn.Module,
    images: Tensor,
    *overrides: str,
    quantizer: str,
    bits: float,
    reparameterize: bool = True,
) -> nn.Module:
    """Return a quantized copy of `net`, in eval mode; `net` stays as it is.

    The attribute `sq_coverage` of the result (`sq.network.weight_coverage.Coverage`) tells which
    share of the weights is quantized, and lists every other tensor of two or more axes with its
    share and the reason; standard error says it in a line. Modules that compute what a plain layer
    computes are such layers in the copy, see `sq.network.plain_layers`.

    Parameters
    ----------
    net : maps images to one tensor
    images : (N, C, H, W) float32, calibration images as `net` takes them; on the device of `net`
    overrides : further settings as on the command line, "activation=mse", "activation.bits=8",
        "fold=true"; "plugins=[mynet]" allows them to name code in that package, for this call
    quantizer, bits : as on the command line
    reparameterize : fuse the branches of networks that offer it first, see
        `sq.network.reparameterize`

    Raises
    ------
    SqError : no images, or of a wrong kind; an unknown setting or choice; see the families; fusing
        branches changes the outputs
    """
    words = [f"quantizer={quantizer}", f"bits={bits}", *overrides]
    try:
        # Whatever mode the caller is in: tensors of inference mode cannot be differentiated, nor
        # tell of changes.
        with (
            plugins.allowing(plugins.named(overrides)),
            out_of_memory.explained(),
            out_of_memory.remembering(),
            torch.inference_mode(False),
            torch.autocast(_device(images), enabled=False),
        ):
            return _quantize(net, images, words, reparameterize)
    except SqError as error:
        if error.call == str(error):
            raise
        raise SqError(error.call) from error


def _quantize(net: nn.Module, images: Tensor, words: list[str], reparameterize: bool) -> nn.Module:
    config = _config(words)
    _check(images)
    part = {family: build(config[family], family) for family in FAMILIES if family not in APART}
    copied = copies.copied(net).eval()
    checks.check(copied)
    copies.bake(copied)
    copied.requires_grad_(False)
    if images.ndim == 4:
        copies.channels_last(copied)
    images = batching.to_device(images.detach(), images.device)  # laid out as a run has them
    _check_net(copied, images)
    if reparameterize:
        copied = fused(copied, images[:1], "reparameterize=False")
    found, skipped = geometry.find(copied)
    model = Model(
        copied, found, tuple(images.shape[1:]), "", lambda image, resized: images[0], skipped
    )
    count = len(images)
    batch = Calibration(images, torch.full((count,), -1), [str(i) for i in range(count)])
    prepared = pipeline.prepare_network(config, model, batch, Store(None, 0.0), None)
    with torch_setup.exactly(), cpu_threads.phases():
        pipeline.set_threads(config, prepared.model)
        solution = pipeline.quantize(config, part, prepared.input, Clock(images.device))
    quantized = solution.quantized.net.eval()
    quantized.sq_coverage = prepared.coverage  # type: ignore[assignment]
    return quantized


def _config(words: list[str]) -> dict[str, Any]:
    """Return the resolved config that `words` lead to, without a folder to keep anything in."""
    named = {word.partition("=")[0].lstrip("+~").partition(".")[0] for word in words}
    if apart := sorted(named & {*APART, "results", "outputs", "sweep", "rerun"}):
        raise SqError(
            f"{apart[0]}: a call has none, for it loads and keeps nothing; use python run.py for it"
        )
    try:
        with _lock:
            variables = tuple(sorted(os.environ.items()))  # which settings may be looked up in
            # Files of a plugin, unlike those of sq, may change from one call to the next.
            composed = _composed.__wrapped__ if plugins.allowed() else _composed
            config, choices = deepcopy(composed(tuple(words), variables))
    except (HydraException, OmegaConfBaseException) as error:
        raise SqError(messages.explain(error, words)) from error
    if wrong := problems(config) or incompatible_settings.find(config, choices):
        raise SqError("; ".join(wrong))
    return config


@functools.lru_cache(16)
def _composed(
    words: tuple[str, ...], variables: tuple[tuple[str, str], ...]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the config and the choices that `words` lead to; cached, as calls often repeat."""
    with _own_hydra():
        composed = hydra.compose(
            "config", overrides=[*words, "cache=null"], return_hydra_config=True
        )
        return expand.resolve(composed), expand.chosen(composed.hydra)


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Use Hydra's global state for a call, and restore it.

    The caller may be a Hydra application itself.
    """
    state = GlobalHydra.get_state()
    GlobalHydra.instance().clear()
    try:
        with loader.installed(), hydra.initialize_config_dir(loader.CONF, version_base="1.3"):
            yield
    finally:
        GlobalHydra.set_state(state)


def _device(images: Tensor) -> str:
    return images.device.type if isinstance(images, Tensor) else "cpu"


def _check_net(net: nn.Module, images: Tensor) -> None:
    kind = type(net).__name__
    try:
        with torch.no_grad():
            made = forward(net, images[:1])
    except Exception as error:  # whatever a network that takes something else raises
        if out_of_memory.is_out(error):
            raise
        if _runs(net, images[:1]):
            raise SqError(
                f"{kind} takes gradients in its forward, and is run without: put that part of it "
                "into `with torch.enable_grad():`"
            ) from error
        raise SqError(f"{kind} does not take these images ({one_line(error)[:160]})") from error
    if not isinstance(made, Tensor):
        raise SqError(f"{kind} returns {type(made).__name__}: it must return one tensor; wrap it")
    checks.check_outputs(net, images[:1], made)


def _runs(net: nn.Module, images: Tensor) -> bool:
    """Tell whether the network runs where gradients are on."""
    try:
        with torch.enable_grad():
            forward(net, images)
    except Exception as error:  # whatever it raises
        if out_of_memory.is_out(error):
            raise
        return False
    return True


def _check(images: Tensor) -> None:
    if (
        not isinstance(images, Tensor)
        or images.dtype != torch.float32
        or images.ndim < 2
        or not len(images)
    ):
        kind = (
            f"{images.dtype} {tuple(images.shape)}"
            if isinstance(images, Tensor)
            else type(images).__name__
        )
        raise SqError(
            f"calibration images: got {kind}; "
            "give a float32 tensor (images, channels, height, width)"
        )
    if not bool(torch.isfinite(images).all()):
        raise SqError(
            "calibration images hold NaN or infinity: prepare them as the network takes them"
        )
