"""Choices and settings that contradict each other, as the config alone shows: told before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sq.allocation import latency_table
from sq.config.constraints import FLOAT
from sq.core import plugins
from sq.errors import SqError

Config = Mapping[str, Any]

# Choices that find objects in images; all others tell one label an image.
DETECTION = {
    "model": ("sq.model.yolov5.", "sq.model.ultralytics."),
    "dataset": ("sq.dataset.coco.",),
    "metric": ("sq.metric.coco_map.",),
}
# sensitivities that need labels whatever their settings
LABELLED = ("fisher", "trace", "noise", "grad_l1")
TABLES = ("pot", "post", "apot", "lcq")  # grids of a table of levels
OF_WEIGHTS = ("weight_mse", "mask_kl")  # sensitivities that do not price inputs
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
    lines += [line for condition, line in RULES if condition(config)]
    return lines + [line for line in (_mixed(config, choices), _table(config)) if line]


def detects(config: Config, family: str = "model") -> bool:
    """Tell whether a choice of model, dataset or metric is of detection; of a plugin's choice the others tell."""
    own = _kind(config, family)
    return any(_kind(config, other) for other in DETECTION) if own is None else own


def _kind(config: Config, family: str) -> bool | None:
    """Return whether a choice of sq's is of detection; None of a plugin's, which may be either."""
    target = str(config[family].get("_target_"))
    return target.startswith(DETECTION[family]) if target.startswith("sq.") else None


def _is(config: Config, family: str, *names: str) -> bool:
    return any(
        str(config[family].get("_target_")).startswith(f"sq.{family}.{name}.") for name in names
    )


def _asks_for_labels(config: Config) -> bool:
    own = config["sensitivity"]
    return (
        _is(config, "sensitivity", *LABELLED)
        or (_is(config, "sensitivity", "interaction") and own.get("variant") != "pairs")
        or (_is(config, "sensitivity", "measured") and own.get("loss") == "cross_entropy")
    )


def _prices_inputs(config: Config) -> bool:
    return bool(config["sensitivity"].get("input_bits"))


def _adapts(config: Config) -> bool:
    own = config["quantizer"]
    stages = [own.get(name) or {} for name in ("learn", "then")]
    return bool(own.get("adaptive")) or any(
        (stage.get("rates") or {}).get("adapter") for stage in stages
    )


def _onnx(config: Config) -> bool:
    return _is(config, "export", "onnx") or _is(config, "latency", "onnxruntime")


def _widest(config: Config) -> int:
    """Return the most bits that a code may take."""
    sensitivity, mixed = config["sensitivity"], not _is(config, "allocation", "uniform")
    weights = [math.ceil(config["bits"]), *(_numbers(sensitivity.get("bits")) if mixed else [])]
    weights += [8] if config["ends"] == "8bit" else []
    inputs = [
        *_numbers([config["activation"].get("bits")]),
        *_numbers(sensitivity.get("input_bits") if mixed else []),
    ]
    return max(max(weights) + _extra(config), *inputs, 0)


def _times_wider(config: Config) -> bool:
    inputs = [width for width in _numbers(config["latency"]["input_bits"]) if width != FLOAT]
    return (
        max(
            [width + _extra(config) for width in _numbers(config["latency"]["bits"])] + inputs,
            default=0,
        )
        > 8
    )


def _numbers(values: Any) -> list[int]:
    """Return the whole numbers of a list; what else is in it, or is no list, is told when knobs are checked."""
    return [value for value in values if isinstance(value, int)] if isinstance(values, list) else []


def _extra(config: Config) -> int:
    """Return the bits that a code takes beyond those of its grid: one for the 2^b + 1 levels of powers."""
    return int(_is(config, "grid", "pot", "post") and not config["grid"].get("strict"))


def _tries(config: Config) -> bool:
    return not _is(config, "trials", "none")


