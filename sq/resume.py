"""Long optimisation, taken up where it was left: its state on disk, written whole or not at all, bit by bit.

The file is named by all that the result follows from, so another run never takes it up; it is removed at the end.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sq.console import say
from sq.errors import one_line

Steps = torch.optim.Optimizer


class Resume:
    """The state of an optimisation in stages, of which each has its own steps.

    Parameters
    ----------
    values : all that is learned, in all stages
    file : where the state is kept; None keeps none
    """

    def __init__(self, values: nn.Module, file: Path | None):
        self.values, self.file = values, file
        self.stage, self.step = -1, 0  # where the state on disk was; no stage is done yet
        self.rows: list[dict[str, Any]] = []  # of the curves, up to there
        self._moments: dict[str, Tensor] = {}
        if file is not None and file.exists():
            self._load(file)

    def begin(self, stage: int, optimizers: list[Steps]) -> int | None:
        """Return the step that a stage goes on from, its `optimizers` as they were then; None if it is over."""
        if stage != self.stage:
            return None if stage < self.stage else 0
        for number, optimizer in enumerate(optimizers):
            for place, own in enumerate(_parameters(optimizer)):
                start = f"optimizer.{number}.{place}."
                found = {k.removeprefix(start): v for k, v in self._moments.items() if k.startswith(start)}
                if found:
                    optimizer.state[own] = found
        return self.step

    def save(self, stage: int, step: int, optimizers: list[Steps]) -> bool:
        """Write the state with `step` steps of a stage done; return whether it was written."""
        if self.file is None:
            return False
        from safetensors.torch import save_file

        state = {f"value.{name}": own for name, own in self.values.state_dict().items()}
        for number, optimizer in enumerate(optimizers):
            for place, own in enumerate(_parameters(optimizer)):
                moments = optimizer.state.get(own, {})
                state |= {f"optimizer.{number}.{place}.{name}": value for name, value in moments.items()}
        about = json.dumps({"stage": stage, "step": step, "rows": self.rows})
        part = self.file.with_name(f".{self.file.stem}.{os.getpid()}.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: own.detach().cpu().clone().contiguous() for name, own in state.items()}, part, {"sq": about}
            )
            part.replace(self.file)
        except OSError as error:
            say(f"the state after step {step} cannot be kept in {self.file.parent} ({one_line(error)}); going on")
            return False
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        return True

    def done(self) -> None:
        """Remove what is on disk: the run has come to its end."""
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink(missing_ok=True)

    def _load(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt") as entry:
                about = json.loads(entry.metadata()["sq"])
                state = {name: entry.get_tensor(name).clone() for name in entry.keys()}  # noqa: SIM118 (not a dict)
            values = {n.removeprefix("value."): v for n, v in state.items() if n.startswith("value.")}
            self.values.load_state_dict(values)
            self.stage, self.step, self.rows = about["stage"], about["step"], about["rows"]
        except (OSError, RuntimeError, SafetensorError, ValueError, KeyError, TypeError) as error:
            say(f"{file} cannot be used ({one_line(error)}): beginning anew")
            return
        device = next(self.values.parameters()).device
        self._moments = {n: v if n.endswith(".step") else v.to(device) for n, v in state.items() if n[:3] == "opt"}
        say(f"going on from step {self.step} of stage {self.stage + 1}")


def _parameters(optimizer: Steps) -> list[Tensor]:
    return [own for group in optimizer.param_groups for own in group["params"]]
