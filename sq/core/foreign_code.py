"""Refuse configs by which Hydra itself would import or call foreign code.

Hydra does so before sq sees the config. It calls what `hydra.callbacks` names, the factories and
classes of its logging, and every ``_target_`` in a launcher or sweeper. It imports the packages
that a config file adds to the search path (``pkg://NAME``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sq.core import plugins
from sq.errors import SqError

SEARCH_PATH = "hydra.searchpath"
LOGGING = ("hydra_logging", "job_logging")
BUILT = ("callbacks", "launcher", "sweeper")  # parts with a `_target_`, at any depth
# Hydra checks that these are plugins, which it imported at its start.
PLUGINS = ("hydra.launcher._target_", "hydra.sweeper._target_")
CALLBACKS = re.compile(r"hydra\.experimental\.callbacks\.\w+Callback")
# QueueHandler is not among them: it calls what its `queue` names.
CLASSES = re.compile(
    r"logging\.(Formatter|Filter|StreamHandler|FileHandler|NullHandler|handlers\.\w+FileHandler)"
)
# Environment variables that decide which programs run, and what is loaded into them.
PROGRAMS = re.compile(r"PATH|PATHEXT|(LD_|DYLD_|GIT_).*|PYTHON(?!HASHSEED$).*", re.IGNORECASE)
STREAM = re.compile(r"ext://sys\.std(out|err)")
# Set by Hydra as it runs. Any other interpolation could resolve to text that begins with ext://
FOLDER = "${hydra.runtime.output_dir}/"


def check_search_path(file: DictConfig) -> None:
    """Raise an `SqError` if a config file adds a package to the search path that is not allowed."""
    entries = OmegaConf.select(file, SEARCH_PATH)
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        return
    for entry in entries:
        scheme, _, package = str(entry).partition("://")
        if scheme == "pkg" and not plugins.is_allowed(f"{package.replace('/', '.')}.x"):
            raise SqError(
                f"{SEARCH_PATH}={entry} stands in a config file, which may not allow code to be "
                f"imported: name the folder (file://...), or if you trust {package}, add "
                f"{plugins.SETTING}=[{package}]"
            )


def check(hydra_config: DictConfig) -> None:
    """Raise an `SqError` if Hydra's part of a config names code of a package that is not allowed.

    Hydra's own code is allowed. Functions of sq are not allowed as callbacks: one of them allows
    packages.
    """
    for name in hydra_config.job.env_set:
        if PROGRAMS.fullmatch(str(name)):
            raise SqError(
                f"hydra.job.env_set.{name}: a config may not choose which programs run: leave it "
                f"out, or set {name} before sq is started"
            )
    for part in (*BUILT, *LOGGING):
        for setting, value in _strings(_plain(hydra_config, part), f"hydra.{part}"):
            if not _is_harmless(part, setting, value):
                raise SqError(
                    f"{setting}={value}: a config may not have Hydra import or call that: leave "
                    f"it out, or if you trust its package, add {plugins.SETTING}=[PACKAGE]"
                )


def _is_harmless(part: str, setting: str, value: str) -> bool:
    """Tell whether a string in a `part` of Hydra's config makes Hydra call no foreign code."""
    key = setting.rpartition(".")[2]
    if key == "_target_":
        return bool(setting in PLUGINS or CALLBACKS.fullmatch(value) or plugins.package_of(value))
    if "${" in value:
        return value.startswith(FOLDER)
    if part in BUILT:
        return True
    if key in ("()", "class"):
        return bool(CLASSES.fullmatch(value) or plugins.package_of(value))
    return "://" not in value or bool(STREAM.fullmatch(value))


def _plain(hydra_config: DictConfig, part: str) -> Any:
    """Return a part of Hydra's config as plain data, its interpolations resolved where possible."""
    try:
        node = hydra_config[part]  # may be an interpolation itself
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException:
        return OmegaConf.to_container(hydra_config, resolve=False)[part]  # type: ignore[index,call-overload]


def _strings(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and value of every string in nested mappings and lists."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _strings(value, f"{path}.{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _strings(value, f"{path}.{number}")
