"""The points of a sweep: what a command line expands to, composed fast.

Hydra composes every job anew, a tenth of a second each. Here each combination of choices is
composed once, and what each setting changes in it is found once; a point is those changes put
together: ten thousand take seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep, Sweep
from omegaconf import DictConfig, OmegaConf, flag_override

from sq.config.schema import FAMILIES
from sq.errors import SqError
from sq.records import record
from sq.runs.sweep.override_deltas import Changes, plain


@dataclass
class Job:
    """One point of a sweep: its overrides, its resolved config and the choices made in it.

    `seen` is the mark of its record when the sweep decided to run it (`record.fingerprint`); None if
    nobody looked. `key` is the hash of its config (`record.key`), found here unless it is given:
    that takes longer than most else of a job.
    """

    overrides: list[str]
    config: dict[str, Any]
    choices: dict[str, str]
    seen: str | None = None
    key: str = ""

    def __post_init__(self) -> None:
        self.key = self.key or record.key(self.config)

    @property
    def file(self) -> Path:
        """Return where its record belongs."""
        return record.path(self.config, self.key)


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return `config` as plain data, interpolations resolved, without Hydra's own part."""
    return plain(OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"]))


def chosen(hydra: Any) -> dict[str, str]:
    """Return the option chosen for each of our config groups, from Hydra's own part of a config."""
    return {name: hydra.runtime.choices[name] for name in FAMILIES if name in hydra.runtime.choices}


def unambiguous(words: list[str]) -> dict[str, str]:
    """Return the overrides `words` by the setting or group they name.

    Raises
    ------
    SqError : two name the same; Hydra would take the last without a word
    """
    given: dict[str, str] = {}
    for word in words:
        name = word.partition("=")[0].lstrip("+")
        if name in given:
            raise SqError(f"{name} is given twice ({given[name]} and {word}): keep one")
        given[name] = word
    return given


def expand(loader: ConfigLoader, config: DictConfig, most: int | None = None) -> list[Job]:
    """Return the jobs that a multirun's master `config` expands to, in order, a point given twice once.

    Parameters
    ----------
    most : jobs, counted before any is composed; None sets no limit

    Raises
    ------
    HydraException, OmegaConfBaseException : an override that Hydra refuses
    SqError : a setting is given twice, or there are too many jobs
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    # interpolations are each job's own
    task = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(task, list)
    parser = OverridesParser.create(config_loader=loader)
    given = unambiguous([str(word) for word in task])
    # What the command says takes the place of what the experiment's file says, and stands where
    # that stood.
    params = {
        str(name): f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()
    }
    parsed = cache(lambda word: parser.parse_override(word))
    every = parser.parse_overrides(list((params | given).values()))
    for override in every:
        _check(override, config.sweep.shard)
    if most is not None and (number := math.prod(map(_values, every))) > most:
        raise SqError(f"nothing was run: up to {number} runs, more than sweep.max_runs={most}")
    points = BasicSweeper.split_arguments(every, None)[0]
    same = set.intersection(*map(set, points)) if points else set()
    groups = set(config.hydra.runtime.choices)  # what a default chooses from
    bases: dict[tuple[str, ...], tuple[Changes, dict[str, str]]] = {}
    jobs: dict[Any, Job] = {}
    for point in points:
        ours = [o for word in point if not (o := parsed(word)).is_hydra_override()]
        # What is added with "+" may be a group that the master config knows nothing of: Hydra
        # composes that.
        choosing = tuple(str(o.input_line) for o in ours if o.key_or_group in groups or o.is_add())
        own = [o for o in ours if o.input_line not in choosing]
        if choosing not in bases:
            composed = loader.load_sweep_config(config, list(choosing))
            choices = chosen(composed.hydra)
            # which settings need afterwards
            with flag_override(composed, ["struct", "readonly"], [False, False]):
                del composed["hydra"]
            bases[choosing] = Changes(composed, [o for o in own if o.input_line in same]), choices
        base, choices = bases[choosing]
        job = Job(list(point), base.together(own), choices)
        # What makes a record's place; "~name" may have deleted parts of it, which is refused later.
        place = job.config.get("results"), job.config.get("name"), job.key
        jobs.setdefault(place, job)
    return list(jobs.values())


def _check(override: Override, shard: str | None) -> None:
    """Refuse a sweep that has no list of values, or not the same one in every process that takes a `shard` of it."""
    if not override.is_sweep_override():
        return
    line = override.input_line
    if override.key_or_group.partition(".")[0] == "sweep":
        raise SqError(
            f"nothing was run: {line}: of the sweep as a whole, and not swept itself; give one value"
        )
    if override.is_interval_sweep():
        raise SqError(
            f"nothing was run: {line}: an interval is no list of values; write range(START,STOP,STEP)"
        )
    sweep = override.value()
    if isinstance(sweep, RangeSweep):
        endless = any(
            isinstance(end, float) and not math.isfinite(end)
            for end in (sweep.start, sweep.stop, sweep.step)
        )
        if endless or not sweep.step:
            raise SqError(
                f"nothing was run: {line}: start, stop and step are finite numbers, and step is not 0"
            )
    if isinstance(sweep, ChoiceSweep) and any(isinstance(value, Sweep) for value in sweep.list):
        raise SqError(f"nothing was run: {line}: a sweep within a sweep; list the values")
    if shard is not None and isinstance(sweep, ChoiceSweep | RangeSweep) and sweep.shuffle:
        raise SqError(
            f"nothing was run: sweep.shard={shard} {line}: each process shuffles anew, so shares would overlap; "
            "leave shuffle out"
        )
    if not _values(override):
        raise SqError(f"nothing was run: {line}: no value, so that there is no run")


def _values(override: Override) -> int:
    """Return how many values `override` goes through."""
    if not override.is_sweep_override():
        return 1
    sweep = override.value()
    if isinstance(sweep, RangeSweep):  # a range may be long: it is not gone through
        assert sweep.start is not None
        assert sweep.stop is not None
        return max(0, int(-((sweep.start - sweep.stop) // sweep.step)))
    return len(set(override.sweep_string_iterator()))
