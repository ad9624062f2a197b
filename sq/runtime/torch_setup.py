"""What must be done once in a process before anything is computed: torch imported, its threads and device chosen."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sq.errors import SqError, one_line
from sq.runtime import malloc

_exact = threading.RLock()  # PyTorch has one state for all threads
_threads = 0  # PyTorch's own number, once it is known


def import_torch() -> None:
    """Import torch, with the settings that it reads once.

    Not torchvision: a run that needs none of it would spend as long on its import as on that of
    torch.
    """
    # Both are read once, when the libraries start.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Threads that wait by spinning stand in each other's way where cores are shared: OBQ took 185 s
    # beside one other busy process, 10 s with threads that sleep (results/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    malloc.keep()
    import torch  # noqa: F401


def import_torchvision() -> None:
    """Import torchvision, and explain the one way in which that commonly fails; timm imports it as well.

    Raises
    ------
    SqError : torchvision was built for another torch
    """
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError) as error:
        raise SqError(
            f"torch and torchvision do not fit together ({one_line(error)}): install both from the same "
            "index, python -m pip install --force-reinstall 'torch>=2.14' 'torchvision>=0.29'"
        ) from error


def prepare(config: Mapping[str, Any]) -> Any:
    """Set up PyTorch for a reproducible run and return the device (a `torch.device`).

    Raises
    ------
    SqError : a device that does not exist here
    """
    import torch

    name = config["device"]
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition(". ")[0]
        raise SqError(
            f"device={config['device']}: {reason}; allowed: auto, cpu, cuda, cuda:N"
        ) from error
    global _threads
    _threads = _threads or torch.get_num_threads()  # before anything has changed it
    torch.set_num_threads(config["threads"] or _threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    _be_repeatable()
    torch.manual_seed(config["seed"])
    return device


def _be_repeatable() -> None:
    """Make PyTorch compute in the same order each time."""
    import torch

    torch.backends.cudnn.benchmark = False
    # As `use_deterministic_algorithms(True, warn_only=True)`, which would import PyTorch's compiler
    # first, for seconds.
    torch.set_deterministic_debug_mode("warn")
    # On by default with the line above: fills every new tensor with NaN first, a tenth of a forward
    # pass. It would only make the reading of memory never written repeatable, which is a fault
    # wherever it happens.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _precisions() -> tuple[Any, ...]:
    """Return what has a precision of its own for products of float32."""
    import torch

    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    return backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn


@contextmanager
def exactly() -> Iterator[None]:
    """Let PyTorch compute as in a run for a while, in a process that is somebody else's; one thread at a time."""
    import torch

    filled: Any = torch.utils.deterministic
    every: Any = torch.backends
    with _exact:
        precisions = [part.fp32_precision for part in _precisions()]
        before = torch.backends.cudnn.benchmark, filled.fill_uninitialized_memory
        mode = torch.get_deterministic_debug_mode()
        try:
            # Not by `allow_tf32`, which raises where the caller has set these; PyTorch's exporters
            # raise where these differ from it, so that a run, which exports, does it the other way.
            for part in _precisions():
                part.fp32_precision = "ieee"
            _be_repeatable()
            yield
        finally:
            for part, precision in zip(_precisions(), precisions, strict=True):
                # as all have it
                part.fp32_precision = "none" if precision == every.fp32_precision else precision
            torch.backends.cudnn.benchmark, filled.fill_uninitialized_memory = before
            torch.set_deterministic_debug_mode(mode)
