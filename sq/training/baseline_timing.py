"""Time of a training step, and of a step of the same network in full precision in the same run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sq.network.copies import copied
from sq.network.forward import forward
from sq.storage.resume import StepCost

# Steps in full precision, spread over the run, so that other load of the machine falls on both
# kinds.
BASELINE_STEPS = 8


@contextmanager
def spending(spent: StepCost, part: str) -> Iterator[None]:
    """Add one step to `spent`, with its CPU seconds, and its wall seconds as those of `part`."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    spent.steps += 1
    spent.cpu += time.process_time() - cpu
    spent.seconds[part] = spent.seconds.get(part, 0.0) + time.perf_counter() - wall


class FullPrecisionBaseline:
    """A copy of the network that takes some steps in full precision, only to time them.

    Parameters
    ----------
    net : stays as it is
    total : steps of the run
    """

    def __init__(self, net: nn.Module, total: int):
        self.net = copied(net).requires_grad_().train()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9)
        self.interval = max(1, total // (BASELINE_STEPS + 1))  # steps of the run between two
        self.spent = StepCost()
        self.first_cpu = 0.0  # CPU seconds of the first step

    def is_due(self, step: int) -> bool:
        """Tell whether a step in full precision is to be timed next to this one."""
        return step % self.interval == 0

    def step(self, x: Tensor, y: Tensor) -> None:
        """Take one step: forward, cross-entropy, backward and SGD."""
        with spending(self.spent, "plain"), torch.enable_grad():
            self.optimizer.zero_grad()
            F.cross_entropy(forward(self.net, x), y).backward()
            self.optimizer.step()
        # The first step allocates what later ones reuse: it counts only if it is the only one.
        self.first_cpu = self.first_cpu or self.spent.cpu

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of a step; 0 if none was taken."""
        spent = self.spent
        if spent.steps > 1:
            return (spent.cpu - self.first_cpu) / (spent.steps - 1)
        return spent.cpu
