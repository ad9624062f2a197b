"""Provenance: which code, packages and machine made a figure."""

import datetime
import json
import os
import platform
import subprocess
from importlib import metadata

import pytest
import torch
from cli_helpers import ROOT

from sq.core import provenance

CPU = torch.device("cpu")


def test_every_field_is_there():
    found = provenance.collect(CPU)
    assert set(found) == {
        "started",
        "commit",
        "dirty",
        "sq",
        "python",
        "packages",
        "system",
        "device",
        "processor",
        "instructions",
        "vnni",
        "threads",
        "machine",
    }
    maybe = ("commit", "dirty", "vnni")  # None where it is unknown
    assert all(
        value is not None and value != "" for name, value in found.items() if name not in maybe
    )
    assert json.loads(json.dumps(found)) == found
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()


def test_start_time_is_now_and_says_its_zone():
    started = datetime.datetime.fromisoformat(provenance.collect(CPU)["started"])
    assert abs((datetime.datetime.now(datetime.timezone.utc) - started).total_seconds()) < 60


def test_packages_are_the_installed_ones():
    found = provenance.collect(CPU)["packages"]
    here = {own.metadata["Name"].lower() for own in metadata.distributions()}
    assert found == {name: metadata.version(name) for name in provenance.PACKAGES if name in here}
    assert {"torch", "numpy", "scipy", "hydra-core", "brevitas"} <= set(found)
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    assert list(provenance.collect(CPU)["packages"]) == ["torch"]


def test_machine_is_the_same_each_time_differs_with_threads_and_hides_the_host():
    own, threads = provenance.collect(CPU)["machine"], torch.get_num_threads()
    assert provenance.collect(CPU)["machine"] == own
    try:
        torch.set_num_threads(threads + 1)
        assert provenance.collect(CPU)["machine"] != own
    finally:
        torch.set_num_threads(threads)
    assert platform.node() not in provenance.collect(CPU).values()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_commit_is_the_checkouts():
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    found = provenance.collect(CPU)
    assert found["commit"] == head.stdout.strip()
    assert isinstance(found["dirty"], bool)


def test_a_wheel_is_no_commit_of_the_repository_around_it(monkeypatch):
    monkeypatch.setattr(provenance.paths, "CHECKOUT", None)
    found = provenance.collect(CPU)
    assert found["commit"] is None
    assert found["dirty"] is None


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_no_git_is_no_commit(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(provenance.subprocess, "run", fail)
    found = provenance.collect(CPU)
    assert found["commit"] is None
    assert found["dirty"] is None


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a git repository that stands for the checkout."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for folder in ("sq", "conf", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run.py").write_text("")
    (tmp_path / "conf" / "config.yaml").write_text("bits: 4\n")
    (tmp_path / "sq" / "code.py").write_text("")
    me = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
    for words in (["init", "-q"], ["add", "."], [*me, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance.paths, "CHECKOUT", tmp_path)
    return tmp_path


def test_tree_is_dirty_by_code_and_settings_alone(checkout):
    first = provenance.collect(CPU)
    assert len(first["commit"]) == 40
    assert first["dirty"] is False
    (checkout / "results" / "new.json").write_text("{}")
    assert provenance.collect(CPU)["dirty"] is False
    (checkout / "conf" / "config.yaml").write_text("bits: 3\n")
    assert provenance.collect(CPU)["dirty"] is True


def test_new_file_among_the_code_makes_the_tree_dirty(checkout):
    (checkout / "sq" / "new.py").write_text("")
    assert provenance.collect(CPU)["dirty"] is True
