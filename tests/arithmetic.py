"""Run the numeric tests under the arithmetic of other CPUs: ``python tests/arithmetic.py``.

Each row of `ARITHMETIC` is a process of its own whose libraries use older instructions than this
CPU has, other code in BLAS, or another number of threads, so that sums are added up in other
orders. That a library has heard is asked of the library, before any test: a setting without effect
is an error. An instruction set that this CPU does not have is left out, and said to be.

Options: ``--list`` prints the files and ends; ``--beside-suite`` leaves out what the suite without
any settings uses on this CPU; all others go to pytest (``-k NAME``, ``-x``, ...).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

ATEN = ("DEFAULT", "AVX2", "AVX512")  # in rising order; other kinds of CPU have other names
# A file is numeric if it computes, and compares what comes out.
COMPUTES = re.compile(r"^import (torch|numpy as np)$|^from torch import", re.MULTILINE)
COMPARES = re.compile(
    r"torch\.equal|allclose|isclose|approx\(|assert_within|assert_near|relative\("
)
# Whole runs take long, and compute nothing that the tests of their parts do not.
STARTS_RUNS = re.compile(r"^from cli_helpers import .*\bcall\b", re.MULTILINE)
# What these folders compare is text, files or times, or what ONNX Runtime computes, which hears
# none of the settings.
APART = {"bench", "dataset", "export", "latency", "report", "reproduce", "tracker"}
# Tests that say why one arithmetic is enough for them: see `markers` in pyproject.toml.
LEFT_OUT = "not one_arithmetic"
# These quantize, train or search with whole networks, for minutes. The files of their parts test
# the arithmetic.
WHOLE_NETWORKS = {
    "test_asq_ptq.py",
    "test_blockwise.py",
    "test_bn_matched.py",
    "test_cifar_resnet.py",
    "test_copies.py",
    "test_generated.py",
    "test_learned.py",
    "test_qat.py",
    "test_quantized_inputs.py",
    "test_routed.py",
    "test_timm.py",
    "test_trace.py",  # statistical: its bounds are standard errors
    "test_ultralytics.py",
    "test_weight_coverage.py",
}
SUITE_THREADS = 1  # what tests/conftest.py sets where nothing is said
BESIDE_SUITE = "--beside-suite"
EXAMPLES = "20"  # of each hypothesis test, a third of the usual number


class Arithmetic(NamedTuple):
    """Settings of one process, and what libraries must answer with them."""

    name: str
    aten: str  # of ATen's own kernels, one of `ATEN`
    onednn: str  # the most that convolutions use: SSE41, AVX2, AVX512_CORE, ...
    mkl: str  # conditional numerical reproducibility of MKL: COMPATIBLE, or OFF for the fastest
    openblas: str  # NumPy's and SciPy's BLAS
    threads: int

    def environment(self) -> dict[str, str]:
        """Return the environment variables that ask for it."""
        made = {
            "ATEN_CPU_CAPABILITY": self.aten.lower(),
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "OPENBLAS_CORETYPE": self.openblas,
            "OMP_NUM_THREADS": str(self.threads),
            "OPENBLAS_NUM_THREADS": str(self.threads),
            "SQ_TEST_THREADS": str(self.threads),
            "SQ_TEST_EXAMPLES": EXAMPLES,
            "OMP_WAIT_POLICY": "PASSIVE",  # processes share the cores
        }
        return made | ({"MKL_CBWR": self.mkl} if self.mkl != "OFF" else {})


ARITHMETIC = (
    Arithmetic("oldest", "DEFAULT", "SSE41", "COMPATIBLE", "Prescott", 2),
    Arithmetic("avx2", "AVX2", "AVX2", "OFF", "Haswell", 1),
    Arithmetic("avx512", "AVX512", "AVX512_CORE", "OFF", "SkylakeX", 1),
)


class Result(NamedTuple):
    """How the tests ended under one arithmetic: pytest's exit code, the seconds and what it printed."""

    code: int
    seconds: float
    output: str


# Prints what each library says it does, line by line.
PROBE = """
import numpy, scipy.linalg, threadpoolctl, torch
a = torch.randn(1, 64, 64)
torch.bmm(a, a.mT)
torch.nn.functional.conv2d(torch.randn(2, 16, 16, 16), torch.randn(16, 16, 3, 3))
print("aten", torch.backends.cpu.get_cpu_capability())
print("threads", torch.get_num_threads())
for library in threadpoolctl.threadpool_info():
    if library["internal_api"] == "openblas":
        print("openblas", library["architecture"])
"""
ANSWERS = {
    "aten": re.compile(r"^aten (\S+)", re.MULTILINE),
    "threads": re.compile(r"^threads (\d+)", re.MULTILINE),
    "openblas": re.compile(r"^openblas (\S+)", re.MULTILINE),
    "onednn": re.compile(r"^onednn_verbose.*,cpu,isa:(.*)$", re.MULTILINE),
    "mkl": re.compile(r"^MKL_VERBOSE \w*GEMM\w*\(.*CNR:(\S+)", re.MULTILINE),
}


