"""Experiments as questions: the files of a folder, what their headers say, and which of them keep records together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sq.core.paths import CONF
from sq.core.paths import EXPERIMENTS as FOLDER
from sq.errors import SqError, one_line

DEFAULT = CONF / "config.yaml"  # its name is that of runs which answer no question
BENCH = "bench_"  # files of benchmarks begin with it: those are measured by sq.bench, not swept
UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}


@dataclass(frozen=True, eq=False)
class Experiment:
    """A file of experiments/: the question it answers, and the folder of results/ that its records go to."""

    file: Path
    name: str
    header: dict[str, str]

    @property
    def stem(self) -> str:
        """Return what the command line knows it by."""
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
        """Return what all of it takes by its header ("about 3 minutes"), None if the header does not say."""
        found = re.search(
            r"\babout (\d+(?:\.\d+)?) (second|minute|hour)s?\b", self.header.get("Cost", "")
        )
        return float(found[1]) * UNITS[found[2]] if found else None


def read(folder: Path = FOLDER) -> list[Experiment]:
    """Return the experiments of `folder`, sorted by file.

    Raises
    ------
    SqError : there is none, one cannot be read, or two of different questions would keep their
    records together
    """
    found = listed(folder)
    if not found:
        raise SqError(
            f"no experiments in {folder}: it should hold files NAME.yaml, each a question"
        )
    if wrong := misnamed(found):
        raise SqError("; ".join(wrong))
    return found


def listed(folder: Path = FOLDER) -> list[Experiment]:
    """Return the experiments of `folder`, if there are any, as they are, sorted by file.

    Raises
    ------
    SqError : one cannot be read
    """
    return [Experiment(file, _name(file), header(file)) for file in sorted(folder.glob("*.yaml"))]


def header(file: Path) -> dict[str, str]:
    """Return the header of an experiment's `file`, by the word that each of its parts begins with.

    A part is a comment "# Word  text", with two spaces or more; lines that follow without such a
    word go on with it.
    """
    parts: dict[str, str] = {}
    word = ""
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if found := re.match(r"# ([A-Z]\w+) {2,}(\S.*)", line):
            word = found[1]
            parts[word] = found[2]
        elif word:
            parts[word] += " " + line.removeprefix("#").strip()
    return parts


def misnamed(experiments: list[Experiment]) -> list[str]:
    """Return a line for each of `experiments` that would mix its records with those of another question.

    A second part of a question goes beside the first: NAME_PART.yaml may have the name of
    NAME.yaml. Any other name than its file's is another question's, or one that nobody would look
    under.
    """
    stems = {one.stem for one in experiments}
    lines = []
    for one in experiments:
        part = one.name in stems and one.stem.startswith(f"{one.name}_") and not one.is_bench
        if one.name == one.stem or part:
            continue
        others = [
            f"{other.stem}.yaml"
            for other in experiments
            if other.name == one.name and other is not one
        ]
        shared = (
            f", as in {', '.join(others)}: two questions would share results/{one.name}"
            if others
            else ""
        )
        lines.append(
            f"{one.file}: name: {one.name}{shared}; set name: {one.stem}, "
            "or for a second part of one question call the file NAME_PART.yaml"
        )
    return lines


def misplaced(hydra: Any, name: str) -> str:
    """Return why the question that a command asks may not keep its records under `name`, "" if it may.

    Parameters
    ----------
    hydra : Hydra's own part of the command's config; a name that the command gives is the user's
    own affair
    """
    stem = Path(hydra.job.config_name).name
    given = any(word.startswith("name=") for word in hydra.overrides.task)
    folders = [
        Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"
    ]
    file = next(
        (
            found
            for folder in folders
            if (found := folder / f"{hydra.job.config_name}.yaml").is_file()
        ),
        None,
    )
    if name == stem or given or file is None or name == _name(DEFAULT):
        return ""
    namesake = file.with_name(f"{name}.yaml")
    others = [Experiment(namesake, name, {})] if namesake.is_file() else []
    return "; ".join(misnamed([Experiment(file, name, {}), *others]))


def _name(file: Path) -> str:
    try:
        name = yaml.safe_load(file.read_text())["name"]
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise SqError(f"{file} cannot be read as YAML: {one_line(error)}") from error
    except (KeyError, TypeError) as error:
        raise SqError(f"{file} has no name: set name: {file.stem}") from error
    return str(name)
