"""The processor: its name, its instruction set, and whether 8-bit products are exact.

An x86 processor without VNNI multiplies unsigned bytes by signed ones with an instruction that adds
two products in 16 bits and saturates: 255 * 127 + 255 * 127 gives 32,767. With VNNI (AVX512-VNNI,
AVX-VNNI or AMX) sums have 32 bits, as on Arm.
"""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
X86 = ("x86_64", "amd64", "i386", "i686", "x86")
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")  # as Linux calls them


@functools.cache
def name() -> str:
    """Return the processor's name, "unknown" where the system does not report it."""
    for line in _cpuinfo():
        if line.startswith(("model name", "Model\t")):
            return line.split(":", 1)[1].strip()
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or "unknown"


def is_x86() -> bool:
    """Tell whether the processor is of the x86 family."""
    return platform.machine().lower() in X86


@functools.cache
def flags() -> frozenset[str]:
    """Return its features by their Linux names, such as "avx2"; empty where none are listed."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    features = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}"
    return frozenset(features.lower().split())  # of Intel's Macs; Apple's own chips have none


def vnni() -> bool | None:
    """Tell whether it has VNNI instructions; None where that is unknown.

    Processors other than x86 neither have nor need them: see `saturates`.
    """
    if not is_x86():
        return False
    if flags():
        return not flags().isdisjoint(VNNI)
    return _vnni_by_torch()


def saturates() -> bool | None:
    """Tell whether sums of products of unsigned and signed bytes saturate; None if unknown."""
    if not is_x86():
        return False
    has_vnni = vnni()
    return None if has_vnni is None else not has_vnni


def instruction_set() -> str:
    """Return what PyTorch's operations use, such as "AVX2" or "AVX512"; "DEFAULT" is the oldest."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def _vnni_by_torch() -> bool | None:
    """Return True if PyTorch reports VNNI, else None: PyTorch recognises AVX512-VNNI only."""
    try:
        import torch
    except ImportError:
        return None
    is_supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return True if is_supported is not None and is_supported() else None


def _cpuinfo() -> list[str]:
    try:
        return CPUINFO.read_text().splitlines()
    except OSError:
        return []


def _sysctl(key: str) -> str:
    """Return a value that macOS reports of its processor, "" on other systems."""
    if platform.system() != "Darwin":
        return ""
    try:
        process = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""
