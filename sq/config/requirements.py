"""Data, weights and packages of extras that runs need and this machine lacks.

They are looked up in the same way as a run does, but before hours are spent on earlier steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from sq.config import data_paths
from sq.config.schema import leaves
from sq.core import installation
from sq.errors import SqError

FILES = {"model": "weights", "dataset": "root"}  # the knobs that name files of the user
# families whose choices need data, weights or packages
FAMILIES = ("model", "dataset", "metric", "quantizer", "export", "latency")
DETECTION = installation.command("detection")
EXPORT = installation.command("export")
ONNX = ("onnx", "onnxruntime", "onnxscript")
# Packages that sq does not depend on: the setting that needs one, the prefix of its value, the
# package, and the command that installs it.
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
    """Return a line for each thing that runs need and this machine lacks, with what to do.

    Parameters
    ----------
    configs : resolved configs of the runs, or parts of them
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
    """Return a line for each package that a run of `config` needs and that is not installed."""
    flat = leaves(config)
    return [
        f"{package} is not installed: {install}"
        for setting, start, package, install in PACKAGES
        if str(flat.get(setting, "")).startswith(start) and find_spec(package) is None
    ]
