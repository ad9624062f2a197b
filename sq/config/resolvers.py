"""Words that YAML files may use in interpolations: a value by a name or a number, and a solver by its name."""

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
    """Make the words known.

    ``${by:${quantizer.budget},{cpu:400,paper:80000}}``, ``${solver:${quantizer.init}}``,
    ``${wandb_mode:offline}``.
    """
    OmegaConf.register_new_resolver("by", _by, replace=True)
    OmegaConf.register_new_resolver("solver", _solver, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("wandb_mode", _wandb_mode, replace=True)


def read(part: str, **settings: Any) -> dict[str, Any]:
    """Return sq's own YAML of one choice, such as "tracker/wandb", with what it refers to put in.

    Parameters
    ----------
    settings : those outside the part that it refers to, such as `outputs`
    """
    register()
    whole = OmegaConf.create({**settings, "part": OmegaConf.load(CONF / f"{part}.yaml")})
    made: Any = OmegaConf.to_container(whole.part, resolve=True)
    return made


def _wandb_mode(default: str) -> str:
    """Return the mode that W&B's own environment variables ask for, in today's words; `default` if they do not."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or default
    return {"run": "online", "dryrun": "offline"}.get(mode, mode)


def _by(name: str | int, values: Mapping[str | int, Any]) -> Any:
    """Return the value that goes by `name`."""
    if name not in values:
        raise SqError(f"no such choice: {name}; {nearest(str(name), [str(own) for own in values])}")
    return values[name]


def _solver(name: str) -> Any:
    """Return the YAML of a quantizer that works layer by layer.

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
    found: dict[str, Any] = {
        file.stem: OmegaConf.load(file) for file in sorted(files) if only in (None, file.stem)
    }
    hydra = GlobalHydra.instance()
    for source in hydra.config_loader().get_sources() if hydra.is_initialized() else []:
        if source.available() and source.is_group("quantizer"):
            for option in source.list("quantizer", ObjectType.CONFIG):
                if option not in found and only in (None, option):
                    found[option] = source.load_config(f"quantizer/{option}").config
    return found
