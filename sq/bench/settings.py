"""The settings of a benchmark, read from ``experiments/bench_NAME.yaml`` and checked.

Nothing here imports torch, so a typo is reported at once.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
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

Count = Annotated[int, Ge(1)]
# The keys of an entry of `quantizers` that solves a sample of rows.
SAMPLE_KEYS = ("quantizer", "sample_rows", "above")


@dataclass(frozen=True)
class Settings:
    """The settings of a benchmark; the values stand in its YAML."""

    name: str
    source: dict[str, Any]  # of layers: a function of sq.bench.sources and its settings
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
        """Return the file of the record."""
        return Path(self.results) / self.name / "bench.json"


@dataclass(frozen=True)
class Method:
    """A quantizer of conf/quantizer, run on all rows of a layer, or on a sample if it is wide."""

    label: str
    choice: str
    solve: dict[str, Any]
    damp: float
    sample_rows: int | None = None  # of a layer ...
    above: int = 0  # ... with more columns than this

    def rows(self, outputs: int, inputs: int) -> int:
        """Return how many of a group's rows are solved in a layer of that size."""
        if self.sample_rows is None or inputs <= self.above:
            return outputs
        return min(self.sample_rows, outputs)


def known(folder: Path = FOLDER) -> list[str]:
    """Return the names of the benchmarks in `folder`, without their prefix."""
    return sorted(file.stem.removeprefix(BENCH) for file in folder.glob(f"{BENCH}*.yaml"))


def load(name: str, overrides: list[str], folder: Path = FOLDER) -> Settings:
    """Return the settings of a benchmark.

    Parameters
    ----------
    name : with its prefix or without
    overrides : in Hydra's grammar
    folder : of the file bench_NAME.yaml

    Raises
    ------
    SqError : no such benchmark or setting, or a value that makes no sense
    """
    name = name.removeprefix(BENCH)
    benchmarks = known(folder)
    if name not in benchmarks:
        raise SqError(
            f"{name}: no such benchmark; {schema.nearest(name, benchmarks)} "
            f"(all: {', '.join(benchmarks)})"
        )
    file = OmegaConf.load(folder / f"{BENCH}{name}.yaml")
    names = list(schema.leaves(OmegaConf.to_container(file)))
    config = _compose(folder, f"{BENCH}{name}", overrides, lambda error: _explain(error, names))
    return check(config)


def check(config: Mapping[str, Any]) -> Settings:
    """Return the settings that `config` holds.

    Raises
    ------
    SqError : a setting is missing, unknown, of a wrong type or out of range
    """
    names = list(Settings.__dataclass_fields__)
    for name in config:
        if name not in names:
            raise SqError(
                f"{name}: no such setting of a benchmark; {schema.nearest(str(name), names)}"
            )
    missing = [name for name in names if name not in config]
    if missing:
        raise SqError(f"no value for {', '.join(missing)}")
    _check_types(config)
    settings = Settings(**config)
    if not settings.name.startswith(BENCH):
        raise SqError(f"name={settings.name}: a benchmark's begins with {BENCH}")
    _check_list("quantizers", settings.quantizers)
    _check_list("bits", settings.bits)
    return settings


def _check_types(config: Mapping[str, Any]) -> None:
    """Refuse a value of another type, or out of range."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    types = typing.get_type_hints(Settings, include_extras=True)
    for name, expected in types.items():
        try:
            TypeAdapter(expected, config=ConfigDict(strict=True)).validate_python(config[name])
        except ValidationError as error:
            message = error.errors()[0]["msg"].replace("Input should be", "should be")
            raise SqError(f"{name}={config[name]}: {message}") from error


def _check_list(name: str, values: list[Any]) -> None:
    """Refuse an empty list, or a value that is in it twice."""
    if not values or any(values.count(value) > 1 for value in values):
        raise SqError(f"{name}={values}: at least one, and none twice")


def plain(settings: Settings) -> dict[str, Any]:
    """Return `settings` as a record holds them."""
    return asdict(settings)


def methods(settings: Settings) -> list[Method]:
    """Return the quantizers of a benchmark, each with a unique label.

    Raises
    ------
    SqError : an entry names no choice or setting of conf/quantizer, no solver, or a label occurs
        twice
    """
    methods: dict[str, Method] = {}  # by label
    for entry in settings.quantizers:
        method = _method(entry, settings.seed)
        if method.label in methods:
            raise SqError(f"quantizers: {method.label} is there twice")
        methods[method.label] = method
    if settings.reference not in methods:
        raise SqError(
            f"reference={settings.reference}: not among the quantizers; "
            f"{schema.nearest(settings.reference, list(methods))}"
        )
    return list(methods.values())


def choose(family: str, text: str, seed: int) -> dict[str, Any]:
    """Return the part of the config for ``"CHOICE setting=value ..."`` in `family`, checked.

    Raises
    ------
    SqError : no such choice or setting
    """
    part = compose(family, text, seed)
    instantiate.check(part, family)
    return part


def compose(family: str, text: str, seed: int) -> dict[str, Any]:
    """Return what `choose` does, not checked against the code, which would import torch.

    Raises
    ------
    SqError : no such choice or setting
    """
    if not text.split():
        raise SqError(f"{family}: no choice was made")
    choice, *knobs = text.split()
    overrides = [f"{family}={choice}", *(f"{family}.{knob}" for knob in knobs), f"seed={seed}"]
    config = _compose(Path(CONF), "config", overrides, lambda error: explain(error, overrides))
    return config[family]


def _method(entry: str | dict[str, Any], seed: int) -> Method:
    """Return the method of an entry of `quantizers`: a text, or a mapping with `SAMPLE_KEYS`."""
    if isinstance(entry, str):
        entry = {"quantizer": entry}
    if set(entry) not in ({"quantizer"}, set(SAMPLE_KEYS)) or not isinstance(
        entry["quantizer"], str
    ):
        raise SqError(f"quantizers: {entry}: a text, or {', '.join(SAMPLE_KEYS)} (all three)")
    text = entry["quantizer"]
    config = choose("quantizer", text, seed)
    if "solve" not in config:
        raise SqError(f"quantizers: {text} is not solved layer by layer (it has no `solve`)")
    choice, *knobs = text.split()
    # Short: without the folder of conf/quantizer, and without "solve.", which all settings share.
    label = " ".join([choice.rsplit("/", 1)[-1], *(knob.removeprefix("solve.") for knob in knobs)])
    method = Method(label, choice, config["solve"], float(config["damp"]))
    if entry.get("sample_rows") is None:
        return method
    sample_rows, above = entry["sample_rows"], entry["above"]
    if not all(type(number) is int and number >= 2 for number in (sample_rows, above)):
        raise SqError(f"quantizers: {label}: sample_rows and above are whole numbers, 2 or more")
    return replace(method, sample_rows=sample_rows, above=above)


def _compose(
    folder: Path,
    name: str,
    overrides: list[str],
    describe: Callable[[HydraException | OmegaConfBaseException], str],
) -> dict[str, Any]:
    """Return the resolved config `name` of `folder`; `describe` turns an error into a message."""
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3"):
            return expand.resolve(hydra.compose(name, overrides=overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise SqError(describe(error)) from error


def _explain(error: Exception, names: list[str]) -> str:
    """Return the message for an error of Hydra; `names` are the settings that there are."""
    unknown = re.search(
        r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", f"{error} {error.__cause__}"
    )
    if unknown is None:
        return one_line(error).partition(": ")[2]
    name = unknown[1] or unknown[2]
    return f"{name}: no such setting; {schema.nearest(name, names)}"
