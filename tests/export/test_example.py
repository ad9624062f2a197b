"""The README's lines, where there is neither sq nor torch."""

import os
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import shared_exports
from cli_helpers import ROOT
from PIL import Image
from test_onnx_file import exported

from sq.export import onnx_export

EXAMPLE = str(ROOT / "examples" / "classify.py")
BLOCKED = ("torch", "torchvision", "sq", "timm", "onnx", "hydra", "scipy", "pandas")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return the file of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "exported", shared_exports.exported)
        return exported(tmp_path_factory.mktemp("run"), "bits=4", "activation=mse")[1]


def test_the_readme_and_the_example_are_the_same():
    lines = (ROOT / "examples" / "classify.py").read_text().split('"""\n\n', 1)[1]
    assert lines in (ROOT / "README.md").read_text()
    assert len([line for line in lines.splitlines() if line]) <= 16


def test_an_image_is_classified_where_there_is_neither_torch_nor_sq(file, tmp_path, digits_test):
    code = "import runpy, sys; sys.modules.update(dict.fromkeys(sys.argv[3].split())); runpy.run_path(sys.argv[4])"
    command = [sys.executable, "-c", code]
    _classify(
        file,
        tmp_path,
        digits_test,
        lambda image: [*command, str(file), image, " ".join(BLOCKED), EXAMPLE],
    )


def test_an_image_is_classified_in_an_environment_of_three_packages(file, tmp_path, digits_test):
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=False)  # this one's pip installs into it
    python = str(fresh / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    install = [*pip, "install", "--quiet", "onnxruntime", "numpy", "pillow"]
    made = subprocess.run(install, capture_output=True, text=True)
    if made.returncode and not os.environ.get("CI"):
        pytest.skip("the package index cannot be reached")
    assert made.returncode == 0, made.stderr
    listed = subprocess.run(
        [*pip, "list", "--format=freeze"], capture_output=True, text=True
    ).stdout
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert {"onnxruntime", "numpy", "pillow"} <= names
    assert not names & {*BLOCKED}
    _classify(file, tmp_path, digits_test, lambda image: [python, EXAMPLE, str(file), image])


def _classify(file, folder, images, command):
    """Classify eight images by the example, called by `command(image)` outside this repository, two at a time."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def classify(place):
        pixels = np.asarray(images.x[place, 0])
        low, high = images.x.min(), images.x.max()
        picture = folder / f"{place}.png"
        Image.fromarray(np.uint8(np.round(255 * (pixels - float(low)) / float(high - low)))).save(
            picture
        )
        made = subprocess.run(
            command(str(picture)), capture_output=True, text=True, cwd=folder, env=environment
        )
        assert made.returncode == 0, made.stderr
        assert len(made.stdout.splitlines()) == 5
        return made.stdout.startswith(f"class {int(images.y[place])}:")

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(classify, range(8))) >= 7
