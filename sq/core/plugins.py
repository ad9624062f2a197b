"""Plugins: packages other than sq whose code configs may name.

sq imports no other code, so a config from a stranger cannot run theirs. Only the user can allow a
package: by installing it with an entry point of the group ``sq.plugins``, by ``plugins=[mynet]`` on
the command line, or by the environment variable ``SQ_PLUGINS=mynet,other`` that the process starts
with. A config file, a record or an exported file cannot. Allowing a package does not import it:
that happens when a config names something in it.
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
# Environment variable: names separated by commas, which launchers pass on to their processes.
VARIABLE = "SQ_PLUGINS"
SETTING = "plugins"
FOLDER = "conf"  # in a package: YAML files of its choices, such as conf/quantizer/mine.yaml


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


# Read once: a config file can change the environment of a run later (`hydra.job.env_set`).
_named: list[str] = _split(os.environ.get(VARIABLE, ""))
_of_call: ContextVar[tuple[str, ...]] = ContextVar("plugins of a call", default=())


class NotAllowed(SqError):
    """A config names something in a package that may not be imported."""


def allowed() -> dict[str, str]:
    """Return the packages that configs may name, each with the setting that allows it.

    Raises
    ------
    SqError : one is not installed, is of Python's standard library, or is no name of a package
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
    source : the setting that names them, for messages

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
    """Allow `packages` in this thread for the block."""
    token = _of_call.set((*_of_call.get(), *packages))
    try:
        yield
    finally:
        _of_call.reset(token)


def named(overrides: Sequence[str]) -> list[str]:
    """Return the packages that ``plugins=[...]`` names among the `overrides` of a command.

    Raises
    ------
    SqError : it is no list of names
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    packages: list[str] = []
    for text in overrides:
        if not re.match(rf"\+{{0,2}}{SETTING}=", text):
            continue
        try:
            override = OverridesParser.create().parse_override(text)
            value = None if override.is_sweep_override() else override.value()
        except HydraException:
            value = None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise SqError(f"{text}: should be a list of names of packages, {SETTING}=[mynet]")
        packages += value
    return packages


def untrusted(config: Mapping[str, Any]) -> list[str]:
    """Return a line for each package in `plugins` of a composed config that is not allowed.

    Packages on the command line are allowed before a config is composed, so these come from a
    config file.
    """
    packages = config.get(SETTING) or []
    if not packages:
        return []
    known_packages = allowed()
    return [
        f"{SETTING}=[{package}] stands in a config file, which may not allow code to be imported: "
        f"if you trust {package}, add {SETTING}=[{package}] to the command, or set "
        f"{VARIABLE}={package}"
        for package in packages
        if package not in known_packages
    ]


def refusals(config: Mapping[str, Any]) -> list[str]:
    """Return a line for each package that `config` names code in and that may not be imported."""
    settings: dict[str, list[str]] = {}
    for setting, name in _references(config):
        if not is_allowed(name):
            settings.setdefault(_suggested(name), []).append(f"{setting}={name}")
    return [_refusal(assignments, package) for package, assignments in settings.items()]


def check(name: Any, setting: str) -> None:
    """Raise a `NotAllowed` unless `name`, the value of `setting`, is in an allowed package."""
    if not is_allowed(name):
        raise NotAllowed(_refusal([f"{setting}={name}"], _suggested(name)))


def is_allowed(name: Any) -> bool:
    """Tell whether `name` is a dotted name in sq or in an allowed package."""
    return isinstance(name, str) and (name.startswith("sq.") or package_of(name) is not None)


def _suggested(name: Any) -> str:
    """Return the package to allow for the dotted `name`, "" if it is one that cannot be allowed."""
    match = re.match(r"([A-Za-z_]\w*)\.\w", name) if isinstance(name, str) else None
    if match is None or match[1] in (*sys.stdlib_module_names, "sq"):
        return ""
    return match[1]


def _refusal(assignments: list[str], package: str) -> str:
    line = f"{', '.join(assignments)}: only names under sq. are imported, and of packages you allow"
    if not package:
        return f"{line} ({SETTING}=[mynet], or {VARIABLE}=mynet)"
    return f"{line}: if you trust {package}, add {SETTING}=[{package}] or set {VARIABLE}={package}"


def find(name: Any, setting: str) -> Any:
    """Import the module of the dotted `name`, the value of `setting`, and return what it names.

    Raises
    ------
    NotAllowed : its package may not be imported
    SqError : nothing has that name, importing the module fails, or the module has itself imported
        it from a package that is not allowed
    """
    check(name, setting)
    module, _, attribute = name.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SqError(f"{setting}={name}: {error}") from error
    except Exception as error:  # the code of a plugin may raise anything
        raise SqError(f"{setting}={name}: importing {module} fails ({one_line(error)})") from error
    origin = getattr(function, "__module__", None)
    if not isinstance(origin, str) or not (origin.startswith("sq.") or package_of(f"{origin}.")):
        source = f"of {origin}, " if isinstance(origin, str) else ""
        raise SqError(
            f"{setting}={name}: {source}not a function or class of sq or of a package you allow"
        )
    return function


def package_of(name: str) -> str | None:
    """Return the allowed package that the dotted `name` lies in, None if it lies in none."""
    packages = [package for package in allowed() if name.startswith(f"{package}.")]
    return max(packages, key=len, default=None)  # the innermost


def folders() -> list[Path]:
    """Return the folders of YAML files in allowed packages.

    Raises
    ------
    SqError : a file there has the name of one of sq's or of another package's: Hydra would ignore
        one of the two
    """
    config_folders: dict[str, Path] = {}
    for package in allowed():
        for place in _package_folders(package):
            config_folders[package] = place / FOLDER
    config_folders = {
        package: folder for package, folder in config_folders.items() if folder.is_dir()
    }
    if not config_folders:
        return []
    owners = {file.relative_to(CONF): "sq" for file in CONF.rglob("*.yaml")}
    for package, folder in config_folders.items():
        for file in sorted(folder.rglob("*.yaml")):
            name = file.relative_to(folder)
            if name in owners:
                raise SqError(
                    f"{file}: {owners[name]} has {name.with_suffix('').as_posix()} already; "
                    "rename the file"
                )
            owners[name] = package
    return list(config_folders.values())


def search_path(*more: str | Path) -> str:
    """Return the override for Hydra to find the YAML files of sq, plugins and folders `more`."""
    quoted = []
    for folder in (CONF, *folders(), *more):
        escaped = str(folder).replace("'", "\\'")
        quoted.append(f"'file://{escaped}'")
    return f"hydra.searchpath=[{','.join(quoted)}]"


def describe(config: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Return version and hash of the source files of each plugin that `config` names code in."""
    packages = {package_of(name) for _, name in _references(config)}
    return {
        package: {"version": _version(package), "source": digest(package)}
        for package in sorted(package for package in packages if package)
    }


