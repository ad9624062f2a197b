"""A student, what is reconstructed of it at a time, and what learning has come to so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sq.resume import Resume
from sq.student import Student


@dataclass(frozen=True)
class Part:
    """What is reconstructed together.

    `error(index, generator)` runs the student on the images numbered `index` (B,), draws by `generator` what it draws,
    and returns what is to be small and, by layer, the weight of its regulariser.
    """

    name: str
    layers: list[str]
    error: Callable[[Tensor, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass
class Session:
    """A student, what it has learned so far, and where that is kept."""

    student: Student
    resume: Resume
    images: int
    seed: int
    every: int  # steps between two writes of the state
    stages: int = 0
    steps: int = 0
    cpu: float = 0.0  # seconds that `taken` steps of this process took
    taken: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by layer
