"""Images made from a network alone: pixels follow the gradient of a loss, batch after batch. A method is its loss."""

from __future__ import annotations

import hashlib
import math
import time

import torch
from torch import Tensor

from sq.calibration.synthesis.fourier_images import Canvas, moved
from sq.calibration.synthesis.image_request import Request
from sq.config.constraints import Count, NotNegative, Portion, Positive
from sq.core.progress import say, track
from sq.core.wording import quantity
from sq.errors import SqError
from sq.runtime import batching
from sq.runtime.phase_timer import synchronize
from sq.types.problem import Model

WARM = 2  # steps after the first by which the time of all is told
WORTH_TELLING = 5.0  # seconds: less is over before it is read


def search(
    model: Model,
    request: Request,
    *,
    batch: Count,
    steps: Count,
    lr: Positive,
    slope: NotNegative,
    grey: Portion,
    contrast: Positive,
    jitter: Portion,
    flips: bool,
    tries: Count,
) -> Tensor:
    """Return images (N, C, H, W) on the CPU, as the network takes them, of little loss.

    Adam on the waves that images are sums of (`sq.calibration.synthesis.fourier_images`), its step
    falling to 0 along a cosine. At each step the network sees the images moved and mirrored at
    random, so that what it likes does not depend on single pixels. That fades out over the first
    half: what suits the network moved by anything suits it too well as it is, and would stay beyond
    the loss aimed at. Values stay within `model.span`.

    Parameters
    ----------
    batch : images at a time
    steps : of Adam, for each batch
    lr : of the first step, in standard deviations of a wave
    slope : waves of f cycles begin with amplitudes as 1 / f^slope and are moved in that proportion;
    0 makes every pixel
        for itself
    grey : correlation of the channels of what images begin as, 0 to 1
    contrast : standard deviation of what images begin as, in units of black to white
    jitter : images are moved by up to this share of their sides, what leaves on one side entering
    on the other
    flips : every other step, at first, shows images mirrored
    tries : images that the method is not content with are begun anew, until there were so many
    attempts; what comes of
        the last is kept

    Raises
    ------
    SqError : an image holds NaN or infinity

    Source
    ------
    Yin et al. 2020 (DeepInversion, arXiv 1912.08795): images by gradients, jitter and flips. Olah
    et al. 2017 (Feature Visualization, doi 10.23915/distill.00007): gradients in a decorrelated
    space, whose slope follows natural images (Field 1987: about 1). Beginning there, the fading,
    and the cosine are ours.
    """
    device, knobs = (
        next(model.net.parameters()).device,
        {"slope": slope, "grey": grey, "contrast": contrast},
    )
    x, left = torch.empty(len(request.y), *model.input), torch.arange(len(request.y))
    told = _Forecast(len(left), steps * len(left.split(batch)), device)
    for attempt in range(tries):
        parts = left.split(batch)
        for place in track(range(steps * len(parts)), "generating images", steps * len(parts)):
            number, step = divmod(place, steps)
            if step == 0:
                y, random = (
                    request.y[parts[number]].to(device),
                    _random(request.seed, attempt, number),
                )
                made = Canvas(model, len(y), random, **knobs)
                adam = torch.optim.Adam(made.waves, lr=lr)
            adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            moving = max(0.0, 1 - 2 * step / steps)
            seen = moved(
                made.images(), random, jitter=moving * jitter, flips=moving / 2 if flips else 0.0
            )
            _descend(adam, made.waves, request.method.loss(seen, y))
            told.see(place)
            if step == steps - 1:
                x[parts[number]] = made.images().detach().cpu()
        if not torch.isfinite(x).all():
            raise SqError(
                f"calibration.search.lr={lr}: the images hold NaN or infinity; lower it, or check the weights"
            )
        left = torch.cat([part[~_accepted(request, x, part, device)] for part in parts])
        if not len(left):
            break
    return x


def _descend(adam: torch.optim.Adam, waves: list[Tensor], loss: Tensor) -> None:
    """Make one step; only what leads to images is differentiated, not the network's weights."""
    for wave, gradient in zip(waves, torch.autograd.grad(loss, waves), strict=True):
        wave.grad = gradient
    adam.step()


def _accepted(request: Request, x: Tensor, part: Tensor, device: torch.device) -> Tensor:
    """Return (B,) bool, on the CPU: whether the method is content with each of the images x[part]."""
    with torch.no_grad():
        return request.method.accepted(
            batching.to_device(x[part], device), request.y[part].to(device)
        ).cpu()


def _random(seed: int, attempt: int, number: int) -> torch.Generator:
    """Return the source of all that is random in batch `number` of an attempt."""
    own = hashlib.sha256(f"{seed} images {attempt} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(own[:7], "big"))


class _Forecast:
    """Says how long it will take, after a few steps."""

    def __init__(self, images: int, steps: int, device: torch.device):
        self.images, self.steps, self.device = images, steps, device
        self.start = 0.0

    def see(self, place: int) -> None:
        """Take note that step `place` of all is done."""
        if self.steps == 0 or place not in (0, WARM):
            return
        synchronize(self.device)
        if place == 0:  # the first is slower than the others
            self.start = time.perf_counter()
            return
        rest = (time.perf_counter() - self.start) / WARM * (self.steps - 1 - WARM)
        if rest > WORTH_TELLING:
            steps = quantity(self.steps, "step")
            say(f"generating {quantity(self.images, 'image')} in {steps} should take {rest:.0f} s")
        self.steps = 0  # told once