# Cached: the process runs the code that it read first, so a later edit must not change the hash.
@functools.cache
def digest(package: str) -> str:
    """Return a hash of every file of code of a package or module, as 16 hex digits."""
    sha = hashlib.sha256()
    for name, file in sorted(_code_files(package).items()):
        sha.update(f"{name}\0".encode() + file.read_bytes())
    return sha.hexdigest()[:16]


def _code_files(package: str) -> dict[str, Path]:
    """Return the files of code of a package or module, by their path within it."""
    files: dict[str, Path] = {}
    suffixes = tuple(importlib.machinery.all_suffixes())
    package_folders = _package_folders(package)
    for folder in package_folders:
        for file in folder.rglob("*"):
            if file.name.endswith(suffixes) and "__pycache__" not in file.parts:
                files[file.relative_to(folder).as_posix()] = file
    if not package_folders:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            files[Path(spec.origin).name] = Path(spec.origin)
    return files


def _references(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield setting and value of every ``_target_`` in a config, and of a dotted constructor."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        setting = f"{path}.{key}" if path else str(key)
        if isinstance(value, str):
            is_constructor = setting == "model.constructor" and is_dotted(value)
            if key == "_target_" or is_constructor:
                yield setting, value
        yield from _references(value, setting)


def is_dotted(constructor: str) -> bool:
    """Tell whether a network's constructor is a Python name, not one of a model library."""
    return "." in constructor and "/" not in constructor


def _entry_points() -> dict[str, str]:
    return dict(_installed(tuple(sys.path)))


@functools.cache
def _installed(path: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return package and source of each entry point; ``sys.path`` is the key of the cache."""
    return tuple(
        (point.module, f"the entry point {point.name} of group {GROUP}")
        for point in importlib.metadata.entry_points(group=GROUP)
    )


@functools.lru_cache(maxsize=1000)  # of packages that pass; exceptions are not cached
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
    except Exception as error:  # raised by the parent package, which `find_spec` imports
        raise SqError(f"{source}: {package} cannot be found ({one_line(error)})") from error
    if spec is None:
        raise SqError(
            f"{source}: there is no package {package} here: install it, set PYTHONPATH, or work in "
            f"the folder that holds {top}.py or {top}/"
        )


def _make_working_folder_importable() -> None:
    """Append the working folder to ``sys.path``: of a script, its own folder is there instead."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _package_folders(package: str) -> list[Path]:
    """Return the folders of a package; none for a module that is one file."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return []
    return [Path(folder) for folder in spec.submodule_search_locations or []]


def _version(package: str) -> str | None:
    """Return the version of a package's distribution, else the package's ``__version__``."""
    top = package.partition(".")[0]
    distributions = importlib.metadata.packages_distributions().get(top, [])
    if distributions:
        return importlib.metadata.version(distributions[0])
    try:
        version = getattr(importlib.import_module(top), "__version__", None)
    except Exception:  # the run itself will report it
        return None
    return version if isinstance(version, str) else None
