"""W&B's service, a process of its own: whatever it waits for, a process that used it ends."""

import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from sq.core import timeouts
from sq.tracker import wandb_client

WAITS = """
import atexit, subprocess, sys
from sq.tracker import wandb_client as client
from sq.tracker.run_page import Destination

client.LEAVE = 0.5
client.load(Destination("offline", "sq", None, sys.argv[2], 5))
atexit.register(subprocess.Popen([sys.argv[1], "120"]).wait)  # as W&B's own hook does
"""


@pytest.fixture
def service(tmp_path):
    """Return a program of the service's name, which ends after as many seconds as it is told."""
    made = tmp_path / wandb_client.SERVICE
    shutil.copy(shutil.which("sleep"), made)
    return made


def test_the_interpreter_does_not_wait_for_the_service(service, tmp_path):
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", WAITS, str(service), str(tmp_path)], check=True, timeout=100
    )
    assert time.monotonic() - start < 60


def test_a_service_that_does_not_end_is_stopped(service, monkeypatch):
    monkeypatch.setattr(timeouts, "GRACE", 0.1)
    other = subprocess.Popen(["sleep", "120"])
    own = subprocess.Popen([str(service), "120"])
    wandb_client.end(SimpleNamespace(teardown=own.wait), 0.2)
    assert own.wait(60) < 0
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_service_that_ends_is_left_to_it(service):
    own = subprocess.Popen([str(service), "0.3"])
    wandb_client.end(SimpleNamespace(teardown=own.wait), 30)
    assert own.returncode == 0