RULES: tuple[tuple[Callable[[Config], bool], str], ...] = (
    (
        lambda c: _is(c, "grid", *TABLES) and not 2 <= c["bits"] <= 8,
        "grid=pot, post, apot and lcq have levels for 2 to 8 bits: set bits to one of these, or grid=uniform",
    ),
    (
        lambda c: _is(c, "quantizer", "qat") and detects(c),
        "quantizer=lsq and asq train classifiers on labels: choose quantizer=eptq for a detector",
    ),
    (
        lambda c: _onnx(c) and _widest(c) > 8,
        f"{ONNX} holds codes of up to 8 bits: set bits, activation.bits and, where bits are mixed, sensitivity.bits "
        "to 8 or less (7 with grid=pot or post, whose codes take one more, and no ends=8bit), or export=packed "
        "latency=none",
    ),
    (
        lambda c: _is(c, "latency", "onnxruntime") and c["latency"]["layers"] and _times_wider(c),
        "latency.bits and input_bits: layers are timed at 1 to 8 bits (grid=pot and post: 7), or inputs of 32; "
        "set them so, or latency.layers=false",
    ),
    (
        lambda c: _onnx(c) and _adapts(c),
        f"{ONNX} cannot hold steps that adapt to the sample: choose another quantizer, or export=packed latency=none",
    ),
    (
        lambda c: _adapts(c) and _is(c, "activation", "none"),
        "adaptive steps are of inputs, which activation=none leaves in full precision: set activation=mse, or choose "
        "a quantizer without adapters",
    ),
    (
        lambda c: _is(c, "trials", "front") and not _is(c, "allocation", "pareto"),
        "trials=front measures a front, which no other allocation finds: set allocation=pareto",
    ),
    (
        lambda c: _tries(c) and c["calibration"].get("inputs") == "quantized",
        "calibration.inputs=quantized: a layer's solution depends on the bits before it; set trials=none or "
        "calibration.inputs=reference",
    ),
    (
        lambda c: _tries(c) and detects(c),
        "trials measure cross-entropy, which a detector has none of: set trials=none",
    ),
    (
        lambda c: _is(c, "calibration", "generated") and detects(c),
        "calibration=generated makes images of classes, which a detector does not tell: set calibration=bn_matched",
    ),
    (
        lambda c: _is(c, "calibration", "bn_matched") and _asks_for_labels(c),
        f"calibration=bn_matched: its images have no labels, which this sensitivity needs: {UNLABELLED}",
    ),
    (
        lambda c: _prices_inputs(c) and _is(c, "activation", "none"),
        "sensitivity.input_bits: activation=none leaves inputs in full precision, so they have no price; set "
        "activation=mse (or another), or sensitivity.input_bits=[]",
    ),
    (
        lambda c: _prices_inputs(c) and _is(c, "sensitivity", *OF_WEIGHTS),
        "sensitivity.input_bits: this one prices weights alone; set sensitivity.input_bits=[], or choose another",
    ),
    (
        lambda c: c["allocation"].get("inputs") == "weights" and not _prices_inputs(c),
        "allocation.inputs=weights: bits of inputs have no price; set sensitivity.input_bits, or inputs=free",
    ),
    (
        lambda c: c["allocation"].get("average_input_bits") is not None and not _prices_inputs(c),
        "allocation.average_input_bits: bits of inputs have no price; set sensitivity.input_bits, or null here",
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
    """Return what is wrong if some choices are of detection and others of classification."""
    kinds = {family: detects(config, family) for family in DETECTION}
    if len(set(kinds.values())) == 1:
        return ""
    objects, labels = (
        " ".join(f"{family}={choices.get(family)}" for family, own in kinds.items() if own is kind)
        for kind in (True, False)
    )
    return f"{objects} finds objects, {labels} tells one label an image: choose all of one kind"


def _table(config: Config) -> str:
    """Return what is wrong with the table of latencies, if one is named."""
    path = config["allocation"].get("latency_table")
    try:
        if path is not None:
            latency_table.read(path)
    except SqError as error:
        return str(error)
    return ""
