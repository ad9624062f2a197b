"""Set up PyTorch in a process: import it, and choose threads, device and repeatable arithmetic."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sq.errors import SqError, one_line
from sq.runtime import malloc

_exact = threading.RLock()  # PyTorch has one set of precisions for all threads
_threads = 0  # PyTorch's default number, once it is known


def import_torch() -> None:
    """Import torch, with the environment variables that it reads once.

    torchvision is left out: its import takes as long as that of torch, and many runs need none.
    """
    # The libraries read both variables once, when they start.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Threads that spin while they wait block each other on shared cores: OBQ took 185 s beside one
    # other busy process, and 10 s with threads that sleep (results/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    malloc.keep()
    import torch  # noqa: F401


def import_torchvision() -> None:
    """Import torchvision, and explain the common failure; timm imports it as well.

    Raises
    ------
    SqError : torchvision was built for another torch
    """
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError) as error:
        raise SqError(
            f"torch and torchvision do not fit together ({one_line(error)}): install both from the "
            "same index, python -m pip install --force-reinstall 'torch>=2.14' 'torchvision>=0.29'"
        ) from error


def prepare(config: Mapping[str, Any]) -> Any:
    """Set up PyTorch for a reproducible run and return the device (a `torch.device`).

    Raises
    ------
    SqError : the device does not exist here
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
    # Same as `use_deterministic_algorithms(True, warn_only=True)`, which would spend seconds on
    # importing PyTorch's compiler.
    torch.set_deterministic_debug_mode("warn")
    # The line above turns it on: every new tensor is filled with NaN, a tenth of a forward pass. It
    # would only make reads of uninitialized memory repeatable, which are bugs anyway.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _precisions() -> tuple[Any, ...]:
    """Return the backends of PyTorch that have their own precision for float32 products."""
    import torch

    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    return backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn


@contextmanager
def exactly() -> Iterator[None]:
    """Let PyTorch compute as in a run for the block, in the process of another program."""
    import torch

    filling: Any = torch.utils.deterministic
    backends: Any = torch.backends
    with _exact:
        precisions = [part.fp32_precision for part in _precisions()]
        settings = torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory
        mode = torch.get_deterministic_debug_mode()
        try:
            # Not by `allow_tf32`, which raises where the caller has set these. A run uses it all
            # the same, since the exporters of PyTorch raise where these differ from it.
            for part in _precisions():
                part.fp32_precision = "ieee"
            _be_repeatable()
            yield
        finally:
            for part, precision in zip(_precisions(), precisions, strict=True):
                # "none" follows the precision of all backends, as the caller may have set it
                inherited = precision == backends.fp32_precision
                part.fp32_precision = "none" if inherited else precision
            torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory = settings
            torch.set_deterministic_debug_mode(mode)
