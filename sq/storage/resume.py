"""Long optimisation, taken up where it was left: its state on disk, written whole or not at all, bit by bit.

The file is named by all that the result follows from, so another run never takes it up; it is
removed at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sq.core.progress import say
from sq.errors import one_line
from sq.storage import eviction

Steps = torch.optim.Optimizer


@dataclass(frozen=True)
class Place:
    """Where a state is kept, by a name of its own, among others that take `limit` bytes at most with it."""

    folder: Path
    name: str
    limit: int

    @property
    def file(self) -> Path:
        """Return the file of the state."""
        return self.folder / eviction.UNFINISHED / f"{self.name}.safetensors"


@dataclass
class Spent:
    """What the steps so far took, whichever process took them; what was not kept when one ended is not counted."""

    steps: int = 0
    cpu: float = 0.0  # seconds of steps
    once: float = 0.0  # CPU seconds of what is no step
    seconds: dict[str, float] = field(default_factory=dict)  # by layer


class Resume:
    """The state of an optimisation in stages, of which each has its own steps.

    Parameters
    ----------
    values : its parameters are all that is learned, in all stages
    place : where the state is kept; None keeps none
    buffers : tensors beside them that change too, in place, as statistics of BatchNorm do
    """

    def __init__(
        self, values: nn.Module, place: Place | None, buffers: Mapping[str, Tensor] | None = None
    ):
        self.values, self.place, self.buffers = values, place, dict(buffers or {})
        self.stage, self.step = -1, 0  # where the state on disk was; no stage is done yet
        self.rows: list[dict[str, Any]] = []  # of the curves, up to there
        self.spent = Spent()
        self._moments: dict[str, Tensor] = {}
        if place is not None and place.file.exists():
            self._load(place.file)
        self.before = self.spent.steps  # that were taken before the interruption

    def begin(self, stage: int, optimizers: list[Steps]) -> int | None:
        """Return the step that a stage goes on from, its `optimizers` as they were then; None if it is over."""
        if stage != self.stage:
            return None if stage < self.stage else 0
        for number, optimizer in enumerate(optimizers):
            made = optimizer.state_dict()
            for place in range(len(_parameters(optimizer))):
                start = f"optimizer.{number}.{place}."
                if found := {
                    k.removeprefix(start): v
                    for k, v in self._moments.items()
                    if k.startswith(start)
                }:
                    made["state"][place] = found
            # which puts each on the device that its kind of optimiser wants it on
            optimizer.load_state_dict(made)
        return self.step

    def save(self, stage: int, step: int, optimizers: list[Steps]) -> bool:
        """Write the state with `step` steps of a stage done; return whether it was written."""
        if self.place is None:
            return False
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        file = self.place.file
        state: dict[str, Tensor] = {
            f"value.{name}": own for name, own in self.values.named_parameters()
        }
        state |= {f"buffer.{name}": own for name, own in self.buffers.items()}
        for number, optimizer in enumerate(optimizers):
            for place, own in enumerate(_parameters(optimizer)):
                moments = optimizer.state.get(own, {})
                state |= {
                    f"optimizer.{number}.{place}.{name}": value for name, value in moments.items()
                }
        about = json.dumps(
            {"stage": stage, "step": step, "rows": self.rows, "spent": asdict(self.spent)}
        )
        part = file.with_name(f".{file.stem}.{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            whole = {name: own.detach().cpu().clone().contiguous() for name, own in state.items()}
            save_file(whole, part, {"sq": about})
            if (size := part.stat().st_size) > self.place.limit:
                raise OSError(f"it takes {size} bytes, and cache_gib allows {self.place.limit}")
            part.replace(file)
        except (OSError, SafetensorError) as error:
            say(
                f"the state after step {step} cannot be kept in {file.parent} ({one_line(error)}); going on"
            )
            return False
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        eviction.make(self.place.folder, file, "unfinished states", self.place.limit)
        return True

    def done(self) -> None:
        """Remove what is on disk: the run has come to its end."""
        if self.place is not None:
            with suppress(OSError):
                self.place.file.unlink(missing_ok=True)

    def _load(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        own = dict(self.values.named_parameters())
        try:
            with safe_open(file, "pt") as entry:
                about = json.loads(entry.metadata()["sq"])
                state = {name: entry.get_tensor(name).clone() for name in entry.keys()}  # noqa: SIM118 (not a dict)
            values = {name: state[f"value.{name}"] for name in own}
            buffers = {name: state[f"buffer.{name}"] for name in self.buffers}
            known, found = {**own, **self.buffers}, {**values, **buffers}
            if wrong := [name for name, value in found.items() if value.shape != known[name].shape]:
                raise ValueError(f"{wrong[0]} is of another shape")
            stage, step, rows, spent = (
                about["stage"],
                about["step"],
                about["rows"],
                Spent(**about["spent"]),
            )
        except (OSError, RuntimeError, SafetensorError, ValueError, KeyError, TypeError) as error:
            say(f"{file} cannot be used ({one_line(error)}): beginning anew")
            return
        self.values.load_state_dict(values, strict=False)  # all else there is given, not learned
        for name, buffer in buffers.items():
            self.buffers[name].copy_(buffer)
        self.stage, self.step, self.rows, self.spent = stage, step, rows, spent
        self._moments = {
            name: moment for name, moment in state.items() if name.startswith("optimizer.")
        }
        say(f"going on from step {self.step} of stage {self.stage + 1}")


def _parameters(optimizer: Steps) -> list[Tensor]:
    return [own for group in optimizer.param_groups for own in group["params"]]
