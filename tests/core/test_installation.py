"""What is installed, what is missing, and the command that installs it."""

import pytest
from packaging.requirements import Requirement

from sq.core import installation


@pytest.fixture
def wheel(monkeypatch):
    """Let sq look as installed from a wheel, with metadata as one has them."""
    lines = [
        "packaging>=1",
        'old>=1; python_version < "3"',
        'packaging>=1; extra == "here"',
        'no-such-package>=2; extra == "absent"',
        'packaging[more]>=9999; extra == "absent"',
    ]

    class About:
        def get_all(self, name):
            return {"Provides-Extra": ["here", "absent"]}[name]

    monkeypatch.setattr(installation, "CHECKOUT", None)
    monkeypatch.setattr(installation.metadata, "metadata", lambda name: {"sq": About()}[name])
    monkeypatch.setattr(installation.metadata, "requires", lambda name: {"sq": lines}[name])
    installation.requirements.cache_clear()
    yield
    installation.requirements.cache_clear()


def test_requirements_of_a_wheel_by_extra(wheel):
    found = {part: [one.name for one in own] for part, own in installation.requirements().items()}
    assert found == {
        "": ["packaging"],
        "here": ["packaging"],
        "absent": ["no-such-package", "packaging"],
    }


def test_what_is_missing_is_absent_or_too_old(wheel):
    assert installation.missing("") == installation.missing("here") == []
    assert [one.name for one in installation.missing("absent")] == ["no-such-package", "packaging"]


def test_a_wheel_is_told_packages_and_a_checkout_its_extra(wheel, monkeypatch, tmp_path):
    wanted = "python -m pip install 'no-such-package>=2' 'packaging[more]>=9999'"
    assert installation.command("absent") == wanted
    monkeypatch.setattr(installation, "CHECKOUT", tmp_path)
    assert installation.command("absent") == 'python -m pip install -e ".[absent]"'


def test_this_checkout_meets_its_own_requirements():
    found = installation.requirements()
    assert {"", "detection", "bench", "slurm", "export", "dev"} <= found.keys()
    assert "torch" in [one.name for one in found[""]]
    assert installation.missing("") == []


def test_a_release_candidate_meets_a_requirement(monkeypatch):
    monkeypatch.setattr(installation.metadata, "version", lambda _: "2.15.0rc1")
    assert installation.meets(Requirement("torch>=2.14"))
    assert not installation.meets(Requirement("torch>=2.16"))
