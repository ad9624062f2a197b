"""Find choices and settings that contradict each other, by the config alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sq.allocation import latency_table
from sq.config.constraints import FLOAT
from sq.core import plugins
from sq.errors import SqError

Config = Mapping[str, Any]

# Choices for object detection; all others are for classification.
DETECTION = {
    "model": ("sq.model.yolov5.", "sq.model.ultralytics."),
    "dataset": ("sq.dataset.coco.",),
    "metric": ("sq.metric.coco_map.",),
}
# sensitivities that need labels whatever their settings
LABELLED = ("fisher", "trace", "noise", "grad_l1")
TABLES = ("pot", "post", "apot", "lcq")  # grids with a table of levels
OF_WEIGHTS = ("weight_mse", "mask_kl")  # sensitivities of weights alone
BOUNDS = ("average_bits", "average_input_bits", "bytes", "bops", "latency")
ONNX = "ONNX (export=onnx, latency=onnxruntime)"
UNLABELLED = "choose kl, label_free or output_error, or labelled images (calibration=subset)"


def find(config: Config, choices: Mapping[str, str]) -> list[str]:
    """Return a line for each contradiction in a resolved config, with the way out.

    Parameters
    ----------
    choices : by family, for messages
    """
    lines = plugins.untrusted(config) + plugins.refusals(config)
    lines += [message for condition, message in RULES if condition(config)]
    return lines + [line for line in (_mixed(config, choices), _table(config)) if line]


def detects(config: Config, family: str = "model") -> bool:
    """Tell whether the choice of model, dataset or metric is for detection.

    A plugin's choice takes its kind from the other families.
    """
    is_detection = _is_detection(config, family)
    if is_detection is None:
        return any(_is_detection(config, other) for other in DETECTION)
    return is_detection


def _is_detection(config: Config, family: str) -> bool | None:
    """Tell whether a choice of sq is for detection; None for a plugin's, which may be either."""
    target = str(config[family].get("_target_"))
    if not target.startswith("sq."):
        return None
    return target.startswith(DETECTION[family])


def _is(config: Config, family: str, *names: str) -> bool:
    """Tell whether the choice of `family` is one of the modules `names`."""
    target = str(config[family].get("_target_"))
    return target.startswith(tuple(f"sq.{family}.{name}." for name in names))


def _needs_labels(config: Config) -> bool:
    sensitivity = config["sensitivity"]
    if _is(config, "sensitivity", "interaction"):
        return sensitivity.get("variant") != "pairs"
    if _is(config, "sensitivity", "measured"):
        return sensitivity.get("loss") == "cross_entropy"
    return _is(config, "sensitivity", *LABELLED)


def _measures_inputs(config: Config) -> bool:
    return bool(config["sensitivity"].get("input_bits"))


def _adapts(config: Config) -> bool:
    """Tell whether the quantizer learns steps that adapt to the sample."""
    quantizer = config["quantizer"]
    if quantizer.get("adaptive"):
        return True
    stages = [quantizer.get(name) or {} for name in ("learn", "then")]
    return any((stage.get("rates") or {}).get("adapter") for stage in stages)


def _onnx(config: Config) -> bool:
    return _is(config, "export", "onnx") or _is(config, "latency", "onnxruntime")


def _widest(config: Config) -> int:
    """Return the most bits that a code of weights or inputs can take."""
    sensitivity = config["sensitivity"]
    weights = [math.ceil(config["bits"])]
    inputs = _integers([config["activation"].get("bits")])
    if not _is(config, "allocation", "uniform"):  # bits are mixed
        weights += _integers(sensitivity.get("bits"))
        inputs += _integers(sensitivity.get("input_bits"))
    if config["ends"] == "8bit":
        weights.append(8)
    return max(max(weights) + _extra(config), *inputs, 0)


def _times_wide_layers(config: Config) -> bool:
    """Tell whether layers are timed at more than 8 bits, other than inputs in full precision."""
    latency = config["latency"]
    weights = [bits + _extra(config) for bits in _integers(latency["bits"])]
    inputs = [bits for bits in _integers(latency["input_bits"]) if bits != FLOAT]
    return max(weights + inputs, default=0) > 8


def _integers(values: Any) -> list[int]:
    """Return the integers of a list; the check of knobs reports what else is in it."""
    if not isinstance(values, list):
        return []
    return [value for value in values if isinstance(value, int)]


def _extra(config: Config) -> int:
    """Return the bits of a code beyond those of its grid: one for 2^b + 1 powers of two."""
    return int(_is(config, "grid", "pot", "post") and not config["grid"].get("strict"))


def _has_trials(config: Config) -> bool:
    return not _is(config, "trials", "none")


