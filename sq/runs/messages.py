"""What a command line got wrong, in one line: Hydra's and OmegaConf's errors in the words of settings and choices.

Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from sq.config.instantiate import OWN
from sq.config.schema import FAMILIES, kind, nearest
from sq.core import plugins
from sq.errors import SqError, one_line
from sq.runs import loader
from sq.runs.sweep import expand


def explain(error: Exception, words: Sequence[str] = (), file: Path | None = None) -> str:
    """Return one line that says what was got, what is allowed and what is nearest.

    Parameters
    ----------
    words : overrides; the choices among them decide which settings there are
    file : the config they are of, if it is not sq's own
    """
    if isinstance(error, SqError):
        return one_line(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    text = f"{error} {error.__cause__ or ''}"
    if found := re.search(r"Additional config directory '([^']+)' not found", text):
        shipped = (
            "; those that come with sq need no folder: -cn NAME"
            if Path(found[1]).name == "experiments"
            else ""
        )
        return f"-cd {found[1]}: no such folder: correct it{shipped}"
    if found := re.search(r"Cannot find primary config '([^']+)'", text):
        return _no_experiment(
            found[1], re.findall(r"provider=(?:main|command-line), path=file://(\S+)", text)
        )
    if (
        explained := _of_sweep(text)
        or _of_choice(error, text)
        or _of_name(text, words, file)
        or _of_value(text)
    ):
        return explained
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; free space or correct what names it, outputs= or results="
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(text.split())
    return one_line(error)


def _no_experiment(name: str, folders: list[str]) -> str:
    """Return what to say of a config `name` that none of `folders` has."""
    names = [file.stem for folder in folders for file in Path(folder).glob("*.yaml")]
    return f"-cn {name}: no {name}.yaml in {' or '.join(reversed(folders))}; {nearest(name, names)}"


def _of_sweep(text: str) -> str:
    """Return what `text` of Hydra's says of several values where one belongs, "" if it is about something else."""
    if found := re.search(
        r"Ambiguous value for argument '(.*)'\n|Sweep parameters '(.*)' requires", text
    ):
        return (
            f"{found[1] or found[2]}: several values are a sweep: add -m; as one value, write a list [...], "
            "or text '...' in quotes that the shell leaves"
        )
    if found := re.search(r"Sweeping over Hydra's configuration is not supported : '(.*)'", text):
        return f"{found[1]}: of the sweep as a whole, and not swept itself; give one value"
    return ""


def _of_choice(error: Exception, text: str) -> str:
    """Return what `text` of Hydra's says of a choice that is not there, "" if it is about something else."""
    found = re.search(r"Could not find '((?:hydra/)?\w+)/([^']*)'", text)
    if found is None or not isinstance(error, MissingConfigException):
        return ""
    group, option = found.groups()
    if group == "hydra/sweeper":
        return loader.other_sweeper(option)
    options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
    near = nearest(option, options)
    every = f" (all: {', '.join(sorted(options))})" if near.startswith("nearest") else ""
    return f"{group}={option}: no such choice; {near}{every}"


def _of_name(text: str, words: Sequence[str], file: Path | None) -> str:
    """Return what `text` of Hydra's says of a setting that is not there, "" if it is about something else."""
    found = re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text)
    if found is None:
        return ""
    name = found[1] or found[2]
    if full := re.search(r"full_key: (hydra\.\S+)", text):
        return _unknown_of_hydra(full[1])
    if name.startswith("quantizer.start."):
        return f"{name}: no such setting; quantizer.start is the quantizer that quantizer.init names, as its YAML is"
    return _unknown(name, words, file)


def _of_value(text: str) -> str:
    """Return what `text` of OmegaConf's says of a value of the wrong type, "" if it is about something else."""
    if found := re.search(
        r"(?:is not Optional|Incompatible value 'None' for .*)\s+full_key: (\S+)", text
    ):
        return f"{found[1]}=null: should be {kind(found[1])}; it may not be null"
    wrong = r"In '(.+?)':.*\sValue '(.*?)' .*(?:could not be converted to|is not a valid) .*\s+full_key: (\S+)"
    if found := re.search(wrong, text, re.DOTALL):
        return f"{found[1]}.yaml: {found[3]}={found[2]}: should be {kind(found[3])}"
    wrong = (
        r"Error merging override (.+?) Value '.* (?:could not be converted to|is not a valid) (\w+)"
    )
    if found := re.search(wrong, text, re.DOTALL):
        kinds = {"Float": "a number", "Integer": "a whole number", "bool": "true or false"}
        return f"{found[1]}: should be {kinds.get(found[2], found[2])}"
    return ""


