"""Random estimates, averaged until their standard error is small."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sq.core.progress import track

LEAST = 4  # draws before one may stop: a spread seen in fewer says little


def average(
    draw: Callable[[int], Tensor], draws: int, tolerance: float
) -> tuple[Tensor, Tensor, int]:
    """Return the mean of ``draw(0)``, ``draw(1)``, ..., its standard error, and how many draws that took.

    It stops when the standard error of each of them is at most `tolerance` of the mean's size, or
    after `draws`.

    Parameters
    ----------
    draw : the estimates (n,) of draw number 0, 1, ...
    draws : at most, 2 or more
    tolerance : relative
    """
    made: list[Tensor] = []
    for number in track(range(draws), "sensitivity"):
        made.append(draw(number).double().cpu())
        if len(made) >= LEAST and bool(
            (standard_error(made) <= tolerance * torch.stack(made).mean(0).abs()).all()
        ):
            break
    return torch.stack(made).mean(0), standard_error(made), len(made)


def standard_error(made: list[Tensor]) -> Tensor:
    """Return (n,) the standard error of the mean over draws (n,), of which there are 2 or more."""
    return torch.stack(made).std(0) / len(made) ** 0.5


def generator(*numbers: int) -> torch.Generator:
    """Return a generator of numbers of its own for each tuple of `numbers`, by a hash (32 bits of a seed count)."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return independent +1 and -1 (Rademacher) of the shape, type and place of `like`."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(like)


def average_each(
    draw: Callable[[int, list[int]], list[float]], count: int, draws: int, tolerance: float
) -> tuple[list[float], list[float], list[int]]:
    """Do what `average` does for `count` estimates, of which each stops on its own.

    Parameters
    ----------
    draw : ``draw(number, places)`` gives draw `number` of the estimates at `places`, which are
    still wanted
    """
    made: list[list[float]] = [[] for _ in range(count)]
    wanted = list(range(count))
    for number in track(range(draws), "sensitivity"):
        for place, value in zip(wanted, draw(number, wanted), strict=True):
            made[place].append(value)
        if number + 1 >= LEAST:
            wanted = [place for place in wanted if not _settled(made[place], tolerance)]
        if not wanted:
            break
    means = [sum(values) / len(values) for values in made]
    return means, [_error(values) for values in made], [len(values) for values in made]


def _settled(values: list[float], tolerance: float) -> bool:
    return _error(values) <= tolerance * abs(sum(values) / len(values))


def _error(values: list[float]) -> float:
    return float(standard_error(list(torch.tensor(values, dtype=torch.float64))))


def seeded(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose draws follow from `numbers`: what is drawn at a step needs no state to be resumed."""
    return torch.Generator(device).manual_seed(_seed(numbers))


@contextmanager
def drawing(*numbers: int, device: torch.device) -> Iterator[None]:
    """Let what draws from PyTorch's own generators, as Dropout does, follow from `numbers` while the context lasts."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_seed(numbers))
        yield


def _seed(numbers: tuple[int, ...]) -> int:
    """Return a seed of 56 bits that follows from `numbers`."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")
