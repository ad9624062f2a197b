"""From config to code: import what a YAML names, check its knobs against the function's signature, bind them.

Only names under `sq.`, and in packages that the user allows (`sq.core.plugins`), are imported, so a
config cannot run foreign code.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from sq.config import renamed_targets
from sq.config.schema import nearest
from sq.core import plugins
from sq.errors import SqError

OWN = ("_target_", "_partial_")
# what other parts read by interpolation, and a part's own function is not given
BESIDE = {"model": ("blocks",)}


def build(part: Mapping[str, Any], path: str) -> Callable[..., Any]:
    """Return the function that `part` names with its knobs bound, after checking every one of them.

    Parameters
    ----------
    part : `_target_`, a dotted name under `sq.` or in a plugin, and one value for each keyword-only
    parameter of it
    path : where `part` stands in the config, for messages

    Raises
    ------
    SqError : the name may not be imported or does not exist; a knob is missing, unknown or of a
    wrong type
    """
    part = renamed_targets.current(part)
    _check(part, path)
    from hydra.utils import instantiate

    knobs = {name: value for name, value in part.items() if name not in BESIDE.get(path, ())}
    return instantiate(knobs, _convert_="all", _partial_=True)


def check(part: Mapping[str, Any], path: str) -> None:
    """Raise an `SqError` unless `part` fits the signature of the function it names; see `build`."""
    _check(renamed_targets.current(part), path)


def _check(part: Mapping[str, Any], path: str) -> None:
    """Check a part that names functions as they are called today."""
    function = _find(part, path)
    hints = _hints(function, part["_target_"], path)
    knobs = [
        p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    given = [name for name in part if name not in OWN + BESIDE.get(path, ())]
    if missing := [name for name in knobs if name not in given]:
        raise SqError(f"{path}: no value for {', '.join(missing)}, which {part['_target_']} needs")
    for name in given:
        if name not in knobs:
            raise SqError(
                f"{path}.{name}: not a setting of {part['_target_']}; {nearest(name, knobs)}"
            )
        value = part[name]
        if isinstance(value, Mapping) and "_target_" in value:
            _check(value, f"{path}.{name}")
            continue
        _check_plain(value, f"{path}.{name}")
        if name not in hints:
            raise SqError(
                f"{path}.{name}: {part['_target_']} does not say of what type it is; annotate it"
            )
        check_type(hints[name], value, f"{path}.{name}")


def check_settings(given: Mapping[str, Any], hints: Mapping[str, Any], path: str) -> None:
    """Raise an `SqError` unless `given` has a value of the right type for each name of `hints`, and no other."""
    if missing := [name for name in hints if name not in given]:
        raise SqError(f"{path}: no value for {', '.join(missing)}")
    for name, value in given.items():
        if name not in hints:
            raise SqError(f"{path}.{name}: no such setting; {nearest(name, hints)}")
        check_type(hints[name], value, f"{path}.{name}")


def _find(part: Mapping[str, Any], path: str) -> Callable[..., Any]:
    target = part.get("_target_")
    found = plugins.find(target, f"{path}._target_")
    if not inspect.isfunction(found):
        raise SqError(f"{path}._target_={target}: not a function")
    return found


def _hints(function: Callable[..., Any], target: str, path: str) -> dict[str, Any]:
    """Return the types of the parameters of `function`."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:  # imported for type checkers alone, by a plugin
        raise SqError(
            f"{path}._target_={target}: a type of its parameters cannot be read ({error})"
        ) from error


def _check_plain(value: Any, path: str) -> None:
    """Refuse a `_target_` within `value`, which Hydra would call without a check."""
    inner = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, own in inner:
        if name in OWN:
            raise SqError(f"{path}.{name}: a function is not wanted here")
        _check_plain(own, f"{path}.{name}")


def check_type(hint: Any, value: Any, path: str) -> None:
    """Raise an `SqError` that names `path` unless `value` is of the type `hint`."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(
            value
        )
    except ValidationError as error:
        wanted = error.errors()[0]["msg"].replace("Input should be", "should be")
        close = f"; {nearest(value, c)}" if isinstance(value, str) and (c := _choices(hint)) else ""
        got = "null" if value is None else value
        raise SqError(f"{path}={got}: {wanted}{close}") from error


def _choices(hint: Any) -> list[str]:
    return (
        [c for c in typing.get_args(hint) if isinstance(c, str)]
        if typing.get_origin(hint) is typing.Literal
        else []
    )
