"""Where a result comes from: the code, the packages and the machine that computed it."""

from __future__ import annotations

import datetime
import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from sq.core import paths, plugins, processor

PACKAGES = (
    *("torch", "torchvision", "timm", "scipy", "numpy", "scikit-learn", "hydra-core", "omegaconf"),
    *("brevitas", "model-compression-toolkit"),
)


def collect(device: Any, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return commit, versions, device and start time of a run on `device` (a `torch.device`).

    Parameters
    ----------
    config : of the run; version and code hash of each plugin that it uses are returned too
    """
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor.name()
    used_plugins = plugins.describe(config or {})
    machine = (
        f"{platform.node()} {name} {torch.get_num_threads()} {device.type} {torch.__version__}"
    )
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **_commit(),
        "sq": metadata.version("sq") if _installed("sq") else "not installed",
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
        **({"plugins": used_plugins} if used_plugins else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "processor": name,
        "instructions": processor.instruction_set(),
        "vnni": processor.vnni(),
        "threads": torch.get_num_threads(),
        # Times compare only where this is equal. Hashed, because a host name may be confidential.
        "machine": hashlib.sha256(machine.encode()).hexdigest()[:16],
    }


def _commit() -> dict[str, Any]:
    """Return commit and whether the code differs from it; None where git does not report them."""
    if paths.CHECKOUT is None:  # a wheel: a repository around it is another project's
        return {"commit": None, "dirty": None}
    # Only the code and its settings count: a new record does not make the tree dirty.
    status = _git("status", "--porcelain", "--", ":/sq", ":/conf", ":/run.py")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    """Return the output of a git command in the checkout, None if it fails."""
    try:
        process = subprocess.run(
            ["git", "-C", str(paths.CHECKOUT), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
