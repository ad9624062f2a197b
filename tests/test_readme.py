"""The README's commands, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sq.records import record

ROOT = Path(__file__).parents[1]
COMMANDS = re.findall(
    r"^((?:python|sq) \S.*?)\s*(?:#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE
)
RUNS = ("python run.py", "sq run", "sq sweep")


def call(words: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program, _, rest = words.partition(" ")
    line = f"{sys.executable} {'-m sq ' if program == 'sq' else ''}{rest}"
    line = line.replace("run.py", str(ROOT / "run.py"), 1).replace(
        "-cd experiments", f"-cd {ROOT / 'experiments'}"
    )
    return subprocess.run(
        line, shell=True, cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_first_command_ends_with_a_table_and_the_second_time_runs_nothing(tmp_path):
    text = (ROOT / "README.md").read_text()
    command = re.search(r"^python3 .*?(python run\.py -m .*)$", text, re.MULTILINE)[1]
    first = call(command, tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("sensiquant") == 2
    assert "4 of 4 runs done, 0 failed" in first.stderr
    files = {
        file: file.stat().st_mtime_ns for file in (tmp_path / "results" / "runs").glob("*.json")
    }
    found = {
        (r["choices"]["quantizer"], r["config"]["bits"]): r["results"]
        for r in map(record.read, files)
    }
    assert len(found) == 4
    for bits in (3, 4):
        assert (
            found["sensiquant", bits]["relative_error"]
            <= 1.1 * found["obq", bits]["relative_error"]
        )
    again = call(command, tmp_path)
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert "4 done, 0 to do" in again.stderr
    assert {file: file.stat().st_mtime_ns for file in files} == files


@pytest.mark.parametrize(
    "words",
    [c for c in COMMANDS if c.startswith(RUNS) and not re.search("--help|dry_run|plugins=", c)],
)
def test_commands_compose(words, tmp_path):
    # A record that cannot be written stops each command right after everything has been composed
    # and checked.
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = call(f"{words} results={blocked}/results", tmp_path)
    assert done.returncode == 1
    assert "correct results=" in done.stderr, done.stderr


def test_report_command_rebuilds(tmp_path):
    words = next(c for c in COMMANDS if c.startswith("sq report"))
    target = tmp_path / "results" / "quickstart"
    target.mkdir(parents=True)
    for file in (ROOT / "results" / "quickstart").glob("*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    done = call(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (target / "figure.pdf").stat().st_size > 1000


def test_every_choice_is_listed():
    text = (ROOT / "README.md").read_text()
    for folder in sorted((ROOT / "conf").rglob("*")):
        name = str(folder.relative_to(ROOT / "conf"))
        if folder.is_dir() and name not in ("hydra", "quantizer/peer"):
            row = re.search(rf"^\| `{name}` \| (.*?) \|", text, re.MULTILINE)
            assert row, name
            assert set(re.findall(r"`(\w+)`", row[1])) == {f.stem for f in folder.glob("*.yaml")}
