"""What a step of training takes, and beside it, in the same run, a step of the same network in full precision."""

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

# steps in full precision, spread over the run, so that whatever else a machine does falls on both
# kinds
SAMPLES = 8


@contextmanager
def spending(spent: StepCost, part: str) -> Iterator[None]:
    """Count one step, its CPU seconds, and its seconds as those of `part`."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    spent.steps += 1
    spent.cpu += time.process_time() - cpu
    spent.seconds[part] = spent.seconds.get(part, 0.0) + time.perf_counter() - wall


class Plain:
    """A copy of the network, trained in full precision for a step now and then and thrown away.

    Parameters
    ----------
    net : stays as it is
    total : steps of the run
    """

    def __init__(self, net: nn.Module, total: int):
        self.net = copied(net).requires_grad_().train()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9)
        self.apart = max(1, total // (SAMPLES + 1))
        self.spent = StepCost()
        self.first = 0.0

    def due(self, step: int) -> bool:
        """Tell whether a step in full precision is to be timed beside this one."""
        return step % self.apart == 0

    def step(self, x: Tensor, y: Tensor) -> None:
        """Take one: forward, cross-entropy, backward and SGD."""
        with spending(self.spent, "plain"), torch.enable_grad():
            self.optimizer.zero_grad()
            F.cross_entropy(forward(self.net, x), y).backward()
            self.optimizer.step()
        # makes what the others find: counts only if it is the only one
        self.first = self.first or self.spent.cpu

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of a step; 0 if none was taken."""
        own = self.spent
        return (own.cpu - self.first) / (own.steps - 1) if own.steps > 1 else own.cpu
