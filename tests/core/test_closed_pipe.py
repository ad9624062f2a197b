"""Programs whose reader has gone."""

import ast
import os
import subprocess
import sys

import processes
import pytest
from cli_helpers import PATIENCE, ROOT, command, environment

from sq.core import closed_pipe

PROGRAMS = {
    "run.py": [str(ROOT / "run.py"), "--help"],
    "config": ["-m", "sq", "run", "--cfg", "job"],
    "sq": ["-m", "sq"],
    "argparse": ["-m", "sq", "status", "--help"],
    "status": ["-m", "sq", "status", "quickstart"],
    "doctor": ["-m", "sq", "doctor"],
    "completion": ["-m", "sq", "completion", "bash"],
}


def closed():
    """Return the end of a pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def start(folder, words, **streams):
    # Buffered, as by default: else argparse itself passes over a write that fails.
    env = environment(folder, PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="")
    return processes.run([sys.executable, *words], cwd=folder, env=env, timeout=PATIENCE, **streams)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_end_quietly_where_nobody_reads(name, tmp_path):
    writing = closed()
    done = start(tmp_path, PROGRAMS[name], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    told = [
        line for line in done.stderr.decode().splitlines() if not line.startswith("quickstart: ")
    ]
    assert told == []
    assert done.returncode == closed_pipe.EXIT


def test_a_run_ends_quietly_where_nobody_reads_what_it_says(tmp_path):
    writing = closed()
    words = command(tmp_path, "bits=3,4", sweep=True)[1:]
    done = start(tmp_path, words, stdout=writing, stderr=writing)
    os.close(writing)
    assert done.returncode == closed_pipe.EXIT
    assert not list(tmp_path.rglob("*.json"))  # nor is it recorded as a failure


def test_a_broken_pipe_of_something_else_is_an_error():
    @closed_pipe.quiet
    def program():
        raise BrokenPipeError("of a tracker's client")

    with pytest.raises(BrokenPipeError, match="of a tracker's client"):
        program()


def test_system_that_does_not_tell_which_pipe_is_broken_has_the_error(monkeypatch):
    monkeypatch.delattr("select.poll")

    @closed_pipe.quiet
    def program():
        raise BrokenPipeError("of the output")

    with pytest.raises(BrokenPipeError, match="of the output"):
        program()


def test_what_a_program_returns_and_how_it_ends_stays():
    assert closed_pipe.quiet(lambda: 3)() == 3

    @closed_pipe.quiet
    def program():
        raise SystemExit(5)

    with pytest.raises(SystemExit) as end:
        program()
    assert end.value.code == 5


def test_every_program_is_quiet():
    mains = {}
    for file in (ROOT / "sq").rglob("*.py"):
        text = file.read_text()
        if 'if __name__ == "__main__":' not in text or file == ROOT / "sq" / "__main__.py":
            continue
        functions, source = _functions(text), file
        if "main" not in functions:  # a short file that starts the program of another module
            source = ROOT / f"{_module_of_main(text).replace('.', '/')}.py"
            functions = _functions(source.read_text())
        decorators = [ast.unparse(decorator) for decorator in functions["main"].decorator_list]
        mains[f"{file.relative_to(ROOT)}: {source.relative_to(ROOT)}"] = decorators
    assert len(mains) >= 8
    assert {name: found for name, found in mains.items() if found != ["closed_pipe.quiet"]} == {}


def _functions(text):
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def _module_of_main(text):
    """Return the module that a file imports its `main` from."""
    (module,) = (
        node.module
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom) and any(alias.name == "main" for alias in node.names)
    )
    return module
