"""Inversion: images generated from a network alone, by gradient descent on the loss of a method."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sq.calibration.synthesis.fourier_images import FourierImages, augmented
from sq.calibration.synthesis.image_request import Request
from sq.config.constraints import Count, NotNegative, Portion, Positive
from sq.core.progress import say, track
from sq.core.wording import quantity
from sq.errors import SqError
from sq.runtime import batching
from sq.runtime.phase_timer import synchronize
from sq.types.problem import Model

WARM_UP_STEPS = 2  # steps after the first that are timed to estimate the time of all
MIN_ANNOUNCED_SECONDS = 5.0  # a shorter time is over before it is read


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
    """Return images (N, C, H, W) of low loss, as inputs of the network, on the CPU.

    Adam descends on the waves that the images are sums of
    (`sq.calibration.synthesis.fourier_images`), with a cosine schedule down to 0. At each step the
    network gets the images with a random shift and flip, so that the result does not depend on
    single pixels. These fade out over the first half of the steps: images optimised for all shifts
    have too low a loss without one, and would stay beyond the target. Values stay within
    `model.span`.

    Parameters
    ----------
    batch : images generated together
    steps : of Adam, for each batch
    lr : of the first step, in standard deviations of a wave
    slope : the initial amplitudes of waves of frequency f, and their changes, are in proportion to
        1 / f^slope; with 0 pixels are independent
    grey : correlation of the channels of the initial images, 0 to 1
    contrast : standard deviation of the initial images, as a share of black to white
    jitter : largest random cyclic shift, as a share of the height and of the width
    flips : flip images at random, with a probability of 1/2 at first
    tries : number of attempts for each image that the method refuses; the last result is used

    Raises
    ------
    SqError : an image holds NaN or infinity

    Source
    ------
    Yin et al. 2020 (DeepInversion, arXiv 1912.08795): images by gradients, jitter and flips. Olah
    et al. 2017 (Feature Visualization, doi 10.23915/distill.00007): gradients in a decorrelated
    space, whose slope follows natural images (Field 1987: about 1). The initial images, the fading
    and the cosine are ours.
    """
    device = next(model.net.parameters()).device
    x = torch.empty(len(request.y), *model.input)
    remaining = torch.arange(len(request.y))

    def generate(attempt: int, batches: Sequence[Tensor]) -> Iterator[None]:
        """Fill `x` at the indices of each batch; yield after each step."""
        for number, indices in enumerate(batches):
            y = request.y[indices].to(device)
            random = _random(request.seed, attempt, number)
            images = FourierImages(model, len(y), random, slope=slope, grey=grey, contrast=contrast)
            adam = torch.optim.Adam(images.waves, lr=lr)
            for step in range(steps):
                adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
                fade = max(0.0, 1 - 2 * step / steps)  # 0 in the second half of the steps
                flip_probability = fade / 2 if flips else 0.0
                seen = augmented(
                    images.images(), random, jitter=fade * jitter, flips=flip_probability
                )
                _descend(adam, images.waves, request.method.loss(seen, y))
                yield
            x[indices] = images.images().detach().cpu()

    # The steps of the first attempt; how many images are refused is not known yet.
    forecast = _Forecast(len(remaining), steps * len(remaining.split(batch)), device)
    for attempt in range(tries):
        batches = remaining.split(batch)
        progress = track(generate(attempt, batches), "generating images", steps * len(batches))
        for steps_done, _ in enumerate(progress):
            forecast.see(steps_done)
        if not torch.isfinite(x).all():
            raise SqError(
                f"calibration.search.lr={lr}: the images hold NaN or infinity; lower it, or check "
                "the weights"
            )
        # Only images that the method refuses are generated again.
        refused = [indices[~_accepted(request, x, indices, device)] for indices in batches]
        remaining = torch.cat(refused)
        if not len(remaining):
            break
    return x


def _descend(adam: torch.optim.Adam, waves: list[Tensor], loss: Tensor) -> None:
    """Make one step of Adam, with gradients of the waves only, not of the network's weights."""
    for wave, gradient in zip(waves, torch.autograd.grad(loss, waves), strict=True):
        wave.grad = gradient
    adam.step()


def _accepted(request: Request, x: Tensor, indices: Tensor, device: torch.device) -> Tensor:
    """Return (B,) bool, on the CPU: which of the images x[indices] the method accepts."""
    images, y = batching.to_device(x[indices], device), request.y[indices].to(device)
    with torch.no_grad():
        return request.method.accepted(images, y).cpu()


def _random(seed: int, attempt: int, number: int) -> torch.Generator:
    """Return the random generator of batch `number` of an attempt."""
    # One seed of the three numbers: each batch and attempt has its own random numbers.
    hashed = hashlib.sha256(f"{seed} images {attempt} {number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(hashed[:7], "big"))


class _Forecast:
    """Announces the expected time, after a few steps."""

    def __init__(self, images: int, steps: int, device: torch.device):
        self.images, self.steps, self.device = images, steps, device
        self.start = 0.0
        self.finished = False  # it speaks once at most

    def see(self, step: int) -> None:
        """Take note that step number `step`, from 0, is done."""
        if self.finished or step not in (0, WARM_UP_STEPS):
            return
        synchronize(self.device)
        if step == 0:  # not timed, since it is slower than the others
            self.start = time.perf_counter()
            return
        seconds_per_step = (time.perf_counter() - self.start) / WARM_UP_STEPS
        rest = seconds_per_step * (self.steps - 1 - WARM_UP_STEPS)
        if rest > MIN_ANNOUNCED_SECONDS:
            steps = quantity(self.steps, "step")
            say(f"generating {quantity(self.images, 'image')} in {steps} should take {rest:.0f} s")
        self.finished = True
