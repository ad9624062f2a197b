"""The labels that tell the runs of an experiment apart, as tables and figures show them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sq.config.constraints import FLOAT
from sq.config.schema import leaves
from sq.records.record import BOOKKEEPING, Record
from sq.report.distinct import ABSENT, distinct, ordered_names
from sq.report.rows import Row, omit, optional, values

SEEDS = ("seed", "calibration.seed", "sensitivity.seed", "quantizer.seed")
# families whose varying settings become part of the choice's name: "gptq damp=0.1"
NAMED_WITH_SETTINGS = ("quantizer", "sensitivity", "calibration")
# families that change no weights: tables of files and of times do not show them
NOT_SHOWN = ("export", "latency", "metric")
NETWORK = ("model", "dataset")  # families whose choice makes a run one of another network
SHOWN_ELSEWHERE = ("activation.bits", "allocation.average_bits")  # other columns show these
# settings of the solver that a learned quantizer starts from: its setting `init` names it
START_PREFIX = "quantizer.start."
CHOICE = "choice of "  # before the family's name: the setting that stands for its choice
ACTIVATION = "act. bits"  # the column of activation bits


@dataclass(frozen=True)
class _Part:
    """One part of the config, as all runs have it.

    Parameters
    ----------
    forms : the distinct settings, flat; the last one is {}
    form_of_run : index of each run's form; -1, the last, where the run lacks the part
    """

    forms: list[dict[str, Any]]
    form_of_run: list[int]

    def settings(self, run: int) -> dict[str, Any]:
        """Return the settings of a run, by dotted name."""
        return self.forms[self.form_of_run[run]]

    def varying(self, runs: Iterable[int]) -> set[str]:
        """Return the settings in which `runs` differ; an absent value equals null."""
        used = {self.form_of_run[run] for run in runs}
        forms = [self.forms[index] for index in used]
        if len(forms) < 2:
            return set()
        differing = set()
        for name in ordered_names(forms):
            unique, _ = distinct(optional(forms, name))
            if len(unique) > 1:
                differing.add(name)
        return differing


class Labels:
    """The labels of runs: method, bits, and whatever else varies among them, seeds apart.

    The configs are held as a table of flat settings, stored by part of the config, since 10,000
    runs have few distinct parts. The settings that vary become labels, under the names that
    `_labels` gives them.

    Parameters
    ----------
    records : the runs to be told apart; failed ones may lack settings
    """

    def __init__(self, records: list[Record]):
        self.records = records
        self._parts = _parts(records)
        varying: list[str] = []
        for part in self._parts.values():
            varying += part.varying(range(len(records)))
        self._varying = sorted(varying)
        self._settings_in_name = {
            family: self._settings_by_choice(family) for family in NAMED_WITH_SETTINGS
        }
        activation = self._parts.get("activation", _Part([], []))
        self._activations = any(optional(activation.forms, "activation.bits"))
        kinds = set(optional(activation.forms[:-1], f"{CHOICE}activation"))
        # With one kind of activation quantization, the column of bits says as much.
        self._one_activation = len(kinds - {"none"}) <= 1
        # Names of settings that become labels under their own name, or that of their family.
        self._columns = [name for name in self._varying if self._is_column(name)]

    def groups(self) -> list[tuple[dict[str, Any], list[Record]]]:
        """Return the labels of each group of records that differ in seeds only, and its records."""
        result = []
        for runs in self._runs_of_groups():
            members = [self.records[run] for run in runs]
            result.append((self._labels(runs[0]), members))
        return result

    def _runs_of_groups(self) -> list[list[int]]:
        """Return the indices of the records that differ in seeds only, a list for each group."""
        texts = []  # for each part, the settings of each run as text
        for part in self._parts.values():
            form_texts = [json.dumps(form, sort_keys=True) for form in part.forms]
            texts.append([form_texts[form] for form in part.form_of_run])
        groups: dict[tuple[str, ...], list[int]] = {}
        for run in range(len(self.records)):
            key = tuple([part[run] for part in texts])
            groups.setdefault(key, []).append(run)
        return list(groups.values())

    def _labels(self, run: int) -> dict[str, Any]:
        """Return the labels of record number `run`, by column."""
        record = self.records[run]
        settings: dict[str, Any] = {}
        for part in self._parts.values():
            settings.update(part.settings(run))
        labels: dict[str, Any] = {
            "method": self._choice_name("quantizer", run, settings),
            "bits": record["config"].get("bits"),
        }
        if self._activations:
            labels[ACTIVATION] = _activation_bits(record) or FLOAT
        for name in self._columns:
            if name.startswith(CHOICE):
                family = name.removeprefix(CHOICE)
                labels[family] = self._choice_name(family, run, settings)
                continue
            value = settings.get(name)
            # A list as text, so that labels can be looked up in sets and dicts.
            labels[name] = str(value) if isinstance(value, list) else value
        return labels

    def _is_column(self, name: str) -> bool:
        """Return whether the varying setting `name` is a label of its own."""
        family = name.removeprefix(CHOICE).split(".")[0]
        if family in ("quantizer", "bits"):  # "method" and "bits" show these
            return False
        if name.endswith("_target_") or name in SHOWN_ELSEWHERE:
            return False
        if name == f"{CHOICE}activation":
            return not self._one_activation
        # Settings of different choices do not compare: the choice is the label then.
        return name.startswith(CHOICE) or f"{CHOICE}{family}" not in self._varying

    def _choice_name(self, family: str, run: int, settings: Mapping[str, Any]) -> str:
        """Return a run's choice of `family`, and settings that vary among runs of that choice."""
        choice = self.records[run]["choices"].get(family, "-")
        name = choice
        for setting in self._settings_in_name.get(family, {}).get(choice, []):
            last = setting.rsplit(".", 1)[1]
            name += f" {last}={settings.get(setting)}"
        return name

    def _settings_by_choice(self, family: str) -> dict[str, list[str]]:
        """Return, by choice of `family`, its settings that vary among its runs on one network.

        A setting that varies between networks only, such as a step that suits their size, adds
        nothing to the name.
        """
        if family not in self._parts:
            return {}
        runs_by_network: dict[tuple[str, ...], list[int]] = {}
        for run, record in enumerate(self.records):
            choices = [record["choices"].get(part, "-") for part in (family, *NETWORK)]
            runs_by_network.setdefault(tuple(choices), []).append(run)
        varying: dict[str, set[str]] = {}
        for (choice, *_), runs in runs_by_network.items():
            names = varying.setdefault(choice, set())
            for name in self._parts[family].varying(runs):
                # Without a dot it is the choice itself.
                if "." in name and not name.startswith(START_PREFIX):
                    names.add(name)
        return {choice: sorted(names) for choice, names in varying.items()}


