"""The Pythons that are promised, tried and written for are the same."""

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


@pytest.fixture(scope="module")
def project():
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def promised(project):
    """Return the minor versions of Python 3 that the classifiers name."""
    found = [
        re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", c)
        for c in project["project"]["classifiers"]
    ]
    return [int(version[1]) for version in found if version]


def test_promised_pythons_follow_each_other_from_the_lowest_that_installs(project, promised):
    assert promised == list(range(promised[0], promised[-1] + 1))
    assert project["project"]["requires-python"] == f">=3.{promised[0]}"
    assert project["tool"]["ruff"]["target-version"] == f"py3{promised[0]}"
    assert f"Python 3.{promised[0]} to 3.{promised[-1]}" in (ROOT / "README.md").read_text()


def test_core_is_tried_on_each(promised):
    matrix = WORKFLOW["jobs"]["core"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in promised]
    assert matrix["include"] == [{"python": f"3.{promised[0]}", "resolution": "lowest-direct"}]


def test_every_job_runs_a_script_that_is_there_on_a_promised_python(promised):
    for name, job in WORKFLOW["jobs"].items():
        (version,) = (step["with"]["python-version"] for step in job["steps"] if "with" in step)
        assert name == "core" or version in {f"3.{minor}" for minor in promised}
        command = job["steps"][-1]["run"]
        script = re.search(r"\.ci/\w+", command)
        assert script, command
        assert (ROOT / script[0]).is_file()
        assert script[0] == (".ci/run" if name == "ci" else f".ci/{name}")


def test_this_python_is_a_promised_one(promised):
    assert sys.version_info.minor in promised
