"""Requirements of sq and its extras: what is installed, and how to install the rest."""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from sq.core.paths import CHECKOUT

CORE = ""  # the part that every run needs; the others are extras


@functools.cache
def requirements() -> dict[str, list[Requirement]]:
    """Return the requirements on this Python of the core and of each extra.

    They come from pyproject.toml or the wheel. The result is empty where neither can be read: in a
    checkout that is not installed, before Python 3.11.
    """
    if CHECKOUT:
        parts = _of_checkout(CHECKOUT)
        if parts is not None:
            return parts
    return _of_wheel()


def version(package: str) -> Version | None:
    """Return the installed version of a package, None if it is not installed."""
    try:
        return Version(metadata.version(package))
    except metadata.PackageNotFoundError:
        return None


def meets(requirement: Requirement) -> bool:
    """Return whether the installed package meets `requirement`."""
    installed = version(requirement.name)
    return installed is not None and requirement.specifier.contains(installed, prereleases=True)


def missing(part: str) -> list[Requirement]:
    """Return the requirements of `part` that are not met here."""
    return [need for need in requirements().get(part, []) if not meets(need)]


def command(extra: str) -> str:
    """Return the command that installs an extra.

    For a wheel it names the packages: on an index, another project may have the name of this one.
    """
    if CHECKOUT:
        return f'python -m pip install -e ".[{extra}]"'
    return install(requirements().get(extra, []))


def install(packages: list[Requirement]) -> str:
    """Return the command that installs packages."""
    quoted = [f"'{_without_marker(package)}'" for package in packages]
    return " ".join(["python -m pip install", *quoted])


def _without_marker(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _of_checkout(folder: Path) -> dict[str, list[Requirement]] | None:
    """Return the requirements in pyproject.toml; None if this Python has no parser for it."""
    try:
        import tomllib
    except ModuleNotFoundError:  # before Python 3.11
        return None
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = {CORE: project["dependencies"], **project["optional-dependencies"]}
    return {part: _on_this_python(lines) for part, lines in parts.items()}


def _on_this_python(lines: list[str]) -> list[Requirement]:
    needs = [Requirement(line) for line in lines]
    return [need for need in needs if need.marker is None or need.marker.evaluate()]


def _of_wheel() -> dict[str, list[Requirement]]:
    """Return the requirements in the metadata of the installed package, {} if there is none."""
    try:
        about = metadata.metadata("sq")
    except metadata.PackageNotFoundError:
        return {}
    needs = [Requirement(line) for line in metadata.requires("sq") or []]
    core = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": CORE})]
    parts = {CORE: core}
    # A wheel marks the requirements of an extra by `extra == "NAME"`.
    rest = [need for need in needs if need not in core]
    for extra in about.get_all("Provides-Extra") or []:
        parts[extra] = [
            need for need in rest if need.marker and need.marker.evaluate({"extra": extra})
        ]
    return parts
