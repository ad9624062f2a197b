"""The settings of a run: names, types, and checks that need nothing loaded."""

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

ENDS = ("all", "8bit", "keep")  # policies for first and last layers, see sq/network/first_last.py
MAX_THREADS = 2**15  # more cores than any machine has
MAX_INTEGER = 2**63 - 1  # PyTorch has integers of 64 bits
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
    """Types of the settings in ``conf/config.yaml``, which has their values."""

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
    # The families. Their knobs have the types of the function that their YAML names (see
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
    """Register the schema and `any_keys` with Hydra, by the names that defaults lists use.

    Hydra refuses a setting that no YAML file has. ``/any_keys@NAME`` in the defaults list of a file
    opens a mapping for any keys, such as the arguments of a constructor.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import MISSING, OmegaConf

    names = Config.__dataclass_fields__
    store = ConfigStore.instance()
    store.store("schema", Config(**dict.fromkeys(names, MISSING)))
    store.store("any_keys", OmegaConf.create({}, flags={"struct": False}))


def kind(name: str) -> str:
    """Return the type of the setting `name` as text, such as "a whole number"."""
    part: Any = Config
    for key in name.split("."):
        part = typing.get_type_hints(part).get(key) if dataclasses.is_dataclass(part) else None
    if dataclasses.is_dataclass(part):
        return "a mapping"
    if typing.get_origin(part) is list:
        return "a list"
    kinds = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return kinds.get(part, "a value")


def problems(config: Mapping[str, Any]) -> list[str]:
    """Return the faults of a resolved config that can be seen without loading anything."""
    faults = _unset(config) + _bad_numbers(config)
    if faults:  # the checks below need all settings
        return faults
    return [
        *_bits_problems(config),
        *sweep_problems(config["sweep"]),
        *_machine_problems(config),
        *_cache_problems(config),
        *_other_problems(config),
    ]


def _unset(config: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that is unknown, has no value, or is not a choice."""
    names = Config.__dataclass_fields__
    # Hydra lets "+name=value" add what the schema does not have, and "~name" delete what it has.
    faults = [
        f"{name}: no such setting; {nearest(name, names)}" for name in config if name not in names
    ]
    faults += [
        f"{name}: no value; it was deleted or never given"
        for name in names
        if config.get(name, "???") == "???"
    ]
    faults += [
        f"{name}={config[name]}: no choice was made"
        for name in FAMILIES
        if not _is_choice(config.get(name))
    ]
    return faults


def _bad_numbers(config: Mapping[str, Any]) -> list[str]:
    """Return a line for each number that is not finite or has more than 64 bits."""
    flat = leaves(config)
    faults = [
        f"{name}={value}: should be a finite number"
        for name, value in flat.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    # Interpolations copy values to other settings: only the first setting with a value is reported.
    too_large = {str(value): name for name, value in reversed(flat.items()) if _is_too_large(value)}
    for value, name in too_large.items():
        faults.append(f"{name}={value}: whole numbers go up to {MAX_INTEGER}")
    return faults


def _bits_problems(config: Mapping[str, Any]) -> list[str]:
    bits = config["bits"]
    if not 1 <= bits <= 16:
        return [f"bits={bits:g}: allowed are 1 to 16 (2 to 16 on a symmetric grid)"]
    if bits < 2 and config["grid"].get("symmetric"):
        return [f"bits={bits:g} grid.symmetric=true: a symmetric grid needs 2 bits or more"]
    return []


def _other_problems(config: Mapping[str, Any]) -> list[str]:
    faults = []
    ends, positions, name = config["ends"], config["positions"], config["name"]
    if ends not in ENDS:
        faults.append(f"ends={ends}: {nearest(ends, ENDS)}")
    if not 0 < positions <= 1:
        faults.append(f"positions={positions:g}: a share, above 0 and up to 1")
    elif positions < 1 and config["calibration"].get("inputs") == "quantized":
        faults.append(
            "positions<1 calibration.inputs=quantized: all positions are used then; set positions=1"
        )
    if not name or set(name) & set("/\\=, ") or name.startswith("."):
        faults.append(
            f"name={name!r}: the name of a folder, without separators, spaces, '=' or ','"
        )
    return faults


def sweep_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return the faults of the settings of a sweep."""
    faults = []
    retry, max_runs, shard = settings["retry"], settings["max_runs"], settings["shard"]
    if retry not in RETRY:
        faults.append(f"sweep.retry={retry}: {nearest(retry, RETRY)}")
    if max_runs < 1:
        faults.append(f"sweep.max_runs={max_runs}: 1 or more")
    if shard is not None:
        parts = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard)
        if parts is None or int(parts[1]) > int(parts[2]):
            faults.append(
                f"sweep.shard={shard}: k/n, the k-th of n shares of the runs, such as 2/8"
            )
    return faults


def check(config: Mapping[str, Any]) -> None:
    """Raise an `SqError` with all faults of `config`."""
    faults = problems(config)
    if faults:
        raise SqError("; ".join(faults))


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return "nearest: ..." with the choices similar to `name`, or all choices if none is."""
    choices = sorted(choices)
    similar = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    if similar:
        return f"nearest: {', '.join(similar)}"
    return f"choices: {', '.join(choices)}"


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted names."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat |= leaves(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _machine_problems(config: Mapping[str, Any]) -> list[str]:
    faults = []
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config["device"]):
        faults.append(f"device={config['device']}: allowed are auto, cpu, cuda, cuda:N")
    if config["seed"] < 0:
        faults.append(f"seed={config['seed']}: allowed are 0 to {MAX_INTEGER}")
    for name, minimum in (("threads", 1), ("batch_size", 1), ("workers", 0)):
        if config[name] is not None and config[name] < minimum:
            faults.append(f"{name}={config[name]}: at least {minimum}, or null")
    if config["threads"] is not None and config["threads"] > MAX_THREADS:
        faults.append(f"threads={config['threads']}: at most {MAX_THREADS}, or null")
    return faults


def _cache_problems(config: Mapping[str, Any]) -> list[str]:
    faults = []
    if config["cache"] == "":  # would be the working directory
        faults.append("cache='': a folder, or null for none")
    if config["cache_gib"] <= 0:
        faults.append(f"cache_gib={config['cache_gib']:g}: above 0; cache=null keeps no statistics")
    return faults


def _is_too_large(value: Any) -> bool:
    if isinstance(value, list):
        return any(_is_too_large(item) for item in value)
    return isinstance(value, int) and abs(value) > MAX_INTEGER


def _is_choice(part: Any) -> bool:
    # A family that is absent or has no value is reported already.
    return isinstance(part, Mapping) or part in (None, "???")
