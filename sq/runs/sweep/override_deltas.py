"""What settings change in a composed config: found once for each, and put together for each point of a sweep."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

Place = tuple[str, ...]  # of a value: the names on the way to it
_ABSENT = object()
# Interpolations whose value follows from those they name, whatever they are: plain names, and the
# environment.
_SIMPLE = re.compile(r"\$\{(?:oc\.env:)?[^${}:]*\}")


def plain(config: DictConfig) -> dict[str, Any]:
    """Return `config` as plain data, interpolations resolved."""
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(name): value for name, value in found.items()}


class Changes:
    """What settings change in the config `composed` of some choices, after settings `shared` by all points.

    Putting changes together is what applying the settings together gives as long as no two touch
    the same value, of their own or through interpolations; where that is not sure, they are applied
    together.
    """

    def __init__(self, composed: DictConfig, shared: list[Override]):
        self.bare = pickle.dumps(composed)  # reading that takes a third of the time of a deep copy
        self.shared = {str(o.input_line): _place(o) for o in shared}
        config = _applied(self.bare, shared)
        self.config = pickle.dumps(config)
        self.plain = plain(config)
        self.simple = all(
            _is_simple(text) for text in _texts(OmegaConf.to_container(config, resolve=False))
        )
        self.each: dict[str, dict[Place, Any]] = {}

    def together(self, overrides: list[Override]) -> dict[str, Any]:
        """Return the resolved config with `overrides`; values that two of these have in common are shared."""
        own = [str(o.input_line) for o in overrides if o.input_line not in self.shared]
        changes = [self._change(o) for o in overrides if o.input_line not in self.shared]
        touched = [place for change in changes for place in change] + list(self.shared.values())
        if not self.simple or any("${" in line for line in own) or _overlap(touched):
            return plain(_applied(self.bare, overrides))
        found = self.plain
        for change in changes:
            for place, value in change.items():
                found = _put(found, place, value)
        return found

    def _change(self, override: Override) -> dict[Place, Any]:
        line = str(override.input_line)
        if line not in self.each:
            after = plain(_applied(self.config, [override]))
            own = _place(override)
            # Its own value is one it touches even where it says what stands there already.
            self.each[line] = {own: _at(after, own)} | dict(
                _differences(self.plain, after, (), own)
            )
        return self.each[line]


def _applied(config: bytes, overrides: list[Override]) -> DictConfig:
    own: DictConfig = pickle.loads(config)
    ConfigLoaderImpl._apply_overrides_to_config(overrides, own)
    return own


def _place(override: Override) -> Place:
    return tuple(str(override.key_or_group).split("."))


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def _is_simple(text: str) -> bool:
    return "${" not in _SIMPLE.sub("", text)


def _overlap(places: Iterable[Place]) -> bool:
    """Return whether one of `places` is there twice, or lies within another."""
    listed = list(places)
    every = set(listed)
    return len(every) < len(listed) or any(
        p[:depth] in every for p in every for depth in range(1, len(p))
    )


def _differences(before: Any, after: Any, place: Place, own: Place) -> Iterator[tuple[Place, Any]]:
    """Yield where `after` differs from `before`, other than at `own`, and its value there; `_ABSENT` if it has none."""
    if place == own:
        return
    if not isinstance(before, dict) or not isinstance(after, dict):
        if type(before) is not type(after) or before != after:
            yield place, after
        return
    for name in [*before, *(name for name in after if name not in before)]:
        yield from _differences(
            before.get(name, _ABSENT), after.get(name, _ABSENT), (*place, name), own
        )


def _at(config: Any, place: Place) -> Any:
    for name in place:
        config = config.get(name, _ABSENT) if isinstance(config, dict) else _ABSENT
    return config


def _put(config: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """Return `config` with `value` at `place`; what is not on the way there is shared."""
    name, *rest = place
    own = dict(config)
    if rest:
        own[name] = _put(config.get(name) or {}, tuple(rest), value)
    elif value is _ABSENT:
        own.pop(name, None)
    else:
        own[name] = value
    return own
