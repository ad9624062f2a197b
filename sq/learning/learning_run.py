"""The state of one reconstruction: the student, the parts it learns, and the time spent so far."""

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
    """A part of the network that is reconstructed together.

    `error(index, generator)` runs the student on the images numbered `index` (B,), with `generator`
    for random draws. It returns the loss and, by layer, the weight of the layer's regulariser.
    """

    name: str
    layers: list[str]
    error: Callable[[Tensor, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass
class LearningRun:
    """A student, what it has learned so far, and where its state is saved."""

    student: Student
    resume: Resume
    images: int
    seed: int
    save_every: int  # steps
    stages: int = 0
    steps: int = 0
    _clocks: tuple[float, float] = (0.0, 0.0)  # wall and CPU time at the last reading, in seconds

    def start_clock(self) -> None:
        """Begin to measure time."""
        self._clocks = time.perf_counter(), time.process_time()

    def count_time(self, layers: list[str], steps: int) -> None:
        """Add the time since the last reading to `layers`, in equal parts, and count `steps`.

        With 0 steps, the CPU time counts as set-up (`once`), not as time of steps.
        """
        wall_before, cpu_before = self._clocks
        self.start_clock()
        wall, cpu = self._clocks[0] - wall_before, self._clocks[1] - cpu_before
        spent = self.resume.spent
        spent.steps += steps
        if steps:
            spent.cpu += cpu
        else:
            spent.once += cpu
        for name in layers:
            spent.seconds[name] = spent.seconds.get(name, 0.0) + wall / len(layers)