def _parts(records: list[Record]) -> dict[str, _Part]:
    """Return the parts of the records' configs by name, bookkeeping apart."""
    configs = values(records, "config")
    choices = values(records, "choices")
    parts = {}
    for name in ordered_names(configs):
        if name in BOOKKEEPING:
            continue
        unique_configs, config_of_run = distinct(optional(configs, name, ABSENT))
        unique_choices, choice_of_run = distinct(optional(choices, name))
        pairs = []  # which config and which choice a run has
        for config, choice in zip(config_of_run, choice_of_run, strict=True):
            pairs.append((config, choice) if config >= 0 else ABSENT)
        unique_pairs, form_of_run = distinct(pairs)
        forms = []
        for config, choice in unique_pairs:
            settings = _flat(name, unique_configs[config], unique_choices[choice])
            forms.append(settings)
        parts[name] = _Part([*forms, {}], form_of_run)
    return parts


def _flat(part: str, config: Any, choice: str | None) -> dict[str, Any]:
    """Return the settings of one part of a config by dotted name, seeds apart, and its choice."""
    flat = leaves({part: config})
    for seed in SEEDS:  # runs that differ in seeds only are one row
        flat.pop(seed, None)
    if choice is not None:
        flat[f"{CHOICE}{part}"] = choice
    return flat


def sort_key(name: str, value: Any) -> tuple:
    """Return the key that sorts values of label `name`: numbers, then text, then absent values.

    Bits come from high to low. Text is sorted by the numbers in it: "a2" before "a10".
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = -value if name == "bits" else value
        return (0, number, ())
    parts = []
    for part in re.split(r"(\d+)", str(value)):
        if part.isdigit():
            parts.append((False, int(part), part))
        else:
            parts.append((True, 0, part))
    kind = 2 if value is None else 1
    return (kind, 0, tuple(parts))


def sort_keys(labels: Mapping[str, Any]) -> list[tuple]:
    """Return the key that sorts rows by their `labels`, the first label first."""
    return [sort_key(name, value) for name, value in labels.items()]


def as_text(value: Any) -> str:
    """Return the value of a label as tables show it."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def texts(labels: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, str]:
    """Return `labels` as tables show them, but for those named in `without`."""
    return {name: as_text(value) for name, value in omit(labels, without).items()}


def network(row: Row) -> str:
    """Return the network and dataset of a row's runs, in words; they have panels of their own."""
    return " ".join(network_texts(row["labels"]).values())


def network_texts(labels: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels that tell networks apart, as tables show them."""
    return {name: as_text(labels[name]) for name in NETWORK if name in labels}


def differing(groups: Iterable[list[Row]]) -> list[str]:
    """Return the labels in which rows of one group differ; those between groups do not count."""
    names: dict[str, None] = {}
    for rows in groups:
        labels = values(rows, "labels")
        for name in ordered_names(labels):
            if len(set(map(str, optional(labels, name)))) > 1:
                names[name] = None
    return list(names)


def _activation_bits(record: Record) -> int | None:
    """Return the bits of a run's activations, None if they are not quantized."""
    return (record["config"].get("activation") or {}).get("bits")
