"""``sq doctor``: what is installed here, what this machine has, what is found, and whether sq can run its default."""

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
OLDEST = (3, 10)  # Python, as pyproject.toml has it
SLURM = ("sbatch", "sinfo", "sacct")  # what hydra/launcher=slurm calls
# the settings of conf/ that name files of the user's
FILES = {"dataset": "root", "model": "weights"}


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of its command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="What is installed and found here. Exit code: 0 if sq can run its default, else 1.",
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    return parser


@closed_pipe.quiet
def main(words: list[str] | None = None, prog: str = "python -m sq doctor") -> int:
    """Parse the command line, look, print; return 0 if sq can run its default, else 1."""
    options = parser(prog).parse_args(words)
    found = examine()
    text = json.dumps(found, indent=1) if options.json else "\n".join(lines(found))
    sys.stdout.write(f"{text}\n")  # not through sq.core.progress: rich may be what is missing
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    """Return all that is found, as JSON has it; `problems` names what keeps the default from running."""
    problems = [*_unmet()]
    torch: dict[str, Any] = {}
    gpus: list[dict[str, Any]] = []
    if not problems:
        try:
            torch, gpus = _torch(), _gpus()
            _try_default()
        except Exception as error:  # whatever stands in the way of a run is the answer
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
    """Return the model of the CPU, whether it has VNNI, its cores, and how many of them are this process's."""
    from sq.core import cpu_cores

    return {
        "model": processor.name(),
        "vnni": processor.vnni() if installation.version("torch") else None,
        "cores": os.cpu_count(),
        "own": cpu_cores.own(),
        "used": cpu_cores.available(),
    }


def _unmet() -> Iterator[str]:
    """Yield what is not installed that every run needs."""
    if sys.version_info < OLDEST:
        yield f"Python {platform.python_version()}: {'.'.join(map(str, OLDEST))} or newer is needed"
    if absent := installation.missing(installation.CORE):
        told = ", ".join(
            f"{one.name} {installation.version(one.name) or 'missing'}" for one in absent
        )
        yield f"{told}: {installation.install(absent)}"


def _packages(part: str) -> dict[str, dict[str, Any]]:
    """Return the packages of the core, or of an extra, by name: what is required, what is here, whether it will do."""
    return {
        one.name: {
            "required": str(one.specifier),
            "installed": None if (found := installation.version(one.name)) is None else str(found),
            "met": installation.meets(one),
        }
        for one in installation.requirements().get(part, [])
    }


def _torch() -> dict[str, Any]:
    """Import torch and torchvision; return what they compute with.

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

    every = [
        torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())
    ]
    return [{"name": one.name, "memory_gib": round(one.total_memory / GIB, 1)} for one in every]


def _try_default() -> None:
    """Load what a run of the default config loads, and let the network see an image.

    Raises
    ------
    SqError : of what does not work, such as a folder that cannot be written
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
    if logits.ndim != 2 or not bool(torch.isfinite(logits).all()) or not len(data.test.ids):
        raise SqError("the default network does not compute: install sq and torch again")


def _memory() -> dict[str, float]:
    try:
        import psutil
    except ModuleNotFoundError:
        return {}
    found = psutil.virtual_memory()
    return {"total_gib": round(found.total / GIB, 1), "free_gib": round(found.available / GIB, 1)}


def _wandb() -> dict[str, Any]:
    """Return the mode a run would have here if none is typed, and what W&B's own variable says."""
    from sq.config import resolvers

    mode = resolvers.read("tracker/wandb", outputs="outputs")["mode"]
    return {"mode": mode, "environment": os.environ.get("WANDB_MODE")}


def _data() -> dict[str, Any]:
    """Return where the files are that conf/ names: of each choice the path, None if it is not here.

    Choices without files of the user's, such as weights from a hub, are left out.
    """
    found: dict[str, Any] = {"SQ_DATA": os.environ.get("SQ_DATA")}
    for family, setting in FILES.items():
        found[family] = {}
        for file in sorted((paths.CONF / family).glob("*.yaml")):
            if path := _setting(file, setting):
                found[family][file.stem] = _found(path, f"{family}.{setting}")
    return found


def _setting(file: Path, name: str) -> str | None:
    import yaml

    from sq.config.schema import leaves

    flat = leaves(yaml.safe_load(file.read_text()))
    return next(
        (value for key, value in flat.items() if key.rpartition(".")[2] == name and value), None
    )


