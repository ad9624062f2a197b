"""The settings of a benchmark: read from ``experiments/bench_NAME.yaml``, checked before anything is loaded.

Nothing here imports torch, so a typo is answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import hydra
from annotated_types import Ge, Interval
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sq.config import instantiate, schema
from sq.errors import SqError, one_line
from sq.records.experiments import BENCH, FOLDER
from sq.runs.loader import CONF
from sq.runs.messages import explain
from sq.runs.sweep import expand

Count = Annotated[int, Ge(1)]  # that of sq.types.problem, which needs torch
# the keys of an entry of `quantizers` that is a mapping
SAMPLE = ("quantizer", "sample_rows", "above")


@dataclass(frozen=True)
class Settings:
    """What a benchmark measures, and how; the values stand in its YAML."""

    name: str
    source: dict[str, Any]  # where layers come from: a function of sq.bench.sources and its knobs
    quantizers: list[str | dict[str, Any]]
    reference: str  # speed-ups and error ratios are over the quantizer of this label
    bits: list[Annotated[int, Interval(ge=1, le=16)]]
    grid: str
    repeats: Count
    seed: Annotated[int, Ge(0)]
    device: str
    threads: Count | None
    results: str

    @property
    def file(self) -> Path:
        """Return where the record belongs."""
        return Path(self.results) / self.name / "bench.json"


@dataclass(frozen=True)
class Method:
    """A quantizer of conf/quantizer as a benchmark runs it: on all rows, or on a sample where a layer is wide."""

    label: str
    choice: str
    solve: dict[str, Any]
    damp: float
    sample_rows: int | None = None  # of a layer ...
    above: int = 0  # ... with more columns than this

    def rows(self, outputs: int, inputs: int) -> int:
        """Return how many of a group's rows are solved in a layer of that size."""
        return (
            outputs
            if self.sample_rows is None or inputs <= self.above
            else min(self.sample_rows, outputs)
        )


def known(folder: Path = FOLDER) -> list[str]:
    """List the benchmarks there are in `folder`, without their prefix."""
    return sorted(file.stem.removeprefix(BENCH) for file in folder.glob(f"{BENCH}*.yaml"))


def load(name: str, overrides: list[str], folder: Path = FOLDER) -> Settings:
    """Return the settings of benchmark `name`, a file of `folder`, with `overrides` in Hydra's grammar.

    Raises
    ------
    SqError : no such benchmark or setting, or a value that makes no sense
    """
    name, there = name.removeprefix(BENCH), known(folder)
    if name not in there:
        raise SqError(
            f"{name}: no such benchmark; {schema.nearest(name, there)} (all: {', '.join(there)})"
        )
    own = OmegaConf.load(folder / f"{BENCH}{name}.yaml")
    names = list(schema.leaves(OmegaConf.to_container(own)))
    plain = _compose(folder, f"{BENCH}{name}", overrides, lambda error: _explain(error, names))
    return check(plain)


def check(plain: Mapping[str, Any]) -> Settings:
    """Return `plain` as settings.

    Raises
    ------
    SqError : a setting is missing, unknown, of a wrong type or out of range
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    names = list(Settings.__dataclass_fields__)
    for given in plain:
        if given not in names:
            raise SqError(
                f"{given}: no such setting of a benchmark; {schema.nearest(str(given), names)}"
            )
    if missing := [name for name in names if name not in plain]:
        raise SqError(f"no value for {', '.join(missing)}")
    for name, hint in _hints().items():
        try:
            TypeAdapter(hint, config=ConfigDict(strict=True)).validate_python(plain[name])
        except ValidationError as error:
            wanted = error.errors()[0]["msg"].replace("Input should be", "should be")
            raise SqError(f"{name}={plain[name]}: {wanted}") from error
    settings = Settings(**{name: plain[name] for name in names})
    if not settings.name.startswith(BENCH):
        raise SqError(f"name={settings.name}: a benchmark's begins with {BENCH}")
    for part in ("quantizers", "bits"):
        if not (values := getattr(settings, part)) or any(
            values.count(value) > 1 for value in values
        ):
            raise SqError(f"{part}={values}: at least one, and none twice")
    return settings


def plain(settings: Settings) -> dict[str, Any]:
    """Return `settings` as a record holds them."""
    return asdict(settings)


def methods(settings: Settings) -> list[Method]:
    """Return the quantizers of a benchmark, each with a label of its own.

    Raises
    ------
    SqError : an entry names no choice or setting of conf/quantizer, no solver, or a label is met
    twice
    """
    found = [_method(entry, settings.seed) for entry in settings.quantizers]
    labels = [method.label for method in found]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise SqError(f"quantizers: {twice[0]} is there twice")
    if settings.reference not in labels:
        raise SqError(
            f"reference={settings.reference}: not among the quantizers; {schema.nearest(settings.reference, labels)}"
        )
    return found


def choose(family: str, words: str, seed: int) -> dict[str, Any]:
    """Return the part of the config that ``"CHOICE knob=value ..."`` stands for in `family`, checked.

    Raises
    ------
    SqError : no such choice or knob
    """
    part = compose(family, words, seed)
    instantiate.check(part, family)
    return part


def compose(family: str, words: str, seed: int) -> dict[str, Any]:
    """Return what `choose` does, its knobs not checked against the code, which would import torch.

    Raises
    ------
    SqError : no such choice or knob
    """
    if not words.split():
        raise SqError(f"{family}: no choice was made")
    choice, *knobs = words.split()
    overrides = [f"{family}={choice}", *(f"{family}.{knob}" for knob in knobs), f"seed={seed}"]
    return _compose(Path(CONF), "config", overrides, lambda error: explain(error, overrides))[
        family
    ]


def _method(entry: str | dict[str, Any], seed: int) -> Method:
    if isinstance(entry, str):
        entry = {"quantizer": entry}
    if set(entry) not in ({"quantizer"}, set(SAMPLE)) or not isinstance(entry["quantizer"], str):
        raise SqError(f"quantizers: {entry}: a text, or {', '.join(SAMPLE)} (all three)")
    words = entry["quantizer"]
    part = choose("quantizer", words, seed)
    if "solve" not in part:
        raise SqError(f"quantizers: {words} is not solved layer by layer (it has no `solve`)")
    choice, *knobs = words.split()
    label = " ".join([choice.rsplit("/", 1)[-1], *(knob.removeprefix("solve.") for knob in knobs)])
    sampled = entry.get("sample_rows"), entry.get("above", 0)
    if sampled[0] is not None and not all(type(n) is int and n >= 2 for n in sampled):
        raise SqError(f"quantizers: {label}: sample_rows and above are whole numbers, 2 or more")
    return Method(label, choice, part["solve"], float(part["damp"]), *sampled)


def _compose(
    folder: Path,
    name: str,
    overrides: list[str],
    say: Callable[[HydraException | OmegaConfBaseException], str],
) -> dict[str, Any]:
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            return expand.resolve(hydra.compose(name, overrides=overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise SqError(say(error)) from error


def _explain(error: Exception, names: list[str]) -> str:
    if found := re.search(
        r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", f"{error} {error.__cause__}"
    ):
        name = found[1] or found[2]
        return f"{name}: no such setting; {schema.nearest(name, names)}"
    return one_line(error).partition(": ")[2]


def _hints() -> dict[str, Any]:
    import typing

    return typing.get_type_hints(Settings, include_extras=True)