def _unreadable(error: OverrideParseException) -> str:
    """Return why Hydra's grammar does not have an override."""
    lines = [
        line
        for line in str(error).splitlines()
        if line.strip() and not line.startswith("See https://")
    ]
    reason = (
        " ".join(lines)
        .removeprefix(f"Error parsing override '{error.override}' ")
        .partition(" expecting {")[0]
    )
    if found := re.match(r"\w+ while evaluating '.*?': (.*)", reason):
        return f"{error.override}: {found[1]}"
    return f"{error.override}: not NAME=VALUE as Hydra reads it ({reason}); quote text that has other signs than names"


def _unknown_of_hydra(name: str) -> str:
    """Return what to say of the setting `name` of Hydra's own part, which does not exist."""
    import yaml

    start, _, own = name.rpartition(".")
    if start != "hydra.launcher":
        return f"{name}: no such setting of Hydra"
    files = Path(loader.CONF, "hydra", "launcher").glob("*.yaml")
    known = {file.stem: {*yaml.safe_load(file.read_text())} - {"defaults"} for file in files}
    near = nearest(
        own, {setting for knobs in known.values() for setting in knobs if setting[0] != "_"}
    )
    whose = sorted(
        launcher for launcher, knobs in known.items() if near.removeprefix("nearest: ") in knobs
    )
    of = f", of hydra/launcher={' and '.join(whose)}" if whose else ""
    return f"{name}: no such setting of the launcher in use; {near}{of}"


def _unknown(name: str, words: Sequence[str], file: Path | None) -> str:
    """Return what to say of the setting `name`, which does not exist with the choices of `words` and `file`."""
    try:
        known = _names(words, file)
    except (SqError, HydraException, OmegaConfBaseException):  # the choices are wrong as well
        known = _names()
    lacking = {choice: names for choice, names in known.items() if name not in names}
    if len(lacking) < len(known):  # a setting of some of the choices that a sweep goes through
        choice, names = next(iter(lacking.items()), ("", []))
    else:
        choice, names = "", list({other for names in known.values() for other in names})
    return f"{name}: no such setting{choice}; {nearest(name, names)}"


def _names(words: Sequence[str] = (), file: Path | None = None) -> dict[str, list[str]]:
    """Return the dotted names of all settings, for each of the choices that a sweep goes through.

    The names go by words for that choice, " of quantizer=rtn"; without a sweep there is one list,
    of no words.
    """
    folder, name = (
        (Path(loader.CONF), "config") if file is None else (file.parent.absolute(), file.stem)
    )
    holds = (folder / f"{name}.yaml").is_file()
    main = str(folder if holds else loader.CONF)  # where Hydra reads the first config from
    base = [plugins.search_path(*([] if holds else [folder]))]
    with hydra.initialize_config_dir(main, version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        params = (
            hydra.compose(name, base, return_hydra_config=True).hydra.sweeper.get("params") or {}
        )
        given = [f"{setting}={value}" for setting, value in params.items()] + [*words]
        overrides = [o for o in map(parser.parse_override, given) if o.key_or_group in FAMILIES]
        choices = {str(o.key_or_group): _values(o) for o in overrides if not o.is_delete()}
        first = {family: options[0] for family, options in choices.items()}
        swept = {
            f" of {f}={option}": {**first, f: option}
            for f, own in choices.items()
            if own[1:]
            for option in own
        }
        return {
            choice: _paths(
                expand.resolve(
                    hydra.compose(name, [*base, *(f"{f}={own}" for f, own in chosen.items())])
                )
            )
            for choice, chosen in (swept or {"": first}).items()
        }


def _values(override: Override) -> list[str]:
    """Return the values that `override` goes through, one unless it is of a sweep."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _paths(node: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of all that is in nested mappings, but for what says which function a part is."""
    if not isinstance(node, Mapping):
        return []
    found = {f"{prefix}{name}": value for name, value in node.items() if name not in OWN}
    return [path for name, value in found.items() for path in (name, *_paths(value, f"{name}."))]
