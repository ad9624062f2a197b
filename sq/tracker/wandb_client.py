"""W&B's client: loaded when it is needed, without output, and with time limits.

The client starts a service, a separate process, and waits for its end without a limit. If the
server cannot be reached, that can take forever.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sq.core.timeouts import within
from sq.errors import SqError
from sq.tracker.run_page import Destination

if TYPE_CHECKING:
    import psutil

START_LIMIT = 30  # seconds at most for the service to begin
END_LIMIT = 10  # seconds at most for it to end, once nothing is left to send
SERVICE = "wandb-core"


def load(where: Destination) -> Any:
    """Return the module, set up to print nothing and to write to the folder of `where`.

    Raises
    ------
    SqError : there is no client, or its service does not begin
    """
    # Tables are stored here until `wandb sync`; by default they would be in the user's home.
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(where.dir).absolute()))
    wandb = module()
    # On a full disk, each line of its logs would print a traceback on the terminal.
    logging.raiseExceptions = False
    _end_with_us()
    if where.mode == "online":
        quiet = wandb.Settings(silent=True)  # for requests before a run begins
        try:
            within(lambda: wandb.setup(quiet), START_LIMIT)
        except TimeoutError as error:
            raise SqError(
                f"W&B's service does not begin: {error}; upload with --mode offline"
            ) from error
    return wandb


def module() -> Any:
    """Return W&B's module as it is.

    Raises
    ------
    SqError : there is none
    """
    try:
        import wandb
    except ImportError as error:
        raise SqError(
            f"W&B's client cannot be loaded ({error}): python -m pip install 'wandb>=0.30'"
        ) from error
    return wandb


def log_in(wandb: Any) -> None:
    """Find the key without a prompt: the user would not see it.

    Raises
    ------
    SqError : there is none
    """
    if wandb.run is None and not wandb.login(prompt=False, verify=False):
        raise SqError(
            "there is no key (run `wandb login`, or set WANDB_API_KEY), or WANDB_MODE says offline"
        )


def settings(wandb: Any, timeout: int) -> Any:
    """Return settings by which W&B collects no data of its own.

    Collecting takes 0.3 s a run, and an upload may be from another machine than the run.
    """
    return wandb.Settings(
        init_timeout=timeout,
        finish_timeout=timeout,
        finish_timeout_raises=True,
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        stop_fn=lambda: None,  # else a button in W&B would interrupt the whole sweep
    )


def end(wandb: Any, seconds: float = END_LIMIT) -> None:
    """End the client in this process; kill its service if that takes longer than `seconds`."""
    services = _services()
    try:
        within(wandb.teardown, seconds)
    except TimeoutError:
        _kill(services)


@functools.cache
def _end_with_us() -> None:
    """Start a thread, once for a process, that kills the service if it outlives the main thread.

    W&B waits for the service as the interpreter ends, when no thread can be started any more.
    """

    def wait() -> None:
        threading.main_thread().join()
        time.sleep(END_LIMIT)
        _kill(_services())

    threading.Thread(target=wait, name="end of W&B", daemon=True).start()


def _services() -> list[psutil.Process]:
    import psutil

    try:
        return [child for child in psutil.Process().children() if child.name().startswith(SERVICE)]
    except psutil.Error:  # one has just ended
        return []


def _kill(services: list[psutil.Process]) -> None:
    import psutil

    for service in services:
        try:
            service.kill()
        except psutil.Error:  # it has ended meanwhile
            continue
