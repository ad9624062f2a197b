"""Images that are made instead of drawn: what is asked for, and the way to it, kept on disk for other runs."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from sq.calibration.synthesis import fourier_images
from sq.core.progress import say
from sq.errors import SqError
from sq.network import batchnorm_statistics, tracing
from sq.runtime import batching, cpu_threads
from sq.runtime.phase_timer import synchronize
from sq.storage import store
from sq.storage.store import Kind, Note, Store, Tensors
from sq.types.images import Calibration
from sq.types.problem import Model, digest

WRONG = 0.5  # share of images that the method is not content with, above which they are refused
PIXELS = Kind("images", "making them", ["x"])
# Read along with the code itself: an edit while a sweep runs must not name what the old code
# computes.
CODE = [inspect.getsource(module) for module in (fourier_images, batchnorm_statistics)]


class Method(Protocol):
    """What images are made for: a loss that is to become small, and figures of what came out."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of images x (B, C, H, W) with labels y (B,), summed over images."""
        ...

    def accepted(self, x: Tensor, y: Tensor) -> Tensor:
        """Return (B,) bool: which finished images are what was wanted."""
        ...

    def figures(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return figures of finished images, means over them."""
        ...


@dataclass(frozen=True)
class Request:
    """Which images are wanted.

    Parameters
    ----------
    name : of the choice, for ids
    y : (N,) int64, a label for each image; -1 where it has none
    inputs : handed on, see `sq.types.images.Calibration`
    settings : all that `method` depends on beside the network, for the name of the entry
    """

    name: str
    y: Tensor
    seed: int
    inputs: str
    method: Method
    settings: dict[str, Any] = field(default_factory=dict)


def deliver(
    model: Model, request: Request, search: Callable[..., Tensor], kept: Store
) -> Calibration:
    """Return the images of `request`, from the store if it has them, made by `search` otherwise.

    Parameters
    ----------
    search : `sq.calibration.synthesis.inversion.search` with its knobs bound

    Returns
    -------
    images on the CPU; `made` tells seconds and steps spent on them, figures of the method, and
    whether this run found them (`cached`) or spent that itself

    Raises
    ------
    SqError : the images hold NaN or infinity; the method is not content with most of them
    """
    assert isinstance(search, partial)
    device = next(model.net.parameters()).device
    batch = search.keywords["batch"]

    def make() -> tuple[Tensors, Note]:
        synchronize(device)
        start = time.perf_counter()
        with cpu_threads.for_product(
            tracing.work(model, torch.zeros(1, *model.input, device=device)) * batch
        ):
            x = search(model, request)
            figures = _means(request, x, device, batch)
        spent = {"seconds": time.perf_counter() - start, "steps": search.keywords["steps"]}
        return {"x": x}, {**spent, **figures}

    code, state = store.describe(model)
    settings = [
        request.name,
        request.seed,
        request.settings,
        search.keywords,
        kept.origin,
        model.span,
    ]
    name = store.name(
        [
            *CODE,
            store.source(search.func),
            store.source(type(request.method)),
            *code,
            *state,
            digest([request.y]),
            json.dumps(settings, sort_keys=True),
            store.place(device),
        ]
    )
    tensors, note, there = kept.kept(
        name, replace(PIXELS, what=f"images, {request.name}"), make, torch.device("cpu")
    )
    ids = [f"{request.name}/{request.seed}/{number}" for number in range(len(request.y))]
    _judge(request, tensors["x"], device, search.keywords)
    made = {**note, "digest": digest(tensors.values()), "cached": there}
    return Calibration(tensors["x"], request.y, ids, request.inputs, made=made)


def _judge(request: Request, x: Tensor, device: torch.device, knobs: dict[str, Any]) -> None:
    """Say how many images the method is not content with; raise an `SqError` if those are most."""
    with torch.no_grad():
        parts = zip(x.split(knobs["batch"]), request.y.split(knobs["batch"]), strict=True)
        refused = 0
        for part, y in parts:
            accepted = request.method.accepted(batching.to_device(part, device), y.to(device))
            refused += int((~accepted).sum())
    if not refused:
        return
    told = (
        f"{refused} of {len(x)} images are not taken for their class after {knobs['tries']} tries"
    )
    if refused > WRONG * len(x):
        raise SqError(
            f"calibration={request.name}: {told}: raise calibration.search.steps or calibration.search.tries"
        )
    say(told)


def _means(request: Request, x: Tensor, device: torch.device, batch: int) -> dict[str, float]:
    """Return the figures of all images: means of those of batches as they were made."""
    total: dict[str, float] = {}
    with torch.no_grad():
        for part, y in zip(x.split(batch), request.y.split(batch), strict=True):
            for name, value in request.method.figures(
                batching.to_device(part, device), y.to(device)
            ).items():
                total[name] = total.get(name, 0.0) + value * len(y) / len(request.y)
    return total