def files() -> list[str]:
    """Return the numeric test files, relative to the root."""
    every = sorted(f for f in TESTS.rglob("test_*.py") if f.name not in WHOLE_NETWORKS)
    chosen = [
        f for f in every if f.relative_to(TESTS).parts[0] not in APART and _numeric(f.read_text())
    ]
    return [str(f.relative_to(ROOT)) for f in chosen]


def _numeric(text: str) -> bool:
    return bool(COMPUTES.search(text) and COMPARES.search(text) and not STARTS_RUNS.search(text))


def answers(environment: dict[str, str]) -> dict[str, str]:
    """Return what libraries say they use under an `environment`; what they do not say is left out."""
    told = {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=os.environ | environment | told,
        capture_output=True,
        text=True,
        check=True,
    )
    found = {name: pattern.search(done.stdout) for name, pattern in ANSWERS.items()}
    return {name: match.group(1) for name, match in found.items() if match}


def unheard(row: Arithmetic, reported: dict[str, str]) -> list[str]:
    """Return which settings had no effect, as libraries tell (see `answers`)."""
    wanted = {
        "aten": row.aten,
        "threads": str(row.threads),
        "onednn": row.onednn,
        "mkl": row.mkl,
        "openblas": row.openblas,
    }
    return [
        f"{name} is {reported[name]!r}, not {value!r}"
        for name, value in wanted.items()
        if name in reported and not _same(reported[name], value)
    ]


def _same(reported: str, wanted: str) -> bool:
    """Tell whether a library's own name for an instruction set is ours."""
    short = {"katmai": "prescott"}  # OpenBLAS calls every CPU of SSE alone by its oldest
    plain = re.sub(r"[^a-z0-9]", "", reported.lower().replace("intel", ""))
    plain = short.get(plain, plain)
    other = re.sub(r"[^a-z0-9]", "", wanted.lower()).removesuffix("core")
    return plain.startswith(other)


def run(row: Arithmetic, names: list[str], more: list[str], processes: int) -> Result:
    """Run the tests `names` under one arithmetic, in `processes` processes."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-n", str(processes) if processes > 1 else "0"]
    options = ["-p", "no:cacheprovider", "--tb=short", "-m", LEFT_OUT]
    done = subprocess.run(
        [*command, *options, *more, *names],
        cwd=ROOT,
        env=os.environ | row.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Result(done.returncode, time.perf_counter() - begun, done.stdout)


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def rows_to_run(beside_suite: bool) -> list[Arithmetic]:
    """Return the rows that this CPU has the instructions for; say what each uses, and what is left out.

    Parameters
    ----------
    beside_suite : leave out the row that the suite alone runs with on this CPU

    Raises
    ------
    SystemExit : a setting has no effect
    """
    best = answers({})["aten"]
    rows = []
    for row in ARITHMETIC:
        if best in ATEN and ATEN.index(row.aten) > ATEN.index(best):
            say(f"{row.name}: left out, this CPU has {best} and no {row.aten}")
            continue
        if beside_suite and row.aten == best and row.threads == SUITE_THREADS:
            say(f"{row.name}: left out, it is what the suite uses on this CPU")
            continue
        reported = answers(row.environment())
        if wrong := unheard(row, reported):
            say(f"{row.name}: a setting has no effect: {'; '.join(wrong)}")
            raise SystemExit(1)
        say(f"{row.name}: " + ", ".join(f"{name} {value}" for name, value in reported.items()))
        rows.append(row)
    return rows


def main(words: list[str]) -> int:
    """Run the rows that this CPU has the instructions for; return 1 if a test failed under any."""
    names = files()
    if words == ["--list"]:
        say("\n".join(names))
        return 0
    begun = time.perf_counter()
    rows = rows_to_run(BESIDE_SUITE in words)
    more = [word for word in words if word != BESIDE_SUITE]
    cores = os.cpu_count() or 1
    failed = 0
    with ThreadPoolExecutor(max(1, min(len(rows), cores))) as pool:
        each = max(1, cores // max(1, len(rows)))
        results = pool.map(lambda row: run(row, names, more, each), rows)
        for row, result in zip(rows, results, strict=True):
            summary = result.output.rstrip().rpartition("\n")[2]
            end = "passed" if result.code == 0 else "FAILED"
            say(f"{row.name}: {end} in {result.seconds:.0f} s: {summary}")
            if result.code != 0:
                failed += 1
                say(result.output)
    took, spent = time.perf_counter() - begun, os.times().children_user + os.times().children_system
    say(f"{len(names)} files, {len(rows)} kinds of arithmetic, {took:.0f} s ({spent:.0f} s of CPU)")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
