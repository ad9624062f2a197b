"""Packages from outside that configs may name; sq imports nothing else, so a config of others runs no code of theirs.

A package is allowed by whoever runs sq: by installing it with an entry point of the group
``sq.plugins``, by ``plugins=[mynet]`` on the command line, or by the environment variable
``SQ_PLUGINS=mynet,other`` that the process starts with. What a config file, a record or an exported
file says allows nothing. Nothing is imported here: that happens when a config names something.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sq.core.paths import CONF
from sq.errors import SqError, one_line

GROUP = "sq.plugins"  # of entry points
# of the environment: names separated by commas, which launchers hand on to their processes
VARIABLE = "SQ_PLUGINS"
SETTING = "plugins"
FOLDER = "conf"  # in a package: YAML files of its choices, such as conf/quantizer/mine.yaml


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


# Read once: a config file can change the environment of a run later on (`hydra.job.env_set`).
_named: list[str] = _split(os.environ.get(VARIABLE, ""))
_of_call: ContextVar[tuple[str, ...]] = ContextVar("plugins of a call", default=())


class NotAllowed(SqError):
    """A config names something in a package that may not be imported."""


def allowed() -> dict[str, str]:
    """Return the packages that configs may name, each with what allows it.

    Raises
    ------
    SqError : one is not here, is of Python's standard library, or is no name of a package
    """
    packages = _entry_points()
    explicit = dict.fromkeys(_named, VARIABLE) | dict.fromkeys(_of_call.get(), SETTING)
    if explicit:
        _make_working_folder_importable()
    packages |= explicit
    for package, source in packages.items():
        _check(package, source)
    return packages


def allow(packages: Iterable[str], source: str = SETTING) -> None:
    """Allow `packages` in this process and in those it starts, which inherit its environment.

    Parameters
    ----------
    source : what names them, for messages

    Raises
    ------
    SqError : see `allowed`
    """
    packages = list(packages)
    if not packages:
        return
    _make_working_folder_importable()
    for package in packages:
        _check(package, source)
    _named.extend(package for package in packages if package not in _named)
    os.environ[VARIABLE] = ",".join(_named)


@contextmanager
def allowing(packages: Iterable[str]) -> Iterator[None]:
    """Allow `packages` to this thread while the context lasts."""
    token = _of_call.set((*_of_call.get(), *packages))
    try:
        yield
    finally:
        _of_call.reset(token)


def named(words: Sequence[str]) -> list[str]:
    """Return the packages that ``plugins=[...]`` names among the overrides `words` of a command.

    Raises
    ------
    SqError : it is no list of names
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    packages: list[str] = []
    for word in words:
        if not re.match(rf"\+{{0,2}}{SETTING}=", word):
            continue
        try:
            override = OverridesParser.create().parse_override(word)
            value = None if override.is_sweep_override() else override.value()
        except HydraException:
            value = None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise SqError(f"{word}: should be a list of names of packages, {SETTING}=[mynet]")
        packages += value
    return packages


def untrusted(config: Mapping[str, Any]) -> list[str]:
    """Return a line for each package that the setting `plugins` of a composed config names and that is not allowed.

    What the command line names is allowed before a config is composed: such a name comes from a
    config file.
    """
    listed = config.get(SETTING) or []
    known = allowed() if listed else {}
    return [
        f"{SETTING}=[{package}] stands in a config file, which may not allow code to be imported: if you trust "
        f"{package}, add {SETTING}=[{package}] to the command, or set {VARIABLE}={package}"
        for package in listed
        if package not in known
    ]


def refusals(config: Mapping[str, Any]) -> list[str]:
    """Return a line for each package that `config` names something of and that may not be imported."""
    settings: dict[str, list[str]] = {}
    for setting, name in _references(config):
        if not is_allowed(name):
            settings.setdefault(_suggested(name), []).append(f"{setting}={name}")
    return [_refusal(assignments, package) for package, assignments in settings.items()]


def check(name: Any, setting: str) -> None:
    """Raise a `NotAllowed` unless `name`, the dotted value of `setting`, is in sq or in a package that is allowed."""
    if not is_allowed(name):
        raise NotAllowed(_refusal([f"{setting}={name}"], _suggested(name)))


def is_allowed(name: Any) -> bool:
    """Tell whether `name` is a dotted name in sq or in a package that is allowed."""
    return isinstance(name, str) and (name.startswith("sq.") or package_of(name) is not None)


def _suggested(name: Any) -> str:
    """Return the package that would have to be allowed for the dotted `name`; "" if it is one that cannot be."""
    found = re.match(r"([A-Za-z_]\w*)\.\w", name) if isinstance(name, str) else None
    return "" if found is None or found[1] in (*sys.stdlib_module_names, "sq") else found[1]


def _refusal(assignments: list[str], package: str) -> str:
    line = f"{', '.join(assignments)}: only names under sq. are imported, and of packages you allow"
    if not package:
        return f"{line} ({SETTING}=[mynet], or {VARIABLE}=mynet)"
    return f"{line}: if you trust {package}, add {SETTING}=[{package}] or set {VARIABLE}={package}"


