"""The README's lines, where there is neither sq nor torch."""

import os
import subprocess
import sys
import venv

import numpy as np
import pytest
from cli_helpers import ROOT
from PIL import Image
from test_onnx_file import exported

EXAMPLE = str(ROOT / "examples" / "classify.py")
BLOCKED = ("torch", "torchvision", "sq", "timm", "onnx", "hydra", "scipy", "pandas")


def test_the_readme_and_the_example_are_the_same():
    lines = (ROOT / "examples" / "classify.py").read_text().split('"""\n\n', 1)[1]
    assert lines in (ROOT / "README.md").read_text()
    assert len([line for line in lines.splitlines() if line]) <= 16


def test_an_image_is_classified_where_there_is_neither_torch_nor_sq(tmp_path, digits_test):
    code = "import runpy, sys; sys.modules.update(dict.fromkeys(sys.argv[3].split())); runpy.run_path(sys.argv[4])"
    _classify(
        tmp_path, digits_test, lambda file, image: [sys.executable, "-c", code, file, image, " ".join(BLOCKED), EXAMPLE]
    )


def test_an_image_is_classified_in_an_environment_of_three_packages(tmp_path, digits_test):
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=True)
    python = str(fresh / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "onnxruntime", "numpy", "pillow"]
    made = subprocess.run(install, capture_output=True, text=True)
    if made.returncode and not os.environ.get("CI"):
        pytest.skip("the package index cannot be reached")
    assert made.returncode == 0, made.stderr
    listed = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True).stdout
    assert not {line.partition("==")[0].lower() for line in listed.splitlines()} & {*BLOCKED}
    _classify(tmp_path, digits_test, lambda file, image: [python, EXAMPLE, file, image])


def _classify(folder, images, command):
    """Classify eight images by the example, called by `command(file, image)`, outside this repository."""
    _, file = exported(folder, "bits=4", "activation=mse")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    right = 0
    for place in range(8):
        pixels = np.asarray(images.x[place, 0])
        low, high = images.x.min(), images.x.max()
        picture = folder / f"{place}.png"
        Image.fromarray(np.uint8(np.round(255 * (pixels - float(low)) / float(high - low)))).save(picture)
        words = command(str(file), str(picture))
        made = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)
        assert made.returncode == 0, made.stderr
        right += made.stdout.startswith(f"class {int(images.y[place])}:")
        assert len(made.stdout.splitlines()) == 5
    assert right >= 7
