"""Settings of launchers are checked like all others: names, types and ranges, in a dry run too, in one line."""

from typing import get_type_hints

import pytest
from cli_helpers import CONF, call, error_line, snapshot
from omegaconf import OmegaConf

from hydra_plugins import sq_launchers

LAUNCHERS = {"local": sq_launchers.Local, "slurm": sq_launchers.Slurm}


@pytest.mark.parametrize(
    "option", sorted(file.stem for file in (CONF / "hydra" / "launcher").glob("*.yaml"))
)
def test_every_setting_has_a_type_and_a_value_that_fits(option):
    given = OmegaConf.load(CONF / "hydra" / "launcher" / f"{option}.yaml")
    given.outputs = "o"  # which the folder is in
    given = {name: given[name] for name in given if name not in ("_target_", "outputs", "defaults")}
    launcher = LAUNCHERS[option](**given)
    assert list(get_type_hints(launcher.kinds())) == list(given)
    launcher.check()


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["local", "hydra.launcher.processes=-1"],
            "hydra.launcher.processes=-1: should be greater than or equal to 1",
        ),
        (["local", "hydra.launcher.processes=0"], "hydra.launcher.processes=0: should be greater"),
        (
            ["local", "hydra.launcher.processes=two"],
            "hydra.launcher.processes=two: should be a valid integer",
        ),
        (
            ["local", "hydra.launcher.processes=1.5"],
            "hydra.launcher.processes=1.5: should be a valid integer",
        ),
        (
            ["local", "hydra.launcher.folder=null"],
            "hydra.launcher.folder=null: should be a valid string",
        ),
        (
            ["local", "+hydra.launcher.folders=x"],
            "hydra.launcher.folders: no such setting; nearest: folder",
        ),
        (["slurm", "hydra.launcher.poll_s=0"], "hydra.launcher.poll_s=0: should be greater than 0"),
        (
            ["slurm", "hydra.launcher.requeues=-1"],
            "hydra.launcher.requeues=-1: should be greater than or equal to 0",
        ),
        (
            ["slurm", "hydra.launcher.signal_delay_s=soon"],
            "hydra.launcher.signal_delay_s=soon: should be a valid int",
        ),
        (
            ["slurm", "hydra.launcher.mem_gb=-2"],
            "hydra.launcher.mem_gb=-2: should be greater than 0",
        ),
        (
            ["slurm", "hydra.launcher.runs_per_task=0"],
            "hydra.launcher.runs_per_task=0: should be greater",
        ),
        (
            ["slurm", "hydra.launcher.setup=source"],
            "hydra.launcher.setup=source: should be a valid list",
        ),
        (["slurm", "~hydra.launcher.poll_s"], "hydra.launcher: no value for poll_s"),
    ],
)
def test_setting_that_makes_no_sense(words, said, dry, tmp_path):
    done = call(
        tmp_path, f"hydra/launcher={words[0]}", words[1], f"sweep.dry_run={dry}", sweep=True
    )
    assert error_line(done).startswith(f"sq: {said}")
    assert snapshot(tmp_path / "results") == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["hydra/launcher=local", "hydra.launcher.procesess=2"],
            "nearest: processes, of hydra/launcher=local",
        ),
        (["hydra.launcher.processes=2"], "nearest: processes, of hydra/launcher=local"),
        (
            ["hydra/launcher=slurm", "hydra.launcher.partitoin=gpu"],
            "nearest: partition, of hydra/launcher=slurm",
        ),
    ],
)
def test_setting_that_is_misspelt_or_of_another_launcher(words, said, tmp_path):
    line = error_line(call(tmp_path, *words, sweep=True))
    name = words[-1].partition("=")[0]
    assert line == f"sq: {name}: no such setting of the launcher in use; {said}"
