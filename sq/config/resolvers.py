"""Resolvers of interpolations in YAML files: a value by name, a solver by name, W&B's mode."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from sq.config.schema import nearest
from sq.core import plugins
from sq.core.paths import CONF
from sq.errors import SqError

LAYERWISE = "sq.quantizer.layerwise.quantize"


def register() -> None:
    """Register the resolvers.

    Examples: ``${by:${quantizer.budget},{cpu:400,paper:80000}}``, ``${solver:${quantizer.init}}``,
    ``${wandb_mode:offline}``.
    """
    OmegaConf.register_new_resolver("by", _by, replace=True)
    OmegaConf.register_new_resolver("solver", _solver, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("wandb_mode", _wandb_mode, replace=True)


def read(part: str, **settings: Any) -> dict[str, Any]:
    """Return sq's own YAML of one choice, such as "tracker/wandb", interpolations resolved.

    Parameters
    ----------
    settings : outside the part, such as `outputs`, that it refers to
    """
    register()
    whole = OmegaConf.create({**settings, "part": OmegaConf.load(CONF / f"{part}.yaml")})
    resolved: Any = OmegaConf.to_container(whole.part, resolve=True)
    return resolved


def _wandb_mode(default: str) -> str:
    """Return the mode that W&B's environment variables set, by its current name, else `default`."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or default
    return {"run": "online", "dryrun": "offline"}.get(mode, mode)  # former names


def _by(name: str | int, values: Mapping[str | int, Any]) -> Any:
    """Return the value of `name`."""
    if name not in values:
        raise SqError(f"no such choice: {name}; {nearest(str(name), map(str, values))}")
    return values[name]


def _solver(name: str) -> Any:
    """Return the YAML of the layerwise quantizer `name`.

    Raises
    ------
    SqError : there is none of that name
    """
    # Most calls name one that is there. Reading all of them takes a second.
    part = _quantizers(name).get(name, {})
    if part.get("_target_") == LAYERWISE:
        return part
    solvers = [
        option for option, part in _quantizers().items() if part.get("_target_") == LAYERWISE
    ]
    raise SqError(f"quantizer.init={name}: no solver to start from; {nearest(str(name), solvers)}")


def _quantizers(only: str | None = None) -> dict[str, Any]:
    """Return the YAML of each quantizer by its name: sq's, those of plugins, and those of `-cd`.

    Parameters
    ----------
    only : the one name to read; None for all
    """
    folders = (CONF, *plugins.folders())
    files = [file for folder in folders for file in folder.glob("quantizer/*.yaml")]
    quantizers: dict[str, Any] = {}
    for file in sorted(files):
        if only in (None, file.stem):
            quantizers[file.stem] = OmegaConf.load(file)
    hydra = GlobalHydra.instance()
    if not hydra.is_initialized():
        return quantizers
    for source in hydra.config_loader().get_sources():
        if source.available() and source.is_group("quantizer"):
            for option in source.list("quantizer", ObjectType.CONFIG):
                if option not in quantizers and only in (None, option):
                    quantizers[option] = source.load_config(f"quantizer/{option}").config
    return quantizers
