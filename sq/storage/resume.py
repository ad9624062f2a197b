"""Checkpoints of long optimisations, from which an interrupted run resumes bit by bit.

A checkpoint file is named by a hash of all that the result depends on, so another run never resumes
from it. It is written whole or not at all, and removed at the end of the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sq.core import files
from sq.core.progress import say
from sq.errors import one_line
from sq.storage import store
from sq.types.problem import Problem, digest

Optimizer = torch.optim.Optimizer


@dataclass(frozen=True)
class Location:
    """Where a checkpoint is stored, in a folder whose files take at most `limit` bytes together."""

    folder: Path
    name: str
    limit: int

    @property
    def file(self) -> Path:
        """Return the checkpoint file."""
        return self.folder / store.UNFINISHED / f"{self.name}.safetensors"


def checkpoint_location(
    problem: Problem, settings: list[Any], values: nn.Module
) -> Location | None:
    """Return where the checkpoint of an optimisation is stored, None if none is to be stored.

    Its name is a hash of code, network, calibration images, initial values, settings and machine.

    Parameters
    ----------
    settings : of the optimisation
    values : its parameters before the first step
    """
    if problem.scratch is None:
        return None
    code, network = store.describe(problem.model)
    name = store.name(
        [
            store.code_hash(),
            *code,
            *network,
            json.dumps(settings, sort_keys=True, default=repr),
            digest(values.state_dict().values()),
            digest([problem.batch.x]),
            store.rounding(problem.batch.x.device),
        ]
    )
    return Location(Path(problem.scratch), name, int(problem.scratch_gib * store.GIB))


@dataclass
class StepCost:
    """What the steps so far took, over all processes that ran them.

    Steps after the last checkpoint of a killed process are not counted.
    """

    steps: int = 0
    cpu: float = 0.0  # seconds of steps
    once: float = 0.0  # CPU seconds outside of steps
    seconds: dict[str, float] = field(default_factory=dict)  # by layer


class Resume:
    """The state of an optimisation in stages, each of which has its own steps.

    Parameters
    ----------
    values : its parameters are all that is learned, in all stages
    location : where the checkpoint is stored; None stores none
    buffers : other tensors that change in place, such as statistics of BatchNorm
    """

    def __init__(
        self,
        values: nn.Module,
        location: Location | None,
        buffers: Mapping[str, Tensor] | None = None,
    ):
        self.values, self.location, self.buffers = values, location, dict(buffers or {})
        self.stage, self.step = -1, 0  # of the checkpoint; -1: no stage has begun
        self.rows: list[dict[str, Any]] = []  # of the learning curves, up to the checkpoint
        self.spent = StepCost()
        self._moments: dict[str, Tensor] = {}  # of the optimizers
        if location is not None and location.file.exists():
            self._load(location.file)
        self.before = self.spent.steps  # steps that an interrupted process did

    def begin(self, stage: int, optimizers: list[Optimizer]) -> int | None:
        """Return the step at which `stage` resumes, with the state of its `optimizers` restored.

        It is 0 for a stage that has not begun, and None for one that is over.
        """
        if stage < self.stage:
            return None
        if stage > self.stage:
            return 0
        for number, optimizer in enumerate(optimizers):
            state = optimizer.state_dict()
            for index in range(len(_parameters(optimizer))):
                moments = self._moments_of(number, index)
                if moments:
                    state["state"][index] = moments
            # puts each tensor on the device that the kind of optimizer wants it on
            optimizer.load_state_dict(state)
        return self.step

    def _moments_of(self, optimizer: int, parameter: int) -> dict[str, Tensor]:
        """Return by name the moments in the checkpoint of a parameter of an optimizer."""
        prefix = f"optimizer.{optimizer}.{parameter}."
        return {
            name.removeprefix(prefix): moment
            for name, moment in self._moments.items()
            if name.startswith(prefix)
        }

    def save(self, stage: int, step: int, optimizers: list[Optimizer]) -> bool:
        """Write a checkpoint after `step` steps of a stage; return whether it was written."""
        if self.location is None:
            return False
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        file, limit = self.location.file, self.location.limit
        state = self._state(optimizers)
        progress = {"stage": stage, "step": step, "rows": self.rows, "spent": asdict(self.spent)}
        metadata = {"sq": json.dumps(progress)}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Copies: safetensors refuses tensors that share memory.
            copies = {
                name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()
            }
            with files.replacing(file) as part:
                save_file(copies, part, metadata)
                size = part.stat().st_size
                if size > limit:
                    raise OSError(f"it takes {size} bytes, and cache_gib allows {limit}")
        except (OSError, SafetensorError) as error:
            say(
                f"the checkpoint after step {step} cannot be stored in {file.parent} "
                f"({one_line(error)}); going on without"
            )
            return False
        store.evict(self.location.folder, file, "checkpoints", limit)
        return True

    def _state(self, optimizers: list[Optimizer]) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint by name: values, buffers, moments of optimizers."""
        state: dict[str, Tensor] = {}
        for name, value in self.values.named_parameters():
            state[f"value.{name}"] = value
        for name, buffer in self.buffers.items():
            state[f"buffer.{name}"] = buffer
        for number, optimizer in enumerate(optimizers):
            for index, parameter in enumerate(_parameters(optimizer)):
                for name, moment in optimizer.state.get(parameter, {}).items():
                    state[f"optimizer.{number}.{index}.{name}"] = moment
        return state

    def done(self) -> None:
        """Remove the checkpoint: the run has come to its end."""
        if self.location is not None:
            with suppress(OSError):
                self.location.file.unlink(missing_ok=True)

    def _load(self, file: Path) -> None:
        """Take over the state of a checkpoint, all of it, or nothing with a message."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt") as entry:
                progress = json.loads(entry.metadata()["sq"])
                state = {name: entry.get_tensor(name).clone() for name in entry.keys()}  # noqa: SIM118 (not a dict)
            values = _matching(state, "value", dict(self.values.named_parameters()))
            buffers = _matching(state, "buffer", self.buffers)
            stage, step, rows = progress["stage"], progress["step"], progress["rows"]
            spent = StepCost(**progress["spent"])
        except (OSError, RuntimeError, SafetensorError, ValueError, KeyError, TypeError) as error:
            say(f"{file} cannot be used ({one_line(error)}): starting from the beginning")
            return
        self.values.load_state_dict(values, strict=False)  # its other tensors are not learned
        for name, buffer in buffers.items():
            self.buffers[name].copy_(buffer)
        self.stage, self.step, self.rows, self.spent = stage, step, rows, spent
        self._moments = {
            name: moment for name, moment in state.items() if name.startswith("optimizer.")
        }
        say(f"resuming at step {self.step} of stage {self.stage + 1}")


def _matching(
    state: Mapping[str, Tensor], prefix: str, targets: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors ``prefix.NAME`` of a checkpoint for the names of `targets`.

    Raises
    ------
    KeyError : one is missing
    ValueError : one is of another shape than its target
    """
    tensors = {name: state[f"{prefix}.{name}"] for name in targets}
    for name, tensor in tensors.items():
        if tensor.shape != targets[name].shape:
            raise ValueError(f"{name} is of another shape")
    return tensors


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
