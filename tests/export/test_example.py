"""The README's lines, where there is neither sq nor torch."""

import subprocess
import sys

import numpy as np
from cli_helpers import ROOT
from PIL import Image
from test_onnx_file import exported

BLOCKED = ("torch", "torchvision", "sq", "timm", "onnx", "hydra", "scipy", "pandas")


def test_the_readme_and_the_example_are_the_same():
    lines = (ROOT / "examples" / "classify.py").read_text().split('"""\n\n', 1)[1]
    assert lines in (ROOT / "README.md").read_text()
    assert len([line for line in lines.splitlines() if line]) <= 16


def test_an_image_is_classified_by_onnxruntime_alone(tmp_path, digits_test):
    _, file = exported(tmp_path, "bits=4", "activation=mse")
    right = 0
    for place in range(8):
        pixels = np.asarray(digits_test.x[place, 0])
        low, high = digits_test.x.min(), digits_test.x.max()
        picture = tmp_path / f"{place}.png"
        Image.fromarray(np.uint8(np.round(255 * (pixels - float(low)) / float(high - low)))).save(picture)
        code = "import runpy, sys; sys.modules.update(dict.fromkeys(sys.argv[3].split())); runpy.run_path(sys.argv[4])"
        words = [str(file), str(picture), " ".join(BLOCKED), str(ROOT / "examples" / "classify.py")]
        made = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        right += made.stdout.startswith(f"class {int(digits_test.y[place])}:")
        assert len(made.stdout.splitlines()) == 5
    assert right >= 7
