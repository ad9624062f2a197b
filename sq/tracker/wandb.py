"""Weights & Biases: one W&B run for each run of sq, offline unless asked. The record stays the truth.

Nothing here may stop or fail a run: whatever the client does, it is logged and the run goes on.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

log = logging.getLogger("sq")


def open(
    record: dict[str, Any],
    *,
    mode: Literal["online", "offline", "disabled"],
    project: str,
    entity: str | None,
    dir: str,
    timeout: int,
) -> Tracker:
    """Start a W&B run for the run whose record has begun.

    Parameters
    ----------
    record : with `key`, `name`, `config` and `choices`
    mode : "offline" writes to `dir`/wandb, for ``wandb sync`` later; "disabled" writes nothing
    project, entity : where online runs go; entity None is the user's own
    dir : folder for W&B's files
    timeout : seconds to wait for the client to start and, apart, to finish
    """
    return Tracker(record, mode, project, entity, dir, timeout)


class Tracker:
    """A W&B run: config when it opens; figures, layers and status when it closes."""

    def __init__(self, record: dict[str, Any], mode: str, project: str, entity: str | None, dir: str, timeout: int):
        self.timeout = timeout
        self.run: Any = None
        if mode == "disabled":
            return

        def start() -> None:
            import wandb

            Path(dir).mkdir(parents=True, exist_ok=True)
            # Tables wait here for `wandb sync`; by default they would wait in the user's home.
            os.environ.setdefault("WANDB_DATA_DIR", str(Path(dir).absolute()))
            choices, config = record["choices"], record["config"]
            self.run = wandb.init(
                project=project,
                entity=entity,
                dir=dir,
                mode=mode,  # type: ignore[arg-type]
                group=record["name"],
                name=f"{choices.get('quantizer', 'run')} {config['bits']:g} bits seed {config['seed']}",
                config={**config, "choices": choices, "key": record["key"]},
                tags=[str(choices[family]) for family in ("model", "quantizer") if family in choices],
                reinit="finish_previous",
                settings=wandb.Settings(init_timeout=timeout, silent=True, console="off", x_disable_stats=True),
            )

        _guarded("start", start, timeout)

    def close(self, record: dict[str, Any]) -> None:
        """Send the figures of a finished run, or mark a failed one as failed."""
        if self.run is None:
            return

        def finish() -> None:
            import wandb

            try:
                if record["status"] == "done":
                    self.run.summary.update(_figures(record))
                    layers = record["layers"]
                    rows = [[layer[name] for name in layers[0]] for layer in layers]
                    table = wandb.Table(columns=list(layers[0]), data=rows)
                    self.run.log({"layers": table, "sensitivity": _sensitivity(record["sensitivity"])})
                else:
                    self.run.summary.update({"status": "failed", "error": record.get("error", "")})
            finally:  # whatever was refused, the run must not stay open
                self.run.finish(exit_code=0 if record["status"] == "done" else 1)

        _guarded("finish", finish, self.timeout)


def _figures(record: Mapping[str, Any]) -> dict[str, Any]:
    seconds = {f"seconds/{phase}": value for phase, value in record["seconds"].items()}
    return {"status": "done", **record["results"], **seconds}


def _sensitivity(cost: Mapping[str, Mapping[str, float]]) -> Any:
    import wandb

    rows = [[name, int(bits), value] for name, row in cost.items() for bits, value in row.items()]
    return wandb.Table(columns=["layer", "bits", "cost"], data=rows)


def _guarded(what: str, action: Callable[[], None], timeout: int) -> None:
    """Do `action` beside the run; log what goes wrong, and leave it behind if it takes too long."""

    def attempt() -> None:
        try:
            action()
        except Exception as error:  # the client may raise anything; none of it is the run's business
            log.warning("W&B could not %s: %s", what, error)

    thread = threading.Thread(target=attempt, name=f"wandb-{what}", daemon=True)
    thread.start()
    thread.join(timeout + 5)
    if thread.is_alive():
        log.warning("W&B did not %s within %s s; going on without it", what, timeout)
