"""Turn errors of Hydra and OmegaConf into one line about settings and choices.

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


def explain(error: Exception, overrides: Sequence[str] = (), file: Path | None = None) -> str:
    """Return one line that says what was got, what is allowed and what is nearest.

    Parameters
    ----------
    overrides : of the command; the choices among them decide which settings exist
    file : the config that they apply to, if it is not sq's own
    """
    if isinstance(error, SqError):
        return one_line(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    text = f"{error} {error.__cause__ or ''}"
    explained = (
        _of_config(text)
        or _of_sweep(text)
        or _of_choice(error, text)
        or _of_name(text, overrides, file)
        or _of_value(text)
    )
    if explained:
        return explained
    if isinstance(error, OSError) and error.filename:
        return (
            f"{error.filename}: {error.strerror}; free space or correct what names it, outputs= "
            "or results="
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(text.split())
    return one_line(error)


def _of_config(text: str) -> str:
    """Explain an error of Hydra about a config folder or file that does not exist, else ""."""
    match = re.search(r"Additional config directory '([^']+)' not found", text)
    if match:
        hint = ""
        if Path(match[1]).name == "experiments":
            hint = "; those that come with sq need no folder: -cn NAME"
        return f"-cd {match[1]}: no such folder: correct it{hint}"
    match = re.search(r"Cannot find primary config '([^']+)'", text)
    if match is None:
        return ""
    name = match[1]
    folders = re.findall(r"provider=(?:main|command-line), path=file://(\S+)", text)
    names = [file.stem for folder in folders for file in Path(folder).glob("*.yaml")]
    return f"-cn {name}: no {name}.yaml in {' or '.join(reversed(folders))}; {nearest(name, names)}"


def _of_sweep(text: str) -> str:
    """Explain an error of Hydra about several values in place of one, else return ""."""
    match = re.search(
        r"Ambiguous value for argument '(.*)'\n|Sweep parameters '(.*)' requires", text
    )
    if match:
        return (
            f"{match[1] or match[2]}: several values are a sweep: add -m; as one value, write a "
            "list [...], or text '...' in quotes that the shell leaves"
        )
    match = re.search(r"Sweeping over Hydra's configuration is not supported : '(.*)'", text)
    if match:
        return f"{match[1]}: of the sweep as a whole, and not swept itself; give one value"
    return ""


def _of_choice(error: Exception, text: str) -> str:
    """Explain an error of Hydra about a choice that does not exist, else return ""."""
    match = re.search(r"Could not find '((?:hydra/)?\w+)/([^']*)'", text)
    if match is None or not isinstance(error, MissingConfigException):
        return ""
    group, option = match.groups()
    if group == "hydra/sweeper":
        return loader.other_sweeper(option)
    options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
    hint = nearest(option, options)
    if hint.startswith("nearest"):
        hint += f" (all: {', '.join(sorted(options))})"
    return f"{group}={option}: no such choice; {hint}"


def _of_name(text: str, overrides: Sequence[str], file: Path | None) -> str:
    """Explain an error of Hydra about a setting that does not exist, else return ""."""
    match = re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text)
    if match is None:
        return ""
    name = match[1] or match[2]
    of_hydra = re.search(r"full_key: (hydra\.\S+)", text)
    if of_hydra:
        return _unknown_of_hydra(of_hydra[1])
    if name.startswith("quantizer.start."):
        return (
            f"{name}: no such setting; quantizer.start is the quantizer that quantizer.init names, "
            "as its YAML is"
        )
    return _unknown(name, overrides, file)


def _of_value(text: str) -> str:
    """Explain an error of OmegaConf about a value of the wrong type, else return ""."""
    is_null = re.search(
        r"(?:is not Optional|Incompatible value 'None' for .*)\s+full_key: (\S+)", text
    )
    if is_null:
        return f"{is_null[1]}=null: should be {kind(is_null[1])}; it may not be null"
    in_file = re.search(
        r"In '(.+?)':.*\sValue '(.*?)' .*(?:could not be converted to|is not a valid) .*"
        r"\s+full_key: (\S+)",
        text,
        re.DOTALL,
    )
    if in_file:
        file, value, setting = in_file.groups()
        return f"{file}.yaml: {setting}={value}: should be {kind(setting)}"
    in_override = re.search(
        r"Error merging override (.+?) Value '.* "
        r"(?:could not be converted to|is not a valid) (\w+)",
        text,
        re.DOTALL,
    )
    if in_override:
        override, python_type = in_override.groups()
        kinds = {"Float": "a number", "Integer": "a whole number", "bool": "true or false"}
        return f"{override}: should be {kinds.get(python_type, python_type)}"
    return ""


def _unreadable(error: OverrideParseException) -> str:
    """Return why Hydra's grammar does not accept an override."""
    lines = [
        line
        for line in str(error).splitlines()
        if line.strip() and not line.startswith("See https://")
    ]
    message = " ".join(lines).removeprefix(f"Error parsing override '{error.override}' ")
    reason = message.partition(" expecting {")[0]
    match = re.match(r"\w+ while evaluating '.*?': (.*)", reason)
    if match:
        return f"{error.override}: {match[1]}"
    return (
        f"{error.override}: not NAME=VALUE as Hydra reads it ({reason}); quote text that has other "
        "signs than names"
    )


