"""From config to code: import the function a YAML names, check its knobs, and bind them.

Only names in `sq`, and in packages that the user allows (`sq.core.plugins`), are imported, so a
config cannot run foreign code.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sq.config import renamed_targets
from sq.config.schema import nearest
from sq.core import plugins
from sq.errors import SqError

OWN = ("_target_", "_partial_")
# Knobs of a part that other parts read by interpolation, and that are not passed to its function.
SHARED_KNOBS = {"model": ("blocks",)}


def build(part: Mapping[str, Any], path: str) -> Callable[..., Any]:
    """Return the function that `part` names with its knobs bound, after a check of each knob.

    Parameters
    ----------
    part : `_target_`, a dotted name under `sq.` or in a plugin, and one value for each keyword-only
        parameter of it
    path : of `part` in the config, for messages

    Raises
    ------
    SqError : the name may not be imported or does not exist; a knob is missing, unknown or of a
        wrong type
    """
    part = renamed_targets.current(part)
    _check(part, path)
    from hydra.utils import instantiate

    knobs = {name: value for name, value in part.items() if name not in SHARED_KNOBS.get(path, ())}
    return instantiate(knobs, _convert_="all", _partial_=True)


def check(part: Mapping[str, Any], path: str) -> None:
    """Raise an `SqError` unless `part` fits the signature of the function it names; see `build`."""
    _check(renamed_targets.current(part), path)


def _check(part: Mapping[str, Any], path: str) -> None:
    """Check a part that has today's names of functions."""
    function = _find(part, path)
    hints = _hints(function, part["_target_"], path)
    parameters = inspect.signature(function).parameters.values()
    knobs = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    settings = [name for name in part if name not in OWN + SHARED_KNOBS.get(path, ())]
    missing = [name for name in knobs if name not in settings]
    if missing:
        raise SqError(f"{path}: no value for {', '.join(missing)}, which {part['_target_']} needs")
    for name in settings:
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


def check_settings(settings: Mapping[str, Any], hints: Mapping[str, Any], path: str) -> None:
    """Raise an `SqError` unless `settings` are those of `hints`, with values of these types."""
    missing = [name for name in hints if name not in settings]
    if missing:
        raise SqError(f"{path}: no value for {', '.join(missing)}")
    for name, value in settings.items():
        if name not in hints:
            raise SqError(f"{path}.{name}: no such setting; {nearest(name, hints)}")
        check_type(hints[name], value, f"{path}.{name}")


def _find(part: Mapping[str, Any], path: str) -> Callable[..., Any]:
    """Return the function that `part` names."""
    target = part.get("_target_")
    function = plugins.find(target, f"{path}._target_")
    if not inspect.isfunction(function):
        raise SqError(f"{path}._target_={target}: not a function")
    return function


def _hints(function: Callable[..., Any], target: str, path: str) -> dict[str, Any]:
    """Return the types of the parameters of `function`."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:  # a plugin imports the type for type checkers only
        raise SqError(
            f"{path}._target_={target}: a type of its parameters cannot be read ({error})"
        ) from error


def _check_plain(value: Any, path: str) -> None:
    """Refuse a `_target_` within `value`, which Hydra would call without a check."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, inner in items:
        if name in OWN:
            raise SqError(f"{path}.{name}: a function is not wanted here")
        _check_plain(inner, f"{path}.{name}")


def check_type(hint: Any, value: Any, path: str) -> None:
    """Raise an `SqError` that names `path` unless `value` has the type `hint`."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    adapter = TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"].replace("Input should be", "should be")
        choices = _choices(hint)
        if choices and isinstance(value, str):
            message += f"; {nearest(value, choices)}"
        got = "null" if value is None else value
        raise SqError(f"{path}={got}: {message}") from error


def _choices(hint: Any) -> list[str]:
    """Return the strings that a `Literal` allows, [] of other types."""
    if typing.get_origin(hint) is not typing.Literal:
        return []
    return [choice for choice in typing.get_args(hint) if isinstance(choice, str)]
