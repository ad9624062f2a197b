"""What runs need that is not on this machine: data, weights, packages of extras.

Looked for as the runs themselves will look, before hours are spent on the way there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from sq.config import data_paths
from sq.config.schema import leaves
from sq.core import installation
from sq.errors import SqError

FILES = {"model": "weights", "dataset": "root"}  # the knobs that name files of the user's
# whose choices need something
FAMILIES = ("model", "dataset", "metric", "quantizer", "export", "latency")
# What pip install sq does not bring along, by the setting that asks for it and how its value
# begins.
DETECTION = installation.command("detection")
EXPORT = installation.command("export")
ONNX = ("onnx", "onnxruntime", "onnxscript")
PACKAGES = (
    ("model._target_", "sq.model.yolov5.", "ultralytics", DETECTION),
    ("model._target_", "sq.model.ultralytics.", "ultralytics", DETECTION),
    ("metric.evaluator", "faster", "faster_coco_eval", DETECTION),
    ("metric.evaluator", "pycocotools", "pycocotools", DETECTION),
    (
        "quantizer._target_",
        "sq.quantizer.mct_gptq.",
        "model_compression_toolkit",
        installation.command("bench"),
    ),
    *(("export._target_", "sq.export.onnx.", package, EXPORT) for package in ONNX),
    *(("latency._target_", "sq.latency.onnxruntime.", package, EXPORT) for package in ONNX),
    (
        "quantizer.solve._target_",
        "sq.solver.brevitas_gptq.",
        "brevitas",
        "python -m pip install 'brevitas>=0.13.4'",
    ),
)


def lacking(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each thing that runs of these `configs` need and that is not here, with what to do about it.

    Parameters
    ----------
    configs : resolved configs, or parts of them
    """
    lines: dict[str, None] = {}
    for config in configs:
        for family, knob in FILES.items():
            path = (config.get(family) or {}).get(knob)
            if isinstance(path, str):
                try:
                    data_paths.find(path, f"{family}.{knob}")
                except SqError as error:
                    lines[str(error)] = None
        lines |= dict.fromkeys(packages(config))
    return list(lines)


def packages(config: Mapping[str, Any]) -> list[str]:
    """Return a line for each package that a run of `config` needs and that is not here."""
    flat = leaves(config)
    return [
        f"{package} is not installed: {install}"
        for setting, start, package, install in PACKAGES
        if str(flat.get(setting, "")).startswith(start) and find_spec(package) is None
    ]