RULES: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (
        lambda c: _is(c, "grid", *TABLES) and not 2 <= c["bits"] <= 8,
        "grid=pot, post, apot and lcq have levels for 2 to 8 bits: set bits to one of these, "
        "or grid=uniform",
    ),
    (
        lambda c: _is(c, "quantizer", "qat") and detects(c),
        "quantizer=lsq and asq train classifiers on labels: choose quantizer=eptq for a detector",
    ),
    (
        lambda c: _onnx(c) and _widest(c) > 8,
        f"{ONNX} holds codes of up to 8 bits: set bits, activation.bits and, where bits are mixed, "
        "sensitivity.bits to 8 or less (7 with grid=pot or post, whose codes take one more, and no "
        "ends=8bit), or export=packed latency=none",
    ),
    (
        lambda c: (
            _is(c, "latency", "onnxruntime") and c["latency"]["layers"] and _times_wide_layers(c)
        ),
        "latency.bits and input_bits: layers are timed at 1 to 8 bits (grid=pot and post: 7), or "
        "inputs of 32; set them so, or latency.layers=false",
    ),
    (
        lambda c: _onnx(c) and _adapts(c),
        f"{ONNX} cannot hold steps that adapt to the sample: choose another quantizer, "
        "or export=packed latency=none",
    ),
    (
        lambda c: _adapts(c) and _is(c, "activation", "none"),
        "adaptive steps are of inputs, which activation=none leaves in full precision: set "
        "activation=mse, or choose a quantizer without adapters",
    ),
    (
        lambda c: _is(c, "trials", "front") and not _is(c, "allocation", "pareto"),
        "trials=front measures a front, which only allocation=pareto finds: set allocation=pareto",
    ),
    (
        lambda c: _has_trials(c) and c["calibration"].get("inputs") == "quantized",
        "calibration.inputs=quantized: a layer's solution depends on the bits before it; set "
        "trials=none or calibration.inputs=reference",
    ),
    (
        lambda c: _has_trials(c) and detects(c),
        "trials measure cross-entropy, which a detector does not have: set trials=none",
    ),
    (
        lambda c: _is(c, "calibration", "generated") and detects(c),
        "calibration=generated generates images of classes, which a detector does not predict: set "
        "calibration=bn_matched",
    ),
    (
        lambda c: _is(c, "calibration", "bn_matched") and _needs_labels(c),
        "calibration=bn_matched: its images have no labels, which this sensitivity needs: "
        f"{UNLABELLED}",
    ),
    (
        lambda c: _measures_inputs(c) and _is(c, "activation", "none"),
        "sensitivity.input_bits: activation=none leaves inputs in full precision, so they have no "
        "sensitivity; set activation=mse (or another), or sensitivity.input_bits=[]",
    ),
    (
        lambda c: _measures_inputs(c) and _is(c, "sensitivity", *OF_WEIGHTS),
        "sensitivity.input_bits: this sensitivity is of weights alone; set "
        "sensitivity.input_bits=[], or choose another",
    ),
    (
        lambda c: c["allocation"].get("inputs") == "weights" and not _measures_inputs(c),
        "allocation.inputs=weights: bits of inputs have no sensitivity; set "
        "sensitivity.input_bits, or inputs=free",
    ),
    (
        lambda c: c["allocation"].get("average_input_bits") is not None and not _measures_inputs(c),
        "allocation.average_input_bits: bits of inputs have no sensitivity; set "
        "sensitivity.input_bits, or null here",
    ),
    (
        lambda c: (
            c["allocation"].get("latency") is not None
            and c["allocation"].get("latency_table") is None
        ),
        "allocation.latency: allocation.latency_table should name a CSV file of latencies",
    ),
    (
        lambda c: (
            _is(c, "allocation", "ilp")
            and all(c["allocation"].get(name) is None for name in BOUNDS)
        ),
        f"allocation=ilp: nothing bounds the bits; set allocation.{', allocation.'.join(BOUNDS)}",
    ),
)


def _mixed(config: Config, choices: Mapping[str, str]) -> str:
    """Return the fault if some choices are for detection and others for classification, else ""."""
    detection: list[str] = []
    classification: list[str] = []
    for family in DETECTION:
        kind = detection if detects(config, family) else classification
        kind.append(f"{family}={choices.get(family)}")
    if not detection or not classification:
        return ""
    return (
        f"{' '.join(detection)} is for detection, {' '.join(classification)} for classification: "
        "choose all of one kind"
    )


def _table(config: Config) -> str:
    """Return the fault of the table of latencies, "" if it has none or is not set."""
    path = config["allocation"].get("latency_table")
    try:
        if path is not None:
            latency_table.read(path)
    except SqError as error:
        return str(error)
    return ""
