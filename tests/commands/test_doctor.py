"""sq doctor: what is found, and whether the default runs."""

import json
import os
import re

import pytest
import torch
from cli_helpers import CONF, compose

from sq import commands
from sq.commands import doctor
from sq.core import installation


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys, *words):
    code = commands.main(["doctor", *words])
    said = capsys.readouterr()
    assert said.err == ""
    return code, said.out


def test_a_machine_on_which_sq_runs(folder, capsys):
    code, out = told(capsys)
    assert code == 0
    assert out.splitlines()[-1] == "sq can run its default here: sq run"
    assert f"torch {torch.__version__.partition('+')[0]}" in out
    assert f"instruction set {torch.backends.cpu.get_cpu_capability()}" in out
    assert list(folder.iterdir()) == []


def test_json_says_the_same(folder, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    code, out = told(capsys, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["problems"] == []
    assert found["sq"]["checkout"]
    assert found["packages"]["torch"]["met"]
    assert found["wandb"] == {"mode": "disabled", "environment": "disabled"}
    assert found["slurm"]["job"] == "17"
    assert found["cpu"]["own"] >= found["cpu"]["used"] >= 1
    assert found["disk"]["results"]["folder"] == str(folder)
    assert {*found["extras"]} == {*installation.requirements()} - {""}


@pytest.mark.parametrize(
    ("given", "mode"), [(None, "offline"), ("online", "online"), ("dryrun", "offline")]
)
def test_mode_of_the_tracker_is_that_of_a_run(given, mode, monkeypatch):
    if given:
        monkeypatch.setenv("WANDB_MODE", given)
    assert doctor._wandb() == {"mode": mode, "environment": given}
    assert compose("tracker=wandb")[0]["tracker"]["mode"] == mode


def test_data_are_told_by_the_words_of_conf(folder, monkeypatch):
    (folder / "data" / "cifar10").mkdir(parents=True)
    (folder / "data" / "weights").mkdir()
    (folder / "data" / "weights" / "cifar10_resnet20.pth").write_text("")
    monkeypatch.setenv("SQ_DATA", str(folder / "data"))
    found = doctor._data()
    assert {name for name, path in found["dataset"].items() if path} == {"cifar10"}
    assert found["model"]["resnet20"] == str(folder / "data" / "weights" / "cifar10_resnet20.pth")
    assert found["model"]["resnet32"] is None
    assert "digits" not in found["dataset"]  # needs no files of the user's
    assert {*found["dataset"]} == {f.stem for f in (CONF / "dataset").glob("*.yaml")} - {"digits"}


def test_what_is_missing_is_told_with_its_command(folder, capsys, monkeypatch):
    absent = {"onnx": None, "submitit": "0.1"}
    real = installation.metadata.version

    def version(name):
        if name not in absent:
            return real(name)
        if absent[name] is None:
            raise installation.metadata.PackageNotFoundError(name)
        return absent[name]

    monkeypatch.setattr(installation.metadata, "version", version)
    code, out = told(capsys)
    assert code == 0  # extras are extra
    assert re.search(r"^extra export: lacks onnx >=\S+: python -m pip install ", out, re.MULTILINE)
    assert re.search(
        r"^extra slurm: lacks submitit >=\S+ \(here 0\.1\): python -m pip", out, re.MULTILINE
    )


def test_without_a_package_of_the_core_sq_cannot_run(folder, capsys, monkeypatch):
    real = installation.metadata.version
    monkeypatch.setattr(
        installation.metadata, "version", lambda name: "1.0" if name == "timm" else real(name)
    )
    code, out = told(capsys)
    assert code == 1
    assert re.search(
        r"^problem: timm 1\.0: python -m pip install 'timm>=[\d.]+\S*'$", out, re.MULTILINE
    )
    assert out.splitlines()[-1] == "sq cannot run its default here"


def test_a_default_that_does_not_load_is_a_problem(folder, capsys, monkeypatch):
    from sq.model import digits_resnet

    monkeypatch.setattr(digits_resnet, "WEIGHTS", folder / "gone.safetensors")
    code, out = told(capsys)
    assert code == 1
    assert "problem: " in out
    assert "gone.safetensors" in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(folder, capsys):
    folder.chmod(0o500)
    code, out = told(capsys)
    assert code == 1
    assert f"problem: {folder} cannot be written: give results=FOLDER" in out
