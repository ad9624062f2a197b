"""Completion: what the shell is told of a line."""

import os
import shutil
import subprocess
import sys

import pytest
from cli_helpers import CONF, EXPERIMENTS, ROOT, environment

from sq import commands
from sq.commands.completion import candidates

QUANTIZERS = sorted(f"quantizer={file.stem}" for file in (CONF / "quantizer").glob("*.yaml"))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("sq r", ["report", "reproduce", "run"]),
        ("sq --v", ["--version"]),
        ("sq foo ", []),
        ("sq run quantizer=", QUANTIZERS),
        ("sq run quantizer=sens", ["quantizer=sensiquant", "quantizer=sensiquant_plus"]),
        ("sq run quan", ["quantizer.", "quantizer="]),
        ("sq sweep bits=3,4 quantizer=rtn,gp", ["quantizer=rtn,gptq"]),
        (
            "sq run quantizer=gptq quantizer.solve.",
            ["quantizer.solve.block=", "quantizer.solve.order="],
        ),
        ("sq run model=resnet20 model.dep", ["model.depth="]),
        ("sq run hydra/launcher=l", ["hydra/launcher=local"]),
        ("sq run -cn quicks", ["quickstart"]),
        ("sq run -cn quickstart sweep.dry", ["sweep.dry_run="]),
        ("sq run --config-n", ["--config-name"]),
        ("sq run -cd ", []),
        ("sq status quicks", ["quickstart"]),
        ("sq track quickstart --mode o", ["offline", "online"]),
        ("sq track quickstart --timeout ", []),
        ("sq report --in", ["--index", "--into"]),
        ("sq bench dig", ["digits"]),
        ("sq reproduce cifar10_act", []),  # a part of cifar10, whose name is the question's
        ("sq completion b", ["bash"]),
        ("sq doctor --j", ["--json"]),
        ("sq run quantizer=no_such quantizer.", []),
    ],
)
def test_candidates(line, found):
    assert sorted(candidates(line)) == sorted(found)


def test_experiments_of_a_folder_of_ones_own(tmp_path):
    (tmp_path / "question.yaml").write_text("")
    assert candidates(f"sq run -cd {tmp_path} -cn ") == ["question"]
    assert len(candidates("sq run -cn ")) == len(list(EXPERIMENTS.glob("*.yaml")))


def test_query_prints_what_follows_the_last_break_of_bash(monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", "sq run quantizer=sens")
    monkeypatch.setenv("COMP_WORDBREAKS", " \t\n\"'><=;|&(:")
    assert commands.main(["completion", "query"]) == 0
    assert capsys.readouterr().out == "sensiquant\nsensiquant_plus\n"
    monkeypatch.delenv("COMP_WORDBREAKS")
    assert commands.main(["completion", "query"]) == 0
    assert capsys.readouterr().out == "quantizer=sensiquant\nquantizer=sensiquant_plus\n"


def in_shell(folder, shell, script):
    """Run `script` in a shell that knows the command sq."""
    (folder / "sq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sq "$@"\n')
    (folder / "sq").chmod(0o755)
    env = environment(folder, PYTHONPATH=str(ROOT), PATH=f"{folder}:{os.environ['PATH']}")
    done = subprocess.run([*shell, script], cwd=folder, env=env, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("sq do", ["doctor"]),
        ("sq run quantizer=gp", ["gptq"]),
        ("sq sweep quantizer=rtn,gp", ["rtn,gptq"]),
    ],
)
def test_bash_completes(line, found, tmp_path):
    script = f"""eval "$(sq completion bash)"
complete -p sq >/dev/null
COMP_LINE='{line}  later' COMP_POINT={len(line)} _sq_completion
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    assert in_shell(tmp_path, ["bash", "--norc", "-c"], script) == found


@pytest.mark.skipif(not shutil.which("fish"), reason="no fish")
def test_fish_completes(tmp_path):
    script = "sq completion fish | source; complete -C 'sq run quantizer=gp'"
    assert in_shell(tmp_path, ["fish", "--no-config", "-c"], script) == ["quantizer=gptq"]


@pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh")
def test_script_for_zsh_is_taken(tmp_path):
    script = (
        'autoload -Uz compinit; compinit -u -d dump; eval "$(sq completion zsh)"; print $_comps[sq]'
    )
    assert in_shell(tmp_path, ["zsh", "-f", "-c"], script) == ["_sq"]
