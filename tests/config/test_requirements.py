import importlib.util
import re

import pytest
from cli_helpers import ROOT, compose

from sq.config import requirements


def test_the_embedded_default_needs_nothing(monkeypatch):
    monkeypatch.delenv("SQ_DATA", raising=False)
    assert requirements.lacking([compose()[0]]) == []


def test_data_and_weights_that_are_not_there_are_named_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SQ_DATA", raising=False)
    configs = [compose("model=resnet20", "dataset=cifar10", f"seed={seed}")[0] for seed in range(3)]
    weights, root = requirements.lacking(configs)
    assert weights.startswith(
        "model.weights=weights/cifar10_resnet20.pth: not in the working directory, and SQ_DATA"
    )
    assert root.startswith("dataset.root=cifar10: ")
    (tmp_path / "there" / "cifar10").mkdir(parents=True)
    monkeypatch.setenv("SQ_DATA", str(tmp_path / "there"))
    (weights,) = requirements.lacking(configs)
    assert f"SQ_DATA={tmp_path / 'there'}" in weights


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["model=yolov5n"], "ultralytics"),
        (["model=yolov8n"], "ultralytics"),
        (["dataset=coco_sample"], "faster_coco_eval"),
        (["dataset=coco_sample", "metric.evaluator=pycocotools"], "pycocotools"),
        (["quantizer=peer/brevitas_gptq"], "brevitas"),
        (["quantizer=peer/mct_gptq"], "model_compression_toolkit"),
        *((["export=onnx"], package) for package in requirements.ONNX),
        *((["latency=onnxruntime"], package) for package in requirements.ONNX),
    ],
)
def test_packages_of_extras(words, package, monkeypatch):
    def told():
        return [
            line
            for line in requirements.lacking([compose(*words)[0]])
            if "is not installed" in line
        ]

    monkeypatch.setattr(
        requirements, "find_spec", lambda name: None if name == package else object()
    )
    (line,) = told()
    assert line.startswith(f"{package} is not installed: python -m pip install ")
    monkeypatch.setattr(requirements, "find_spec", lambda name: object())
    assert told() == []


def test_every_optional_import_of_the_code_is_looked_for():
    # The adapters turn a package's absence into a line of their own; torch and W&B always come
    # along.
    guarded = set()
    for file in (ROOT / "sq").rglob("*.py"):
        text = file.read_text()
        # a launcher's need is no experiment's
        if "except ImportError" in text and file.name != "slurm.py":
            imported = re.findall(r"^ {8,}(?:from|import) (\w+)", text, re.MULTILINE)
            guarded |= {
                name for name in imported if name not in ("sq", "torch", "torchvision", "wandb")
            }
    optional = {package for _, _, package, _ in requirements.PACKAGES}
    assert {name for name in guarded if importlib.util.find_spec(name)} <= optional
    assert optional <= guarded
