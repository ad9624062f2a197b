"""A student, what is reconstructed of it at a time, and what learning has come to so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sq.learning.student import Student
from sq.storage.resume import Resume


@dataclass(frozen=True)
class Part:
    """What is reconstructed together.

    `error(index, generator)` runs the student on the images numbered `index` (B,), draws by
    `generator` what it draws, and returns what is to be small and, by layer, the weight of its
    regulariser.
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
    _read: tuple[float, float] = (0.0, 0.0)  # clocks, when they were read last

    def start(self) -> None:
        """Begin to count what steps take."""
        self._read = time.perf_counter(), time.process_time()

    def count(self, layers: list[str], steps: int) -> None:
        """Count what it took since the clocks were read last: `steps` of a part with `layers`, which share the time.

        What is no step counts in their time, and apart from steps in CPU seconds.
        """
        before, spent = self._read, self.resume.spent
        self.start()
        cpu = self._read[1] - before[1]
        spent.steps += steps
        spent.cpu, spent.once = (
            (spent.cpu + cpu, spent.once) if steps else (spent.cpu, spent.once + cpu)
        )
        for name in layers:
            spent.seconds[name] = spent.seconds.get(name, 0.0) + (self._read[0] - before[0]) / len(
                layers
            )
