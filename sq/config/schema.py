"""The settings of a run: their names and types, and what makes no sense before anything is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sq.errors import SqError

FAMILIES = (
    "model",
    "dataset",
    "calibration",
    "grid",
    "sensitivity",
    "allocation",
    "trials",
    "activation",
    "quantizer",
    "correction",
    "export",
    "latency",
    "metric",
    "tracker",
)

ENDS = ("all", "8bit", "keep")  # what sq/network/first_last.py does


MOST_THREADS = 2**15  # more than any machine has cores
LARGEST = 2**63 - 1  # what 64 bits hold, which is what PyTorch counts with
RETRY = ("failed", "none", "all")


@dataclass
class SweepConfig:
    """Types of the settings of a sweep as a whole."""

    dry_run: bool = False
    retry: str = "failed"
    shard: str | None = None
    max_runs: int = 1000


@dataclass
class Config:
    """Types of the settings in ``conf/config.yaml``; the values stand there."""

    name: str
    bits: float
    seed: int
    device: str
    threads: int | None
    batch_size: int | None
    workers: int | None
    fold: bool
    ends: str
    positions: float
    results: str
    outputs: str
    cache: str | None
    cache_gib: float
    rerun: bool
    plugins: list[str]
    sweep: SweepConfig
    # The families: the knobs of each are typed by the function its YAML names (see
    # sq/config/instantiate.py).
    model: Any
    dataset: Any
    calibration: Any
    grid: Any
    sensitivity: Any
    allocation: Any
    trials: Any
    activation: Any
    quantizer: Any
    correction: Any
    export: Any
    latency: Any
    metric: Any
    tracker: Any


def register() -> None:
    """Make the schema, and `any_keys`, known to Hydra, under the names that defaults lists use.

    Hydra refuses a setting that no YAML file has. A mapping whose keys are the user's to name, such
    as the arguments of a constructor, is opened by ``/any_keys@NAME`` in the defaults list of its
    file.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import MISSING, OmegaConf

    names = Config.__dataclass_fields__
    store = ConfigStore.instance()
    store.store("schema", Config(**dict.fromkeys(names, MISSING)))
    store.store("any_keys", OmegaConf.create({}, flags={"struct": False}))


def kind(name: str) -> str:
    """Return in words what a value of the setting `name` is, by the types above."""
    part: Any = Config
    for word in name.split("."):
        part = typing.get_type_hints(part).get(word) if dataclasses.is_dataclass(part) else None
    kinds = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    if dataclasses.is_dataclass(part):
        return "a mapping"
    return "a list" if typing.get_origin(part) is list else kinds.get(part, "a value")


def problems(config: Mapping[str, Any]) -> list[str]:
    """List what is wrong with a resolved config that can be seen without loading anything."""
    names = Config.__dataclass_fields__
    # Hydra lets "+name=value" add what the schema does not have, and "~name" delete what it has.
    found = [
        f"{name}: no such setting; {nearest(name, names)}" for name in config if name not in names
    ]
    found += [
        f"{name}: no value; it was deleted or never given"
        for name in names
        if config.get(name, "???") == "???"
    ]
    found += [
        f"{name}={config[name]}: no choice was made"
        for name in FAMILIES
        if not _is_choice(config.get(name))
    ]
    flat = list(leaves(config).items())
    found += [
        f"{k}={v}: should be a finite number"
        for k, v in flat
        if isinstance(v, float) and not math.isfinite(v)
    ]
    # of settings with one value, the first
    too_large = {str(v): k for k, v in reversed(flat) if _too_large(v)}
    found += [f"{k}={v}: whole numbers go up to {LARGEST}" for v, k in too_large.items()]
    if found:
        return found
    bits, grid = config["bits"], config["grid"]
    if not 1 <= bits <= 16:
        found.append(f"bits={_short(bits)}: allowed are 1 to 16 (2 to 16 on a symmetric grid)")
    elif bits < 2 and grid.get("symmetric"):
        found.append(
            f"bits={_short(bits)} grid.symmetric=true: a symmetric grid needs 2 bits or more"
        )
    found += sweep_problems(config["sweep"])
    found += _machine_problems(config)
    found += _cache_problems(config)
    if config["ends"] not in ENDS:
        found.append(f"ends={config['ends']}: {nearest(config['ends'], ENDS)}")
    if not 0 < config["positions"] <= 1:
        found.append(f"positions={_short(config['positions'])}: a share, above 0 and up to 1")
    elif config["positions"] < 1 and config["calibration"].get("inputs") == "quantized":
        found.append(
            "positions<1 calibration.inputs=quantized: all positions are used then; set positions=1"
        )
    if not config["name"] or set(config["name"]) & set("/\\=, ") or config["name"].startswith("."):
        found.append(
            f"name={config['name']!r}: the name of a folder, without separators, spaces, '=' or ','"
        )
    return found


def sweep_problems(settings: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the settings of a sweep."""
    found = []
    if settings["retry"] not in RETRY:
        found.append(f"sweep.retry={settings['retry']}: {nearest(settings['retry'], RETRY)}")
    if settings["max_runs"] < 1:
        found.append(f"sweep.max_runs={settings['max_runs']}: 1 or more")
    if (shard := settings["shard"]) is not None:
        parts = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
        if parts is None or int(parts[1]) > int(parts[2]):
            found.append(f"sweep.shard={shard}: k/n, the k-th of n shares of the runs, such as 2/8")
    return found


def check(config: Mapping[str, Any]) -> None:
    """Raise an `SqError` that names everything wrong with `config`."""
    if found := problems(config):
        raise SqError("; ".join(found))


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return "nearest: ..." for the choices that look like `word`, or all of them if none does."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    return f"nearest: {', '.join(near)}" if near else f"choices: {', '.join(choices)}"


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted names."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat |= leaves(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _machine_problems(config: Mapping[str, Any]) -> list[str]:
    found = []
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config["device"]):
        found.append(f"device={config['device']}: allowed are auto, cpu, cuda, cuda:N")
    if config["seed"] < 0:
        found.append(f"seed={config['seed']}: allowed are 0 to {LARGEST}")
    for name, least in (("threads", 1), ("batch_size", 1), ("workers", 0)):
        if config[name] is not None and config[name] < least:
            found.append(f"{name}={config[name]}: at least {least}, or null")
    if config["threads"] is not None and config["threads"] > MOST_THREADS:
        found.append(f"threads={config['threads']}: at most {MOST_THREADS}, or null")
    return found


def _cache_problems(config: Mapping[str, Any]) -> list[str]:
    found = []
    if config["cache"] == "":  # would be the working folder
        found.append("cache='': a folder, or null for none")
    if config["cache_gib"] <= 0:
        found.append(
            f"cache_gib={_short(config['cache_gib'])}: above 0; cache=null keeps no statistics"
        )
    return found


def _too_large(value: Any) -> bool:
    if isinstance(value, list):
        return any(_too_large(own) for own in value)
    return isinstance(value, int) and abs(value) > LARGEST


def _is_choice(part: Any) -> bool:
    return isinstance(part, Mapping) or part in (None, "???")  # absent ones are listed already


def _short(number: float) -> str:
    return f"{number:g}"
