import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from sq.errors import SqError
from sq.model import yolo

installed = pytest.mark.skipif(
    importlib.util.find_spec("ultralytics") is None, reason="ultralytics is not installed"
)


class Plus(nn.Module):
    def __init__(self, number, f):
        super().__init__()
        self.number, self.f = number, f

    def forward(self, x):
        return (sum(x) if isinstance(x, list) else x) + self.number


def test_layers_read_what_they_name():
    # x + 1; that + 10; both together + 100; that and the second + 1000.
    net = yolo.Routed(
        nn.Sequential(Plus(1, -1), Plus(10, -1), Plus(100, [-1, 0]), Plus(1000, [-1, 1]))
    )
    first, second = 1.5, 11.5
    third = first + second + 100
    assert net(torch.tensor(0.5)) == third + second + 1000
    assert net._needed_later == {0, 1, 2}


def test_cells_are_row_after_row():
    assert yolo.cells(24, 8).tolist() == [[x, y] for y in range(3) for x in range(3)]


def test_ultralytics_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(
        SqError, match=r'need ultralytics .*: python -m pip install -e "\.\[detection\]"$'
    ):
        yolo.build("yolov5", "n")


@installed
def test_import_leaves_the_process_and_the_home_as_they_were(tmp_path):
    code = """
import os, socket, sys, numpy, torch, cv2
def refuse(*_): raise AssertionError("asked the internet")
socket.getaddrinfo = refuse
before = dict(os.environ), torch.save, str(torch.linspace(0, 1, 30)), numpy.get_printoptions()
from sq.model.yolo import build
layers = build("yolov5", "n")
after = dict(os.environ), torch.save, str(torch.linspace(0, 1, 30)), numpy.get_printoptions()
assert before == after, (before, after)
assert "ultralytics" in sys.modules
layers[:10](torch.zeros(1, 3, 32, 32))
"""
    home = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "MPLCONFIGDIR": str(tmp_path / "mpl"),
    }
    env = {
        k: v for k, v in os.environ.items() if not k.startswith("YOLO") and k != "OMP_NUM_THREADS"
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=env | home,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.rglob("*ltralytics*"))
    assert not list(tmp_path.rglob("settings.json"))


@installed
def test_ultralytics_that_does_not_know_the_family():
    with pytest.raises(
        SqError, match=r"ultralytics [\d.]+ has no yolo99: python -m pip install --upgrade"
    ):
        yolo.build("yolo99", "n")


@installed
def test_file_in_the_working_directory_is_not_taken_for_an_architecture(tmp_path, monkeypatch):
    (tmp_path / "yolov8n.yaml").write_text("nc: 3")
    monkeypatch.chdir(tmp_path)
    assert len(yolo.build("yolov8", "n")) == 23
