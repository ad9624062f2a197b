"""Expand a command line into the jobs of a sweep, without composing each job from scratch.

Hydra takes a tenth of a second to compose a job. Here each combination of choices is composed once,
and the effect of each setting on that config is determined once. A job is the sum of such effects,
so that ten thousand jobs take seconds.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep, Sweep
from omegaconf import DictConfig, OmegaConf, flag_override

from sq.config.schema import FAMILIES
from sq.errors import SqError
from sq.records import record

SettingPath = tuple[str, ...]  # the names on the way to a value in a config
_ABSENT = object()
# Interpolations that depend only on the settings or environment variables that they name.
_SIMPLE = re.compile(r"\$\{(?:oc\.env:)?[^${}:]*\}")


@dataclass
class Job:
    """One point of a sweep: its overrides, its resolved config and the choices made in it.

    Parameters
    ----------
    seen : the fingerprint of its record (`record.fingerprint`) when the sweep decided to run it;
        None if nobody looked
    key : the hash of its config (`record.key`), which takes longer than most other work on a job:
        computed unless it is given
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
        """Return the file of its record."""
        return record.path(self.config, self.key)


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return `config` as plain data, interpolations resolved, without Hydra's own part."""
    return plain(OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"]))


def plain(config: DictConfig) -> dict[str, Any]:
    """Return `config` as plain data, interpolations resolved."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(name): value for name, value in container.items()}


def chosen(hydra: Any) -> dict[str, str]:
    """Return the choice for each of sq's config groups, from Hydra's own part of a config."""
    return {name: hydra.runtime.choices[name] for name in FAMILIES if name in hydra.runtime.choices}


def unambiguous(overrides: list[str]) -> dict[str, str]:
    """Return `overrides` by the setting or group that they name.

    Raises
    ------
    SqError : two name the same; Hydra would silently take the last
    """
    by_name: dict[str, str] = {}
    for override in overrides:
        name = override.partition("=")[0].lstrip("+")
        if name in by_name:
            raise SqError(f"{name} is given twice ({by_name[name]} and {override}): keep one")
        by_name[name] = override
    return by_name


def expand(loader: ConfigLoader, config: DictConfig, max_jobs: int | None = None) -> list[Job]:
    """Return the jobs of a multirun's master `config`, in order and without repetitions.

    Parameters
    ----------
    max_jobs : limit, checked before any job is composed; None sets none

    Raises
    ------
    HydraException, OmegaConfBaseException : an override that Hydra refuses
    SqError : a setting is given twice, or there are too many jobs
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parser = OverridesParser.create(config_loader=loader)
    overrides = parser.parse_overrides(_sweep_overrides(config))
    for override in overrides:
        _check(override, config.sweep.shard)
    if max_jobs is not None:
        number = math.prod(map(_values, overrides))
        if number > max_jobs:
            raise SqError(
                f"nothing was run: up to {number} runs, more than sweep.max_runs={max_jobs}"
            )
    points = BasicSweeper.split_arguments(overrides, None)[0]
    composer = _Composer(loader, config, points)
    parse = cache(lambda text: parser.parse_override(text))  # points share most overrides
    jobs: dict[Any, Job] = {}
    for point in points:
        job = composer.compose(list(point), [parse(text) for text in point])
        # What the path of a record consists of. "~name" may have deleted parts of it, which is
        # refused later.
        identity = job.config.get("results"), job.config.get("name"), job.key
        jobs.setdefault(identity, job)
    return list(jobs.values())


def _sweep_overrides(config: DictConfig) -> list[str]:
    """Return the overrides of a sweep: of the command, else of the experiment's file."""
    # interpolations are resolved in each job
    task = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(task, list)
    of_command = unambiguous([str(override) for override in task])
    params = config.hydra.sweeper.params or {}
    of_file = {str(name): f"{name}={value}" for name, value in params.items()}
    return list((of_file | of_command).values())


class _Composer:
    """Composes the jobs of a sweep, each combination of choices once."""

    def __init__(self, loader: ConfigLoader, config: DictConfig, points: list[list[str]]):
        self.loader, self.config = loader, config
        self.groups = set(config.hydra.runtime.choices)
        # the overrides that all points have in common
        self.shared = set.intersection(*map(set, points)) if points else set()
        self.bases: dict[tuple[str, ...], tuple[OverrideDeltas, dict[str, str]]] = {}

    def compose(self, point: list[str], parsed: list[Override]) -> Job:
        """Return the job of a `point`, with its overrides `parsed` too."""
        # What is added with "+" may be a group that the master config does not have: Hydra composes
        # it like a choice.
        choosing, settings = [], []
        for override in parsed:
            if override.is_hydra_override():
                continue
            if override.key_or_group in self.groups or override.is_add():
                choosing.append(str(override.input_line))
            else:
                settings.append(override)
        key = tuple(choosing)
        if key not in self.bases:
            self.bases[key] = self._base(choosing, settings)
        deltas, choices = self.bases[key]
        return Job(point, deltas.combined(settings), choices)

    def _base(
        self, choosing: list[str], settings: list[Override]
    ) -> tuple[OverrideDeltas, dict[str, str]]:
        """Return the config that choices compose, ready for settings, and the choices by group."""
        composed = self.loader.load_sweep_config(self.config, choosing)
        choices = chosen(composed.hydra)
        # Settings are applied afterwards, and must be able to change it.
        with flag_override(composed, ["struct", "readonly"], [False, False]):
            del composed["hydra"]
        shared = [override for override in settings if override.input_line in self.shared]
        return OverrideDeltas(composed, shared), choices


def _check(override: Override, shard: str | None) -> None:
    """Refuse a sweep without a list of values, or with another list in each process."""
    if not override.is_sweep_override():
        return
    problem = _problem(override, shard)
    if problem:
        raise SqError(f"nothing was run: {problem}")


def _problem(override: Override, shard: str | None) -> str:
    """Return why a sweep is refused, "" if it is not."""
    line = override.input_line
    if override.key_or_group.partition(".")[0] == "sweep":
        return f"{line}: of the sweep as a whole, and not swept itself; give one value"
    if override.is_interval_sweep():
        return f"{line}: an interval is no list of values; write range(START,STOP,STEP)"
    sweep = override.value()
    if isinstance(sweep, RangeSweep):
        is_endless = any(
            isinstance(bound, float) and not math.isfinite(bound)
            for bound in (sweep.start, sweep.stop, sweep.step)
        )
        if is_endless or not sweep.step:
            return f"{line}: start, stop and step are finite numbers, and step is not 0"
    if isinstance(sweep, ChoiceSweep) and any(isinstance(value, Sweep) for value in sweep.list):
        return f"{line}: a sweep within a sweep; list the values"
    if shard is not None and isinstance(sweep, ChoiceSweep | RangeSweep) and sweep.shuffle:
        return (
            f"sweep.shard={shard} {line}: each process shuffles again, so shares would overlap; "
            "leave shuffle out"
        )
    if not _values(override):
        return f"{line}: no value, so that there is no run"
    return ""


def _values(override: Override) -> int:
    """Return the number of values that `override` goes through."""
    if not override.is_sweep_override():
        return 1
    sweep = override.value()
    if isinstance(sweep, RangeSweep):  # may be long, so it is not iterated
        assert sweep.start is not None
        assert sweep.stop is not None
        return max(0, int(-((sweep.start - sweep.stop) // sweep.step)))
    return len(set(override.sweep_string_iterator()))


class OverrideDeltas:
    """The effect of each setting on a `composed` config, after settings `shared` by all jobs.

    The sum of effects equals applying the settings together as long as no two affect the same
    value, directly or through interpolations. Where that is not certain, they are applied together.
    """

    def __init__(self, composed: DictConfig, shared: list[Override]):
        # Pickled: loading takes a third of the time of a deep copy.
        self.composed = pickle.dumps(composed)
        self.shared = {str(o.input_line): _setting_path(o) for o in shared}
        config = _applied(self.composed, shared)
        self.config = pickle.dumps(config)
        self.plain = plain(config)
        texts = _texts(OmegaConf.to_container(config, resolve=False))
        self.simple = all(_is_simple(text) for text in texts)
        self.deltas: dict[str, dict[SettingPath, Any]] = {}  # by override

    def combined(self, overrides: list[Override]) -> dict[str, Any]:
        """Return the resolved config with `overrides`; unchanged parts are shared between jobs."""
        varying = [o for o in overrides if o.input_line not in self.shared]
        deltas = [self._delta(override) for override in varying]
        touched = [path for delta in deltas for path in delta]
        touched += self.shared.values()
        has_interpolation = any("${" in str(override.input_line) for override in varying)
        if not self.simple or has_interpolation or _overlap(touched):
            return plain(_applied(self.composed, overrides))
        config = self.plain
        for delta in deltas:
            for path, value in delta.items():
                config = _with(config, path, value)
        return config

    def _delta(self, override: Override) -> dict[SettingPath, Any]:
        """Return the values that `override` changes, and its own value, by their paths."""
        line = str(override.input_line)
        if line not in self.deltas:
            after = plain(_applied(self.config, [override]))
            path = _setting_path(override)
            # Its own value counts as changed even if it is equal to that before.
            delta = {path: _value_at(after, path)}
            delta.update(_differences(self.plain, after, (), path))
            self.deltas[line] = delta
        return self.deltas[line]


def _applied(pickled: bytes, overrides: list[Override]) -> DictConfig:
    """Return a pickled config with `overrides` applied by Hydra."""
    config: DictConfig = pickle.loads(pickled)
    ConfigLoaderImpl._apply_overrides_to_config(overrides, config)
    return config


def _setting_path(override: Override) -> SettingPath:
    return tuple(str(override.key_or_group).split("."))


def _texts(node: Any) -> Iterator[str]:
    """Yield every string in nested mappings and lists."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)


def _is_simple(text: str) -> bool:
    return "${" not in _SIMPLE.sub("", text)


def _overlap(paths: Iterable[SettingPath]) -> bool:
    """Tell whether one of `paths` occurs twice, or lies within another."""
    listed = list(paths)
    unique = set(listed)
    if len(unique) < len(listed):
        return True
    return any(path[:depth] in unique for path in unique for depth in range(1, len(path)))


def _differences(
    before: Any, after: Any, path: SettingPath, except_at: SettingPath
) -> Iterator[tuple[SettingPath, Any]]:
    """Yield path and value in `after` of each difference; the value is `_ABSENT` if it has none."""
    if path == except_at:
        return
    if not isinstance(before, dict) or not isinstance(after, dict):
        if type(before) is not type(after) or before != after:
            yield path, after
        return
    for name in dict.fromkeys([*before, *after]):
        yield from _differences(
            before.get(name, _ABSENT), after.get(name, _ABSENT), (*path, name), except_at
        )


def _value_at(config: Any, path: SettingPath) -> Any:
    for name in path:
        config = config.get(name, _ABSENT) if isinstance(config, dict) else _ABSENT
    return config


def _with(config: dict[str, Any], path: SettingPath, value: Any) -> dict[str, Any]:
    """Return `config` with `value` at `path`, a copy that shares all other values."""
    name, *rest = path
    changed = dict(config)
    if rest:
        changed[name] = _with(config.get(name) or {}, tuple(rest), value)
    elif value is _ABSENT:
        changed.pop(name, None)
    else:
        changed[name] = value
    return changed