def _unknown_of_hydra(name: str) -> str:
    """Return the message about a setting `name` of Hydra's own part that does not exist."""
    import yaml

    part, _, setting = name.rpartition(".")
    if part != "hydra.launcher":
        return f"{name}: no such setting of Hydra"
    settings: dict[str, set[str]] = {}  # by launcher
    for file in Path(loader.CONF, "hydra", "launcher").glob("*.yaml"):
        settings[file.stem] = {*yaml.safe_load(file.read_text())} - {"defaults"}
    public = {knob for knobs in settings.values() for knob in knobs if knob[0] != "_"}
    hint = nearest(setting, public)
    nearest_name = hint.removeprefix("nearest: ")
    launchers = sorted(launcher for launcher, knobs in settings.items() if nearest_name in knobs)
    if launchers:
        hint += f", of hydra/launcher={' and '.join(launchers)}"
    return f"{name}: no such setting of the launcher in use; {hint}"


def _unknown(name: str, overrides: Sequence[str], file: Path | None) -> str:
    """Return the message about a setting `name` that does not exist with these choices."""
    try:
        settings = _names(overrides, file)
    except (SqError, HydraException, OmegaConfBaseException):  # the choices are wrong as well
        settings = _names()
    lacking = {choice: names for choice, names in settings.items() if name not in names}
    if len(lacking) < len(settings):  # some of the choices that a sweep goes through have it
        choice, names = next(iter(lacking.items()), ("", []))
    else:
        choice, names = "", list({other for names in settings.values() for other in names})
    return f"{name}: no such setting{choice}; {nearest(name, names)}"


def _names(overrides: Sequence[str] = (), file: Path | None = None) -> dict[str, list[str]]:
    """Return the dotted names of all settings, for each of the choices that a sweep goes through.

    The keys are clauses such as " of quantizer=rtn". Without a sweep there is one list, with key
    "".
    """
    folder, name = Path(loader.CONF), "config"
    if file is not None:
        folder, name = file.parent.absolute(), file.stem
    # Hydra reads the first config from the main folder, and others from the search path.
    if (folder / f"{name}.yaml").is_file():
        main, search_path = str(folder), plugins.search_path()
    else:
        main, search_path = loader.CONF, plugins.search_path(folder)
    with hydra.initialize_config_dir(main, version_base="1.3"):
        config = hydra.compose(name, [search_path], return_hydra_config=True)
        params = config.hydra.sweeper.get("params") or {}
        assignments = [f"{setting}={value}" for setting, value in params.items()]
        choices = _choices([*assignments, *overrides])
        settings = {}
        for clause, chosen in _combinations(choices).items():
            choosing = [f"{family}={option}" for family, option in chosen.items()]
            composed = hydra.compose(name, [search_path, *choosing])
            settings[clause] = _paths(expand.resolve(composed))
        return settings


def _choices(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return the options, several in a sweep, that overrides choose for each family."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    choices: dict[str, list[str]] = {}
    for text in overrides:
        override = parser.parse_override(text)
        if override.key_or_group in FAMILIES and not override.is_delete():
            choices[str(override.key_or_group)] = _values(override)
    return choices


def _combinations(choices: Mapping[str, list[str]]) -> dict[str, dict[str, str]]:
    """Return the choices to compose: the first options, with each swept option in turn."""
    first = {family: options[0] for family, options in choices.items()}
    swept = {}
    for family, options in choices.items():
        if len(options) > 1:
            for option in options:
                swept[f" of {family}={option}"] = {**first, family: option}
    return swept or {"": first}


def _values(override: Override) -> list[str]:
    """Return the values that `override` goes through, one unless it is a sweep."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _paths(node: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of all settings in nested mappings, without ``_target_`` and such."""
    paths: list[str] = []
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name not in OWN:
                paths += [f"{prefix}{name}", *_paths(value, f"{prefix}{name}.")]
    return paths
