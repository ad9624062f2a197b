"""What sq needs beside itself: the requirements of its parts, what of them is here, and how the rest is installed."""

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
    """Return the requirements on this Python of the core and of each extra, as pyproject.toml or the wheel has them.

    Empty where neither can be read: in a checkout that is not installed, before Python 3.11.
    """
    found = _of_checkout(CHECKOUT) if CHECKOUT else None
    return _of_wheel() if found is None else found


def version(package: str) -> Version | None:
    """Return the installed version of a package, None if it is not installed."""
    try:
        return Version(metadata.version(package))
    except metadata.PackageNotFoundError:
        return None


def meets(requirement: Requirement) -> bool:
    """Return whether what is installed meets `requirement`."""
    found = version(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def missing(part: str) -> list[Requirement]:
    """Return the requirements of `part` that are not met here."""
    return [one for one in requirements().get(part, []) if not meets(one)]


def command(extra: str) -> str:
    """Return the command that installs an extra.

    That of a wheel names packages: an index may know another project by the name of this one.
    """
    if CHECKOUT:
        return f'python -m pip install -e ".[{extra}]"'
    return install(requirements().get(extra, []))


def install(wanted: list[Requirement]) -> str:
    """Return the command that installs packages."""
    return " ".join(["python -m pip install", *(f"'{_without_marker(one)}'" for one in wanted)])


def _without_marker(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _of_checkout(folder: Path) -> dict[str, list[Requirement]] | None:
    try:
        import tomllib
    except ModuleNotFoundError:  # before Python 3.11
        return None
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = {CORE: project["dependencies"], **project["optional-dependencies"]}
    every = {part: [Requirement(line) for line in lines] for part, lines in parts.items()}
    return {
        part: [one for one in own if one.marker is None or one.marker.evaluate()]
        for part, own in every.items()
    }


def _of_wheel() -> dict[str, list[Requirement]]:
    try:
        about = metadata.metadata("sq")
    except metadata.PackageNotFoundError:
        return {}
    every = [Requirement(line) for line in metadata.requires("sq") or []]
    core = [one for one in every if one.marker is None or one.marker.evaluate({"extra": CORE})]
    extras = {
        extra: [
            one
            for one in every
            if one not in core and one.marker and one.marker.evaluate({"extra": extra})
        ]
        for extra in about.get_all("Provides-Extra") or []
    }
    return {CORE: core, **extras}
