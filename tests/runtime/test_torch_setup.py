"""What a run sets in its process does not last into the next one."""

import os
import subprocess
import sys

import pytest
import torch
from cli_helpers import ROOT, as_it_was, environment, records, settings

from sq.runtime import torch_setup


@pytest.fixture(autouse=True)
def _restored():
    with as_it_was():
        yield


def threads(wanted):
    torch_setup.prepare({"device": "cpu", "threads": wanted, "seed": 0})
    return torch.get_num_threads()


def test_threads_of_one_run_are_not_those_of_the_next(monkeypatch):
    monkeypatch.setattr(torch_setup, "_threads", 0)
    torch.set_num_threads(2)
    assert [threads(None), threads(3), threads(None), threads(1), threads(None)] == [2, 3, 2, 1, 2]


def test_a_torchvision_of_another_torch_is_explained(tmp_path):
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    code = "from sq.runtime import torch_setup as ready; ready.import_torch(); ready.import_torchvision()"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert (
        "torch and torchvision do not fit together (RuntimeError: operator torchvision::nms"
        in message
    )


def test_a_run_imports_neither_torchvision_nor_the_compiler_of_pytorch(tmp_path):
    # Together they take as long to import as the whole run of a small network.
    code = """
import sys
from sq import cli
try:
    cli.main()
finally:
    print([name for name in ("torchvision", "torch._dynamo", "sklearn") if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", code, *settings(tmp_path)],
        env=environment(tmp_path, PYTHONPATH=str(ROOT)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.stdout.splitlines()[-1] == "[]", result.stdout + result.stderr
    assert len(records(tmp_path)) == 1
