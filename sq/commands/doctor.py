"""``sq doctor``: report packages, hardware and data, and whether sq can run its default."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sq import __version__
from sq.core import closed_pipe, installation, paths, processor
from sq.core.wording import quantity
from sq.errors import SqError, one_line

GIB = 2**30
OLDEST_PYTHON = (3, 10)  # as in pyproject.toml
SLURM = ("sbatch", "sinfo", "sacct")  # programs that hydra/launcher=slurm calls
# the settings of conf/ that name files of the user
FILES = {"dataset": "root", "model": "weights"}


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="What is installed and found here. "
        "Exit code: 0 if sq can run its default, else 1.",
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    return parser


@closed_pipe.quiet
def main(arguments: list[str] | None = None, prog: str = "python -m sq doctor") -> int:
    """Parse the command line, print a report; return 0 if sq can run its default, else 1."""
    options = parser(prog).parse_args(arguments)
    report = examine()
    text = json.dumps(report, indent=1) if options.json else "\n".join(lines(report))
    sys.stdout.write(f"{text}\n")  # not through sq.core.progress: rich may be missing
    return 1 if report["problems"] else 0


def examine() -> dict[str, Any]:
    """Return the report as JSON data; `problems` says what keeps the default from running."""
    problems = [*_unmet()]
    torch: dict[str, Any] = {}
    gpus: list[dict[str, Any]] = []
    if not problems:
        try:
            torch, gpus = _torch(), _gpus()
            _try_default()
        except Exception as error:  # any error would fail a run as well
            problems.append(one_line(error))
    return {
        "sq": {
            "version": __version__,
            "folder": str(paths.PACKAGE),
            "checkout": paths.CHECKOUT is not None,
        },
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "packages": _packages(installation.CORE),
        "extras": {
            part: _packages(part)
            for part in installation.requirements()
            if part != installation.CORE
        },
        "torch": torch,
        "cpu": cpu(),
        "memory": _memory(),
        "gpus": gpus,
        "slurm": {
            **{program: shutil.which(program) for program in SLURM},
            "job": os.environ.get("SLURM_JOB_ID"),
        },
        **({"wandb": _wandb()} if installation.version("hydra-core") else {}),
        **({"data": _data()} if installation.version("pyyaml") else {}),
        "disk": _disk(),
        "problems": problems,
    }


def cpu() -> dict[str, Any]:
    """Return model of the CPU, whether it has VNNI, and its cores, in all and of this process."""
    from sq.core import cpu_cores

    return {
        "model": processor.name(),
        "vnni": processor.vnni() if installation.version("torch") else None,
        "cores": os.cpu_count(),
        "own": cpu_cores.own(),
        "used": cpu_cores.available(),
    }


def _unmet() -> Iterator[str]:
    """Yield a problem for Python and for the packages that every run needs, if they are missing."""
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield f"Python {platform.python_version()}: {oldest} or newer is needed"
    absent = installation.missing(installation.CORE)
    if absent:
        versions = ", ".join(
            f"{package.name} {installation.version(package.name) or 'missing'}"
            for package in absent
        )
        yield f"{versions}: {installation.install(absent)}"


def _packages(part: str) -> dict[str, dict[str, Any]]:
    """Return the packages of the core or an extra by name: required and installed versions."""
    packages = {}
    for requirement in installation.requirements().get(part, []):
        version = installation.version(requirement.name)
        packages[requirement.name] = {
            "required": str(requirement.specifier),
            "installed": None if version is None else str(version),
            "met": installation.meets(requirement),
        }
    return packages


def _torch() -> dict[str, Any]:
    """Import torch and torchvision; return the instruction set, threads and CUDA version.

    Raises
    ------
    SqError : they do not fit together
    """
    from sq.runtime import torch_setup

    torch_setup.import_torch()
    torch_setup.import_torchvision()
    import torch

    return {
        "instruction_set": processor.instruction_set(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
    }


def _gpus() -> list[dict[str, Any]]:
    import torch

    gpus = []
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        gpus.append({"name": gpu.name, "memory_gib": round(gpu.total_memory / GIB, 1)})
    return gpus


def _try_default() -> None:
    """Load what a run of the default config loads, and compute a forward pass.

    Raises
    ------
    SqError : something does not work, such as a folder that cannot be written
    """
    import hydra
    import torch

    from sq.config.instantiate import build
    from sq.network.forward import forward
    from sq.runs import loader
    from sq.runs.sweep import expand

    with hydra.initialize_config_dir(loader.CONF, version_base="1.3"):
        config = expand.resolve(hydra.compose("config"))
    for setting in ("results", "outputs"):
        folder = _existing(Path(config[setting]))
        if not os.access(folder, os.W_OK):
            raise SqError(
                f"{folder} cannot be written: give {setting}=FOLDER, or work in another folder"
            )
    model, data = build(config["model"], "model")(), build(config["dataset"], "dataset")()
    with torch.no_grad():
        logits = forward(model.net, torch.zeros(1, *model.input))
    is_finite = bool(torch.isfinite(logits).all())
    if logits.ndim != 2 or not is_finite or not len(data.test.ids):
        raise SqError("the default network does not compute: install sq and torch again")


def _memory() -> dict[str, float]:
    try:
        import psutil
    except ModuleNotFoundError:
        return {}
    memory = psutil.virtual_memory()
    return {"total_gib": round(memory.total / GIB, 1), "free_gib": round(memory.available / GIB, 1)}


def _wandb() -> dict[str, Any]:
    """Return the mode that a run would have here by default, and W&B's own variable."""
    from sq.config import resolvers

    mode = resolvers.read("tracker/wandb", outputs="outputs")["mode"]
    return {"mode": mode, "environment": os.environ.get("WANDB_MODE")}


