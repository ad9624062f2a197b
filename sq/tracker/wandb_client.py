"""W&B's client: loaded when it is needed, kept quiet, and never waited for without end.

It works through a service, a process of its own, and waits for that one's end without a limit:
where a server cannot be reached, that can be forever.
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

START = 30  # seconds at most for the service to begin
LEAVE = 10  # seconds at most for it to end, once nothing is left to send
SERVICE = "wandb-core"


def load(where: Destination) -> Any:
    """Return the module, quiet, its files kept in the folder they should be in.

    Raises
    ------
    SqError : there is no client, or its service does not begin
    """
    # Tables wait here for `wandb sync`; by default they would wait in the user's home.
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(where.dir).absolute()))
    wandb = module()
    # each line that its logs have no room for would leave a traceback on the terminal
    logging.raiseExceptions = False
    _end_with_us()
    if where.mode == "online":
        quiet = wandb.Settings(silent=True)  # for what is asked before a run begins
        try:
            within(lambda: wandb.setup(quiet), START)
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
    """Find the key, and never ask for it: whoever could answer does not see the question.

    Raises
    ------
    SqError : there is none
    """
    if wandb.run is None and not wandb.login(prompt=False, verify=False):
        raise SqError(
            "there is no key (run `wandb login`, or set WANDB_API_KEY), or WANDB_MODE says offline"
        )


def settings(wandb: Any, timeout: int) -> Any:
    """Return settings with which W&B gathers nothing itself: that takes 0.3 s a run, and may be of another machine."""
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
        stop_fn=lambda: None,  # a button in W&B would interrupt the whole sweep
    )


def end(wandb: Any, seconds: float = LEAVE) -> None:
    """End the client in this process; after `seconds` its service is stopped, whatever it still waits for."""
    own = _services()
    try:
        within(wandb.teardown, seconds)
    except TimeoutError:
        _stop(own)


@functools.cache
def _end_with_us() -> None:
    """Stop the service if it outlives the main thread's work, once for a process.

    W&B waits for it as the interpreter ends, when no thread can be started any more: so this one is
    started now.
    """

    def wait() -> None:
        threading.main_thread().join()
        time.sleep(LEAVE)
        _stop(_services())

    threading.Thread(target=wait, name="end of W&B", daemon=True).start()


def _services() -> list[psutil.Process]:
    import psutil

    try:
        return [child for child in psutil.Process().children() if child.name().startswith(SERVICE)]
    except psutil.Error:  # one has just ended
        return []


def _stop(services: list[psutil.Process]) -> None:
    import psutil

    for own in services:
        try:
            own.kill()
        except psutil.Error:  # it has ended meanwhile
            continue
