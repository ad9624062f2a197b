"""The command sq: every program behind one word."""

import re
import subprocess
import sys

import processes
import pytest
from cli_helpers import ROOT, call, environment, error_line, records, settings

from sq import __version__, commands


def sq(folder, *words, **env):
    return processes.run(
        [sys.executable, "-m", "sq", *words],
        cwd=folder,
        env=environment(folder, PYTHONPATH=str(ROOT), **env),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_overview_is_one_screen_and_names_every_command(words, capsys):
    assert commands.main(words) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 120
    assert re.findall(r"^  (\w+)  ", said.out, re.MULTILINE) == list(commands.COMMANDS)


def test_overview_loads_neither_torch_nor_hydra_nor_rich(tmp_path):
    code = "import sys; from sq.commands import main; main([]); print({'torch', 'hydra', 'rich'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path, PYTHONPATH=str(ROOT)),
        capture_output=True,
    )
    assert done.stdout.splitlines()[-1] == b"set()", done.stderr


def test_version(capsys):
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sq {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "sq: rnu: no such command; nearest: run (all: run, sweep, "),
        (["statsu", "quickstart"], "sq: statsu: no such command; nearest: status (all: "),
        (["zzz"], "sq: zzz: no such command; choices: bench, "),
        (["bits=3"], "sq: bits=3: a setting, and no command: sq run bits=3\n"),
        (["-m", "bits=3,4"], "sq: -m: an option, and no command: sq sweep bits=3,4\n"),
        (["-cn", "quickstart"], "sq: -cn: an option, and no command: sq run -cn quickstart\n"),
        (["help", "rnu"], "sq: rnu: no such command; nearest: run (all: "),
    ],
)
def test_what_is_no_command_is_refused_in_one_line(words, said, capsys):
    assert commands.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["report", "status", "bench", "track", "reproduce", "doctor", "completion"]
)
def test_every_command_has_a_parser_that_knows_what_it_is_called(name, capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(["help", name])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: sq {name} ")


def test_a_package_that_is_missing_is_one_line(tmp_path):
    (tmp_path / "hydra.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'hydra'\", name='hydra')\n"
    )
    env = environment(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    done = subprocess.run(
        [sys.executable, "-m", "sq", "status", "quickstart"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == "sq: hydra is not installed: install sq with pip, which brings what it needs\n"
    )


def test_run_and_sweep_are_those_of_run_py(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sq"])
    words = [*settings(tmp_path), "bits=3"]
    assert commands.main(["run", *words]) == 0
    assert commands.main(["sweep", *words, "seed=0,1"]) == 0
    assert sys.argv == ["sq"]
    keys = {made["key"] for made in records(tmp_path)}
    assert len(keys) == 2
    assert "2 runs, 1 done, 1 to do" in capsys.readouterr().err
    done = call(tmp_path, "bits=3", "seed=0,1", sweep=True)
    assert "2 runs, 2 done, 0 to do" in done.stderr


def test_experiments_that_come_with_sq_are_found_by_name_from_anywhere(tmp_path):
    done = sq(tmp_path, "run", "-cn", "quickstart", "sweep.dry_run=true")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("45 runs, 0 done, 45 to do")
    assert not (tmp_path / "results").exists()


def test_a_folder_of_ones_own_comes_before_what_comes_with_sq(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "quickstart.yaml").write_text(
        "defaults: [config, _self_]\nname: quickstart\nhydra: {mode: MULTIRUN, sweeper: {params: {bits: '3,4'}}}\n"
    )
    done = sq(tmp_path, "run", "-cd", "mine", "-cn", "quickstart", "sweep.dry_run=true")
    assert done.stderr.splitlines()[-1].startswith("2 runs, 0 done, 2 to do"), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["-cn", "quickstar"],
            r"sq: -cn quickstar: no quickstar\.yaml in \S+/experiments or \S+/conf; nearest: quickst",
        ),
        (
            ["-cd", "experiments", "-cn", "quickstart"],
            r"sq: -cd \S+/experiments: no such folder.* need no folder: -cn",
        ),
        (["-cd", "mine", "-cn", "quickstart"], r"sq: -cd \S+/mine: no such folder: correct it$"),
    ],
)
def test_experiments_that_are_not_there(words, said, tmp_path):
    line = error_line(sq(tmp_path, "run", *words))
    assert re.match(said, line), line


@pytest.mark.parametrize(
    "word",
    ["hydra/launcher=slurm", "hydra/launcher=local", "hydra/sweeper=basic", "hydra.sweep.dir=x"],
)
def test_settings_of_a_sweep_are_refused_of_one_run(word, tmp_path):
    line = error_line(call(tmp_path, word))
    assert line == f"sq: {word}: applies to sweeps only: add -m or drop it"
    assert not (tmp_path / "results").exists()


def test_settings_of_hydra_that_a_single_run_has_are_not_refused(tmp_path):
    assert call(tmp_path, f"hydra.run.dir={tmp_path}/hydra").returncode == 0


@pytest.mark.parametrize("name", ["status", "track", "report", "bench", "reproduce"])
def test_commands_are_modules_as_well(name):
    """As they were called before there was `sq`."""
    result = processes.run(
        [sys.executable, "-m", f"sq.{name}", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: python -m sq.{name} ")
