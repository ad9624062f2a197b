"""Code that a config could have Hydra itself import or call, before sq sees the config: it is refused.

Hydra calls what `hydra.callbacks` names, the factories and classes of its logging, and every
``_target_`` in a launcher or sweeper; it imports the packages that a config file adds to the search
path (``pkg://NAME``).
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
# Hydra itself sees that these are plugins, which it has imported at its start.
PLUGINS = ("hydra.launcher._target_", "hydra.sweeper._target_")
CALLBACKS = re.compile(r"hydra\.experimental\.callbacks\.\w+Callback")
# Without QueueHandler, which calls what its `queue` names.
CLASSES = re.compile(
    r"logging\.(Formatter|Filter|StreamHandler|FileHandler|NullHandler|handlers\.\w+FileHandler)"
)
# Environment variables that say which programs run, and what is loaded into them.
PROGRAMS = re.compile(r"PATH|PATHEXT|(LD_|DYLD_|GIT_).*|PYTHON(?!HASHSEED$).*", re.IGNORECASE)
STREAM = re.compile(r"ext://sys\.std(out|err)")
# set by Hydra as it runs; what else is looked up might begin with ext://
FOLDER = "${hydra.runtime.output_dir}/"


def check_search_path(file: DictConfig) -> None:
    """Raise an `SqError` if a config, as its `file` has it, adds a package to search that may not be imported."""
    listed = OmegaConf.select(file, SEARCH_PATH)
    for entry in listed if isinstance(listed, Sequence) and not isinstance(listed, str) else []:
        scheme, _, package = str(entry).partition("://")
        if scheme == "pkg" and not plugins.is_allowed(f"{package.replace('/', '.')}.x"):
            raise SqError(
                f"{SEARCH_PATH}={entry} stands in a config file, which may not allow code to be imported: name the "
                f"folder (file://...), or if you trust {package}, add {plugins.SETTING}=[{package}]"
            )


def check(hydras: DictConfig) -> None:
    """Raise an `SqError` if Hydra's part of a config names code that is neither Hydra's nor of an allowed package.

    Functions of sq are no callbacks: among them is the one that allows packages.
    """
    for name in hydras.job.env_set:
        if PROGRAMS.fullmatch(str(name)):
            raise SqError(
                f"hydra.job.env_set.{name}: a config may not choose which programs run: leave it out, or set {name} "
                "before sq is started"
            )
    for part in (*BUILT, *LOGGING):
        for setting, value in _strings(_plain(hydras, part), f"hydra.{part}"):
            key = setting.rpartition(".")[2]
            if key == "_target_":
                harmless: object = (
                    setting in PLUGINS or CALLBACKS.fullmatch(value) or plugins.package_of(value)
                )
            elif "${" in value:
                harmless = value.startswith(FOLDER)
            elif part in BUILT:
                continue
            elif key in ("()", "class"):
                harmless = CLASSES.fullmatch(value) or plugins.package_of(value)
            else:
                harmless = "://" not in value or STREAM.fullmatch(value)
            if not harmless:
                raise SqError(
                    f"{setting}={value}: a config may not have Hydra import or call that: leave it out, or if you "
                    f"trust its package, add {plugins.SETTING}=[PACKAGE]"
                )


def _plain(hydras: DictConfig, part: str) -> Any:
    """Return a part of Hydra's, with what it looks up elsewhere in the config, if that can be looked up by now."""
    try:
        found = hydras[part]  # itself looked up
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    except OmegaConfBaseException:
        return OmegaConf.to_container(hydras, resolve=False)[part]  # type: ignore[index,call-overload]


def _strings(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every string in nested mappings and lists, with where it is."""
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _strings(value, f"{path}.{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _strings(value, f"{path}.{number}")
