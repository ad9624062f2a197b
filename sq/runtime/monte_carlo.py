"""Averages of random estimates up to a given standard error, and seeded random generators."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sq.core.progress import track

MIN_DRAWS = 4  # before averaging may stop: the spread of fewer draws is unreliable


def average(
    draw: Callable[[int], Tensor], draws: int, tolerance: float
) -> tuple[Tensor, Tensor, int]:
    """Return the mean of ``draw(0)``, ``draw(1)``, ..., its standard error and the draws.

    It stops when every standard error is at most `tolerance` times the absolute mean, or after
    `draws`.

    Parameters
    ----------
    draw : returns the estimates (n,) of draw number 0, 1, ...
    draws : maximum number, 2 or more
    tolerance : relative
    """
    estimates: list[Tensor] = []
    for number in track(range(draws), "sensitivity"):
        estimates.append(draw(number).double().cpu())
        if len(estimates) >= MIN_DRAWS:
            bound = tolerance * torch.stack(estimates).mean(0).abs()
            if bool((standard_error(estimates) <= bound).all()):
                break
    return torch.stack(estimates).mean(0), standard_error(estimates), len(estimates)


def standard_error(estimates: list[Tensor]) -> Tensor:
    """Return the standard error (n,) of the mean over 2 or more draws (n,)."""
    return torch.stack(estimates).std(0) / len(estimates) ** 0.5


def generator(*numbers: int) -> torch.Generator:
    """Return a generator seeded with a hash of `numbers`, of the 32 bits that PyTorch uses.

    Its draws differ from those of `seeded`; both are kept, so that results stay the same.
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return independent random +1 and -1 (Rademacher) of the shape, type and device of `like`."""
    bits = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(like)


def average_each(
    draw: Callable[[int, list[int]], list[float]], count: int, draws: int, tolerance: float
) -> tuple[list[float], list[float], list[int]]:
    """Average `count` quantities as `average` does, each until its own standard error is small.

    Parameters
    ----------
    draw : ``draw(number, indices)`` returns draw `number` of the quantities at `indices`, those
        that are not precise enough yet
    """
    estimates: list[list[float]] = [[] for _ in range(count)]
    indices = list(range(count))
    for number in track(range(draws), "sensitivity"):
        for index, value in zip(indices, draw(number, indices), strict=True):
            estimates[index].append(value)
        if number + 1 >= MIN_DRAWS:
            indices = [index for index in indices if not _is_precise(estimates[index], tolerance)]
        if not indices:
            break
    means = [sum(values) / len(values) for values in estimates]
    errors = [_error(values) for values in estimates]
    return means, errors, [len(values) for values in estimates]


def _is_precise(values: list[float], tolerance: float) -> bool:
    return _error(values) <= tolerance * abs(sum(values) / len(values))


def _error(values: list[float]) -> float:
    return float(standard_error(list(torch.tensor(values, dtype=torch.float64))))


def seeded(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded with `numbers`, such as seed and step: no state to resume."""
    return torch.Generator(device).manual_seed(_seed(numbers))


@contextmanager
def drawing(*numbers: int, device: torch.device) -> Iterator[None]:
    """Seed PyTorch's own generators, which Dropout uses, with `numbers` for the block."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_seed(numbers))
        yield


def _seed(numbers: tuple[int, ...]) -> int:
    """Return a seed of 56 bits, a hash of `numbers`."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")