def _found(path: str, setting: str) -> str | None:
    from sq.config import data_paths

    try:
        return str(data_paths.find(path, setting))
    except SqError:
        return None


def _disk() -> dict[str, dict[str, Any]]:
    """Return what is free where a run writes and reads."""
    folders = {
        "working directory": Path.cwd(),
        "results": Path("results"),
        "outputs": Path("outputs"),
    }
    if base := os.environ.get("SQ_DATA"):
        folders["SQ_DATA"] = Path(base).expanduser()
    every = {name: _existing(folder) for name, folder in folders.items()}
    return {
        name: {"folder": str(folder), "free_gib": round(shutil.disk_usage(folder).free / GIB, 1)}
        for name, folder in every.items()
    }


def _existing(folder: Path) -> Path:
    """Return `folder`, or the nearest above it that is there."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `examine` has found, line by line."""
    own, python = found["sq"], found["python"]
    kind = "checkout" if own["checkout"] else "wheel"
    yield f"sq {own['version']}, {kind} in {own['folder']}"
    yield f"Python {python['version']}, {python['executable']}"
    yield "packages: " + (_versions(found["packages"]) or "unknown: sq is not installed")
    for extra, packages in found["extras"].items():
        yield _extra(extra, packages)
    yield from _machine(found)
    yield _slurm(found["slurm"])
    if "wandb" in found:
        given = found["wandb"]["environment"]
        yield f"W&B: tracker.mode={found['wandb']['mode']}" + (
            f", WANDB_MODE={given}" if given else ""
        )
    if "data" in found:
        yield from _files(found["data"])
    for folder, names in _by_folder(found["disk"]).items():
        yield f"disk: {found['disk'][names[0]]['free_gib']} GiB free in {folder} ({', '.join(names)})"
    for problem in found["problems"]:
        yield f"problem: {problem}"
    yield (
        "sq cannot run its default here"
        if found["problems"]
        else "sq can run its default here: sq run"
    )


def _versions(packages: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {one['installed'] or 'missing'}" for name, one in packages.items())


def _extra(extra: str, packages: Mapping[str, Any]) -> str:
    lacking = [name for name, one in packages.items() if not one["met"]]
    if not lacking:
        return f"extra {extra}: complete ({_versions(packages)})"
    told = ", ".join(
        f"{name} {packages[name]['required']}"
        + (f" (here {old})" if (old := packages[name]["installed"]) else "")
        for name in lacking
    )
    return f"extra {extra}: lacks {told}: {installation.command(extra)}"


def _machine(found: Mapping[str, Any]) -> Iterator[str]:
    own, torch, memory = found["cpu"], found["torch"], found["memory"]
    told = f"{own['model']}, {quantity(own['cores'] or 1, 'core')}, {own['own']} of them for this process"
    if torch:
        vnni = {True: " with VNNI", False: " without VNNI", None: ""}[own["vnni"]]
        told += f"; instruction set {torch['instruction_set']}{vnni}, {quantity(torch['threads'], 'thread')} in torch"
    yield f"CPU: {told}"
    if memory:
        yield f"memory: {memory['total_gib']} GiB, {memory['free_gib']} free"
    gpus = ", ".join(f"{one['name']} ({one['memory_gib']} GiB)" for one in found["gpus"])
    yield f"GPU: {gpus or 'none that torch can use'}"


def _slurm(found: Mapping[str, str | None]) -> str:
    absent = [program for program in SLURM if not found[program]]
    inside = f", inside job {found['job']}" if found["job"] else ""
    if len(absent) == len(SLURM):
        return f"SLURM: not here{inside}"
    return (
        "SLURM: "
        + (f"{', '.join(absent)} not found" if absent else f"{', '.join(SLURM)} found")
        + inside
    )


def _files(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"SQ_DATA: {found['SQ_DATA'] or 'not set: the folder that holds weights/, cifar10/, imagenet/ and coco/'}"
    for family in FILES:
        here = [choice for choice, path in found[family].items() if path]
        absent = [choice for choice, path in found[family].items() if not path]
        yield f"  {family}: found {', '.join(here) or 'none'}; not here: {', '.join(absent) or 'none'}"


def _by_folder(disk: Mapping[str, Any]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for name, one in disk.items():
        folders.setdefault(one["folder"], []).append(name)
    return folders