def _data() -> dict[str, Any]:
    """Return the path of each choice's files in conf/, None if they are not here.

    Choices without files of the user, such as weights from a hub, are left out.
    """
    data: dict[str, Any] = {"SQ_DATA": os.environ.get("SQ_DATA")}
    for family, setting in FILES.items():
        data[family] = {}
        for file in sorted((paths.CONF / family).glob("*.yaml")):
            path = _setting(file, setting)
            if path:
                data[family][file.stem] = _located(path, f"{family}.{setting}")
    return data


def _setting(file: Path, name: str) -> str | None:
    """Return the first value of a setting in a YAML file, at any depth, None if it has none."""
    import yaml

    from sq.config.schema import leaves

    for key, value in leaves(yaml.safe_load(file.read_text())).items():
        if key.rpartition(".")[2] == name and value:
            return value
    return None


def _located(path: str, setting: str) -> str | None:
    from sq.config import data_paths

    try:
        return str(data_paths.find(path, setting))
    except SqError:
        return None


def _disk() -> dict[str, dict[str, Any]]:
    """Return the free disk space of the folders that a run reads and writes."""
    folders = {
        "working directory": Path.cwd(),
        "results": Path("results"),
        "outputs": Path("outputs"),
    }
    base = os.environ.get("SQ_DATA")
    if base:
        folders["SQ_DATA"] = Path(base).expanduser()
    disk = {}
    for name, folder in folders.items():
        existing = _existing(folder)
        free = shutil.disk_usage(existing).free
        disk[name] = {"folder": str(existing), "free_gib": round(free / GIB, 1)}
    return disk


def _existing(folder: Path) -> Path:
    """Return `folder`, or its nearest parent that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report of `examine` line by line."""
    sq, python, problems = report["sq"], report["python"], report["problems"]
    kind = "checkout" if sq["checkout"] else "wheel"
    yield f"sq {sq['version']}, {kind} in {sq['folder']}"
    yield f"Python {python['version']}, {python['executable']}"
    yield "packages: " + (_versions(report["packages"]) or "unknown: sq is not installed")
    for extra, packages in report["extras"].items():
        yield _extra(extra, packages)
    yield from _machine(report)
    yield _slurm(report["slurm"])
    if "wandb" in report:
        variable = report["wandb"]["environment"]
        suffix = f", WANDB_MODE={variable}" if variable else ""
        yield f"W&B: tracker.mode={report['wandb']['mode']}{suffix}"
    if "data" in report:
        yield from _files(report["data"])
    disk = report["disk"]
    for folder, names in _by_folder(disk).items():
        yield f"disk: {disk[names[0]]['free_gib']} GiB free in {folder} ({', '.join(names)})"
    for problem in problems:
        yield f"problem: {problem}"
    if problems:
        yield "sq cannot run its default here"
    else:
        yield "sq can run its default here: sq run"


def _versions(packages: Mapping[str, Any]) -> str:
    versions = [f"{name} {package['installed'] or 'missing'}" for name, package in packages.items()]
    return ", ".join(versions)


def _extra(extra: str, packages: Mapping[str, Any]) -> str:
    lacking = []
    for name, package in packages.items():
        if not package["met"]:
            installed = package["installed"]
            suffix = f" (here {installed})" if installed else ""
            lacking.append(f"{name} {package['required']}{suffix}")
    if not lacking:
        return f"extra {extra}: complete ({_versions(packages)})"
    return f"extra {extra}: lacks {', '.join(lacking)}: {installation.command(extra)}"


def _machine(report: Mapping[str, Any]) -> Iterator[str]:
    cpu, torch, memory = report["cpu"], report["torch"], report["memory"]
    line = (
        f"CPU: {cpu['model']}, {quantity(cpu['cores'] or 1, 'core')}, "
        f"{cpu['own']} of them for this process"
    )
    if torch:
        vnni = {True: " with VNNI", False: " without VNNI", None: ""}[cpu["vnni"]]
        line += (
            f"; instruction set {torch['instruction_set']}{vnni}, "
            f"{quantity(torch['threads'], 'thread')} in torch"
        )
    yield line
    if memory:
        yield f"memory: {memory['total_gib']} GiB, {memory['free_gib']} free"
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in report["gpus"])
    yield f"GPU: {gpus or 'none that torch can use'}"


def _slurm(programs: Mapping[str, str | None]) -> str:
    absent = [program for program in SLURM if not programs[program]]
    inside = f", inside job {programs['job']}" if programs["job"] else ""
    if len(absent) == len(SLURM):
        return f"SLURM: not here{inside}"
    if absent:
        return f"SLURM: {', '.join(absent)} not found{inside}"
    return f"SLURM: {', '.join(SLURM)} found{inside}"


def _files(data: Mapping[str, Any]) -> Iterator[str]:
    from sq.config.data_paths import CONTENT

    base = data["SQ_DATA"] or f"not set: the folder that holds {CONTENT}"
    yield f"SQ_DATA: {base}"
    for family in FILES:
        present = [choice for choice, path in data[family].items() if path]
        absent = [choice for choice, path in data[family].items() if not path]
        yield (
            f"  {family}: found {', '.join(present) or 'none'}; "
            f"not here: {', '.join(absent) or 'none'}"
        )


def _by_folder(disk: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of each folder: several can be the same."""
    folders: dict[str, list[str]] = {}
    for name, space in disk.items():
        folders.setdefault(space["folder"], []).append(name)
    return folders
