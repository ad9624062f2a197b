"""Experiments: config files that answer a question, their headers, and where their records go."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sq.core.paths import CONF
from sq.core.paths import EXPERIMENTS as FOLDER
from sq.errors import SqError, one_line

DEFAULT = CONF / "config.yaml"  # its name is that of runs without an experiment
BENCH = "bench_"  # prefix of the files of benchmarks, which sq.bench measures
SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}


@dataclass(frozen=True, eq=False)
class Experiment:
    """A file of experiments/: its question, and the folder of results/ for its records."""

    file: Path
    name: str
    header: dict[str, str]

    @property
    def stem(self) -> str:
        """Return its name on the command line."""
        return self.file.stem

    @property
    def question(self) -> str:
        """Return the question, "" if the header has none."""
        return self.header.get("Question", "")

    @property
    def is_bench(self) -> bool:
        """Return whether it is a benchmark."""
        return self.stem.startswith(BENCH)

    @property
    def seconds(self) -> float | None:
        """Return its duration by the header ("about 3 minutes"), None if that has none."""
        match = re.search(
            r"\babout (\d+(?:\.\d+)?) (second|minute|hour)s?\b", self.header.get("Cost", "")
        )
        return float(match[1]) * SECONDS[match[2]] if match else None


def read(folder: Path = FOLDER) -> list[Experiment]:
    """Return the experiments of `folder`, sorted by file.

    Raises
    ------
    SqError : there is none, one cannot be read, or two of different questions would share a folder
        of records
    """
    experiments = listed(folder)
    if not experiments:
        raise SqError(
            f"no experiments in {folder}: it should hold files NAME.yaml, each a question"
        )
    problems = misnamed(experiments)
    if problems:
        raise SqError("; ".join(problems))
    return experiments


def listed(folder: Path = FOLDER) -> list[Experiment]:
    """Return the experiments of `folder`, possibly none, sorted by file and without a check.

    Raises
    ------
    SqError : one cannot be read
    """
    return [Experiment(file, _name(file), header(file)) for file in sorted(folder.glob("*.yaml"))]


def header(file: Path) -> dict[str, str]:
    """Return the parts of the header of an experiment's `file` by their first word.

    A part is a comment "# Word  text", with two spaces or more. Comment lines without such a word
    continue the part before them.
    """
    parts: dict[str, str] = {}
    word = ""
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        match = re.match(r"# ([A-Z]\w+) {2,}(\S.*)", line)
        if match:
            word = match[1]
            parts[word] = match[2]
        elif word:
            parts[word] += " " + line.removeprefix("#").strip()
    return parts


def misnamed(experiments: list[Experiment]) -> list[str]:
    """Return a line for each experiment whose records would mix with those of another question.

    A file has its own name. The second part of a question may share the folder of the first:
    NAME_PART.yaml may have the name NAME of NAME.yaml.
    """
    stems = {experiment.stem for experiment in experiments}
    lines = []
    for experiment in experiments:
        name, stem = experiment.name, experiment.stem
        is_second_part = name in stems and stem.startswith(f"{name}_") and not experiment.is_bench
        if name == stem or is_second_part:
            continue
        namesakes = [
            f"{other.stem}.yaml"
            for other in experiments
            if other.name == name and other is not experiment
        ]
        shared = ""
        if namesakes:
            shared = f", as in {', '.join(namesakes)}: two questions would share results/{name}"
        lines.append(
            f"{experiment.file}: name: {name}{shared}; set name: {stem}, "
            "or for a second part of one question call the file NAME_PART.yaml"
        )
    return lines


def misplaced(hydra: Any, name: str) -> str:
    """Return why the experiment of a command may not keep its records under `name`, "" if it may.

    Parameters
    ----------
    hydra : Hydra's own part of the command's config. A name on the command line is not checked
    """
    config_name = hydra.job.config_name
    if name == Path(config_name).name:
        return ""
    if any(override.startswith("name=") for override in hydra.overrides.task):
        return ""
    file = _config_file(hydra.runtime.config_sources, config_name)
    if file is None or name == _name(DEFAULT):
        return ""
    experiments = [Experiment(file, name, {})]
    namesake = file.with_name(f"{name}.yaml")
    if namesake.is_file():
        experiments.append(Experiment(namesake, name, {}))
    return "; ".join(misnamed(experiments))


def _config_file(sources: Any, config_name: str) -> Path | None:
    """Return the file that Hydra reads the config from, None if no folder has it."""
    for source in sources:
        if source.schema == "file":
            file = Path(source.path) / f"{config_name}.yaml"
            if file.is_file():
                return file
    return None


def _name(file: Path) -> str:
    try:
        name = yaml.safe_load(file.read_text())["name"]
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise SqError(f"{file} cannot be read as YAML: {one_line(error)}") from error
    except (KeyError, TypeError) as error:
        raise SqError(f"{file} has no name: set name: {file.stem}") from error
    return str(name)