def find(name: Any, setting: str) -> Any:
    """Return what the dotted `name`, the value of `setting`, stands for, after importing its module.

    Raises
    ------
    NotAllowed : its package may not be imported
    SqError : there is nothing of that name, importing it fails, or it is from elsewhere: what a
    module has itself
        imported is not meant to be called by configs
    """
    check(name, setting)
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SqError(f"{setting}={name}: {error}") from error
    except Exception as error:  # whatever the code of a plugin raises
        raise SqError(f"{setting}={name}: importing {module} fails ({one_line(error)})") from error
    origin = getattr(found, "__module__", None)
    if not isinstance(origin, str) or not (origin.startswith("sq.") or package_of(f"{origin}.")):
        where = f"of {origin}, " if isinstance(origin, str) else ""
        raise SqError(
            f"{setting}={name}: {where}not a function or class of sq or of a package you allow"
        )
    return found


def package_of(name: str) -> str | None:
    """Return the allowed package that the dotted `name` lies in, None if it lies in none."""
    inside = [package for package in allowed() if name.startswith(f"{package}.")]
    return max(inside, key=len, default=None)


def folders() -> list[Path]:
    """Return the folders of YAML files that allowed packages bring along.

    Raises
    ------
    SqError : a file there has the name of one of sq's or of another package: one of the two would
    be ignored
    """
    found = {package: place / FOLDER for package in allowed() for place in _places(package)}
    own = {package: folder for package, folder in found.items() if folder.is_dir()}
    known = {file.relative_to(CONF): "sq" for file in CONF.rglob("*.yaml")} if own else {}
    for package, folder in own.items():
        for file in sorted(folder.rglob("*.yaml")):
            name = file.relative_to(folder)
            if name in known:
                raise SqError(
                    f"{file}: {known[name]} has {name.with_suffix('').as_posix()} already; rename the file"
                )
            known[name] = package
    return list(own.values())


def search_path(*more: str | Path) -> str:
    """Return the override that lets Hydra find sq's own YAML files, those of plugins, and the folders `more`."""
    quoted = [
        "'file://" + str(folder).replace("'", "\\'") + "'" for folder in (CONF, *folders(), *more)
    ]
    return f"hydra.searchpath=[{','.join(quoted)}]"


def describe(config: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Return version and hash of the source files of each plugin that `config` names something of."""
    packages = sorted({package for _, name in _references(config) if (package := package_of(name))})
    return {
        package: {"version": _version(package), "source": digest(package)} for package in packages
    }


@functools.cache  # what was read first is what runs
def digest(package: str) -> str:
    """Return a hash of every file of code of a package or module, as 16 hex digits."""
    sha = hashlib.sha256()
    spec = importlib.util.find_spec(package)
    places = _places(package)
    files = {
        file.relative_to(place).as_posix(): file
        for place in places
        for file in place.rglob("*")
        if file.name.endswith(tuple(importlib.machinery.all_suffixes()))
        and "__pycache__" not in file.parts
    }
    if not places and spec is not None and spec.origin is not None:
        files[Path(spec.origin).name] = Path(spec.origin)
    for name, file in sorted(files.items()):
        sha.update(f"{name}\0".encode() + file.read_bytes())
    return sha.hexdigest()[:16]


def _references(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings of a config that name code, and what they name: functions of parts, and constructors."""
    values = (
        node.items()
        if isinstance(node, Mapping)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in values:
        setting = f"{path}.{key}" if path else str(key)
        if isinstance(value, str) and (
            key == "_target_" or (setting == "model.constructor" and is_dotted(value))
        ):
            yield setting, value
        yield from _references(value, setting)


def is_dotted(constructor: str) -> bool:
    """Tell whether the constructor of a checkpoint's network is a name in a package, not one of a library's."""
    return "." in constructor and "/" not in constructor


def _entry_points() -> dict[str, str]:
    return dict(_installed(tuple(sys.path)))


@functools.cache
def _installed(path: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found = importlib.metadata.entry_points(group=GROUP)
    return tuple(
        (point.module, f"the entry point {point.name} of group {GROUP}") for point in found
    )


@functools.lru_cache(maxsize=1000)  # of what passes; an exception is not kept
def _check(package: str, source: str) -> None:
    """Raise an `SqError` unless `package`, which `source` names, can be allowed."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package):
        raise SqError(
            f"{source}: {package!r} is no name of a package; give it as in `import mynet`"
        )
    top = package.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("sq", "builtins", "__main__"):
        kind = "is sq's own" if top == "sq" else "is of Python's standard library"
        raise SqError(f"{source}: {package} {kind}, and no plugin: leave it out")
    try:
        spec = importlib.util.find_spec(package)
    except Exception as error:  # of the package above it, which is imported for that
        raise SqError(f"{source}: {package} cannot be found ({one_line(error)})") from error
    if spec is None:
        raise SqError(
            f"{source}: there is no package {package} here: install it, set PYTHONPATH, or work in the folder that "
            f"holds {top}.py or {top}/"
        )


def _make_working_folder_importable() -> None:
    """Let modules in the working folder be found, after all others: a program has its own folder there instead."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _places(package: str) -> list[Path]:
    """Return the folders of a package; none of a module that is one file."""
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []


def _version(package: str) -> str | None:
    """Return the version of the distribution that a package is of, or the one that it states itself."""
    top = package.partition(".")[0]
    for name in importlib.metadata.packages_distributions().get(top, []):
        return importlib.metadata.version(name)
    try:
        stated = getattr(importlib.import_module(top), "__version__", None)
    except Exception:  # the run itself tells why
        return None
    return stated if isinstance(stated, str) else None
