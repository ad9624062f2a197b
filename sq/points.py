"""The points of a sweep: what a command line expands to, composed fast.

Hydra composes every job anew, a tenth of a second each. Here choices of groups are composed once, and settings put into
a copy: 500 points of one network take as long as a few jobs did.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, flag_override

from sq import record
from sq.config import FAMILIES


@dataclass
class Job:
    """One point of a sweep: its overrides, its resolved config and the choices made in it.

    `seen` is the mark of its record when the sweep decided to run it (`record.mark`); None if nobody looked.
    """

    overrides: list[str]
    config: dict[str, Any]
    choices: dict[str, str]
    seen: str | None = None


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return `config` as plain data, interpolations resolved, without Hydra's own part."""
    own = OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"]) if "hydra" in config else config
    plain = OmegaConf.to_container(own, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def chosen(hydra: Any) -> dict[str, str]:
    """Return the option chosen for each of our config groups, from Hydra's own part of a config."""
    return {name: hydra.runtime.choices[name] for name in FAMILIES if name in hydra.runtime.choices}


def expand(loader: ConfigLoader, config: DictConfig) -> list[Job]:
    """Return the jobs that a multirun's master `config` expands to, in order, a point given twice once.

    Raises
    ------
    HydraException, OmegaConfBaseException : an override that Hydra refuses
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    words = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    task = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # interpolations are each job's own
    assert isinstance(task, list)
    words += [str(word) for word in task]
    parser = OverridesParser.create(config_loader=loader)
    bases: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}
    groups = set(config.hydra.runtime.choices)  # what a default chooses from
    jobs: dict[Any, Job] = {}
    parsed = cache(lambda word: parser.parse_override(word))
    for point in BasicSweeper.split_arguments(parser.parse_overrides(words), None)[0]:
        every = [o for word in point if not (o := parsed(word)).is_hydra_override()]
        # What is added with "+" may be a group that the master config knows nothing of: Hydra composes that.
        choosing = tuple(str(o.input_line) for o in every if o.key_or_group in groups or o.is_add())
        if choosing not in bases:
            composed = loader.load_sweep_config(config, list(choosing))
            choices = chosen(composed.hydra)
            with flag_override(composed, ["struct", "readonly"], [False, False]):  # which settings need afterwards
                del composed["hydra"]
            bases[choosing] = composed, choices
        base, choices = bases[choosing]
        own = copy.deepcopy(base)
        ConfigLoaderImpl._apply_overrides_to_config([o for o in every if o.input_line not in choosing], own)
        job = Job(list(point), resolve(own), choices)
        # What makes a record's place; "~name" may have deleted parts of it, which is refused later.
        place = job.config.get("results"), job.config.get("name"), record.key(job.config)
        jobs.setdefault(place, job)
    return list(jobs.values())
