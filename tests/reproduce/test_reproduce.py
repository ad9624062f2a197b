"""``python -m sq.reproduce`` as a user types it, on experiments of a few cheap runs."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from cli_helpers import PATIENCE, ROOT, as_it_was, environment

from sq.core.wording import quantity
from sq.records import record, run_locks
from sq.report import index
from sq.reproduce import __main__ as reproduce
from sq.reproduce import children
from sq.reproduce.tasks import ExperimentState
from sq.runs import status

SWEEP = """\
# Question  {question}?
# Cost      {runs} runs, about {minutes} minutes
defaults: [config, override quantizer: rtn, override correction: none, _self_]
name: {name}
calibration: {{images: {images}}}
sensitivity: {{bits: [4]}}
threads: 1
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      bits: {bits}
      seed: 0,1,2
"""
BENCH = """\
# Question  Which is quicker?
# Cost      1 layer x 2 quantizers x 1 bit-widths x 1 repeats = 2 solves, about 1 minute
name: bench_small
source:
  _target_: sq.bench.sources.synthetic
  outputs: 4
  inputs: 18
  kernel: 3
  tail: 5
  maps:
    {_target_: sq.bench.features.maps, _partial_: true, positions: 4.0, side: 4, decay: 1.0,
     smoothness: 1.0, shift: 0.5, heterogeneity: 0.0}
quantizers: [rtn, obq]
reference: obq
bits: [4]
grid: uniform
repeats: 1
seed: 0
device: cpu
threads: 1
results: results
"""


def write(folder, stem, **settings):
    own = {
        "question": "Is it",
        "runs": 3,
        "minutes": 1,
        "name": stem,
        "images": 32,
        "bits": "4",
        **settings,
    }
    (folder / "experiments").mkdir(exist_ok=True)
    (folder / "experiments" / f"{stem}.yaml").write_text(SWEEP.format(**own))


def words(folder, *more):
    kept = [
        *(more or ()),
        "--experiments",
        str(folder / "experiments"),
        "--results",
        str(folder / "results"),
    ]
    return [*kept, "--", "tracker=none", f"outputs={folder / 'outputs'}"]


def start(folder, *more):
    return processes.Popen(
        [sys.executable, "-m", "sq.reproduce", *words(folder, *more)],
        cwd=folder,
        env=environment(folder, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, *more):
    child = start(folder, *more)
    out, err = child.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def digests(folder):
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*.*")
    }


def records(folder, name):
    return [
        file
        for file in (folder / "results" / name).glob("*.json")
        if record.read(file)["status"] == "done"
    ]


def test_interrupted_then_finished_then_nothing_to_do(tmp_path):
    write(tmp_path, "small")
    write(tmp_path, "small_more", name="small", runs=9, minutes=3, bits="2,3,5")
    (tmp_path / "experiments" / "bench_small.yaml").write_text(BENCH)
    (tmp_path / "README.md").write_text(
        "a\n<!-- table: small -->\n<!-- end -->\n<!-- table: other -->\n<!-- end -->\n"
    )

    first = start(tmp_path)
    until = time.monotonic() + PATIENCE
    while len(records(tmp_path, "small")) < 4 and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=PATIENCE)
    assert first.returncode == 130, err
    lines = err.splitlines()
    assert lines[0] == "3 experiments, 0 complete, 3 to run: 13 runs, about 5.0 min"
    assert lines[1:3] == [
        "[1/3] bench_small: benchmark, about 60 s",
        "[2/3] small: 3 runs, about 60 s",
    ]
    assert lines[3].startswith("[3/3] small_more: 9 runs, about ")
    assert lines[-1] == "sq: interrupted; the same command resumes where this one stopped"
    kept = {file: file.stat().st_mtime_ns for file in records(tmp_path, "small")}
    assert 4 <= len(kept) < 12
    jobs = jobs_of(tmp_path, "small_more")
    assert [one for one in jobs if run_locks.holder(record.path(one.config))] == [], (
        "a child is still at work"
    )
    assert not (tmp_path / "results" / "small" / "table.md").exists()

    second = run(tmp_path)
    assert second.returncode == 0, second.stderr
    assert "3 of 3 experiments complete" in second.stderr
    assert len(records(tmp_path, "small")) == 12
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, (
        "finished runs are not run again"
    )
    table = (tmp_path / "results" / "small" / "table.md").read_text()
    assert (
        (tmp_path / "README.md")
        .read_text()
        .startswith(f"a\n<!-- table: small -->\n\n{table}\n<!-- end -->")
    )
    assert {"table.md", "totals.csv", "tradeoff.svg"} <= {
        f.name for f in (tmp_path / "results/bench_small").iterdir()
    }

    before, page = digests(tmp_path / "results"), (tmp_path / "README.md").read_bytes()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "results").rglob("*.json")}
    assert len(before) > 20
    third = run(tmp_path)
    assert third.returncode == 0, third.stderr
    assert third.stdout == ""
    assert third.stderr.splitlines() == [
        "3 experiments, 3 complete: nothing to run",
        "3 of 3 experiments complete; tables and figures changed: 0",
    ]
    assert digests(tmp_path / "results") == before
    assert (tmp_path / "README.md").read_bytes() == page
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_what_fails_and_what_is_not_here_does_not_stop_the_rest(tmp_path, monkeypatch):
    monkeypatch.delenv("SQ_DATA", raising=False)
    write(tmp_path, "broken", images=100000, question="Are there so many")
    write(tmp_path, "whole", minutes=2)
    write(tmp_path, "far", minutes=3)
    far = tmp_path / "experiments" / "far.yaml"
    far.write_text(
        far.read_text().replace(
            "_self_]", "override model: resnet20, override dataset: cifar10, _self_]"
        )
    )
    (tmp_path / "README.md").write_text("<!-- table: broken -->\n<!-- end -->\n")
    done = run(tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith(
        "left out: far: model.weights=weights/cifar10_resnet20.pth: not in the working directory"
    )
    assert lines[1] == "3 experiments, 0 complete, 1 left out, 2 to run: 6 runs, about 3.0 min"
    assert lines[2] == "[1/2] broken: 3 runs, about 60 s"
    assert lines[3].startswith("    0 of 3 done in ")
    assert "100000" in lines[3]
    assert str(tmp_path / "outputs" / "reproduce" / "broken.log") in lines[3]
    assert lines[4] == "[2/2] whole: 3 runs, about 2.0 min"
    assert lines[5:] == [
        "not complete: broken: 3 of 3 missing",
        "not complete: far: 3 of 3 missing",
        # two pages and the index among them
        "1 of 3 experiments complete; tables and figures changed: 12",
    ]
    assert len(records(tmp_path, "whole")) == 3
    assert (tmp_path / "README.md").read_text() == "<!-- table: broken -->\n<!-- end -->\n"


def jobs_of(folder, stem):
    with as_it_was():
        return status.jobs_of(stem, folder / "results", folder / "experiments", ["tracker=none"])


def called(folder, capsys, *more):
    code = reproduce.main(words(folder, *more))
    return code, capsys.readouterr()


def test_dry_run_does_nothing(tmp_path, capsys, monkeypatch):
    write(tmp_path, "dear", minutes=50, question="Was it dear")
    write(tmp_path, "cheap", minutes=2, question="Was it cheap")
    monkeypatch.setattr(children, "run", lambda *_: pytest.fail("something was run"))
    before = sorted(tmp_path.rglob("*"))
    code, said = called(tmp_path, capsys, "--dry-run")
    assert code == 1
    assert said.err == "2 experiments, 0 complete, 2 to run: 6 runs, about 52.0 min\n"
    assert said.out.index("Was it cheap?") < said.out.index("Was it dear?")
    assert sorted(tmp_path.rglob("*")) == before


def test_names_and_patterns_choose(tmp_path, capsys):
    for stem, name in (("a", "a"), ("a_part", "a"), ("b", "b")):
        write(tmp_path, stem, name=name)
    for more, chosen in (
        (["a"], ["a", "a_part"]),
        (["a_part"], ["a_part"]),
        (["a", "b", "--without", "*_part"], ["a", "b"]),
        (["--without", "a*"], ["b"]),
    ):
        _, said = called(tmp_path, capsys, *more, "--dry-run")
        assert [stem for stem in ("a", "a_part", "b") if f" {stem} " in said.out] == chosen
        assert said.err.startswith(f"{quantity(chosen, 'experiment')}, ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["c"], "sq: c: no such experiment; choices: a, b"),
        (["--without", "c*"], "sq: --without c*: fits no experiment; choices: a, b"),
        (["--without", "*"], "sq: no experiment is left to reproduce"),
    ],
)
def test_names_that_fit_nothing_are_one_line(more, message, tmp_path, capsys):
    write(tmp_path, "a")
    write(tmp_path, "b")
    code, said = called(tmp_path, capsys, *more)
    assert code == 1
    assert said.out == ""
    assert said.err.startswith(message)
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    "word", ["bits=3", "rerun=true", "name=other", "results=elsewhere", "quantizer=obq", "tracker"]
)
def test_words_that_would_ask_another_question_are_refused(word, tmp_path, capsys):
    write(tmp_path, "a")
    assert reproduce.main([*words(tmp_path), word]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"sq: {word}: after -- only settings that shape no result")
    assert not (tmp_path / "results").exists()


def test_two_questions_of_one_name_are_refused(tmp_path, capsys):
    write(tmp_path, "a")
    write(tmp_path, "other", name="a")
    code, said = called(tmp_path, capsys)
    assert code == 1
    (line,) = said.err.splitlines()
    assert "other.yaml: name: a, as in a.yaml: two questions would share results/a" in line
    assert not (tmp_path / "results").exists()


def test_a_second_interrupt_of_the_parent_ends_it_all_the_same(tmp_path, capsys, monkeypatch):
    write(tmp_path, "a")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(children, "run", interrupted)
    code, said = called(tmp_path, capsys)
    assert code == 130
    assert said.err.splitlines()[-1].startswith("sq: interrupted; the same command")


def test_forecast_tells_of_what_has_no_cost():
    one = reproduce.experiments.read()[0]
    todo = [ExperimentState(one, [], [], [one.file], seconds) for seconds in (60.0, None)]
    assert reproduce.forecast(todo, todo, []).endswith(
        "2 to run: 2 runs, about 60 s and 1 of unknown cost"
    )


def test_the_parent_needs_no_torch(tmp_path):
    write(tmp_path, "a")
    code = f"import sys\nfrom sq.reproduce import __main__ as m\nm.main({words(tmp_path, '--dry-run')!r})\n"
    code += "assert 'torch' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, env=env
    )


def test_make_paper_is_the_same_command():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    said = subprocess.run(
        ["make", "-n", "paper"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert said == "python -m sq.reproduce\n"


def test_what_is_done_is_read_once_to_plan_and_once_to_report_and_there_is_one_index(
    tmp_path, capsys, monkeypatch
):
    for name in ("one", "two"):
        write(tmp_path, name)
    jobs = [job for name in ("one", "two") for job in jobs_of(tmp_path, name)]
    template = record.read(next((ROOT / "results" / "quickstart").glob("*.json")))
    for job in jobs:
        made = {
            "key": job.file.stem,
            "config": job.config,
            "choices": job.choices,
            "name": job.config["name"],
        }
        record.write(job.file, template | made)
    seen, indices = [], []
    read, draw = Path.read_bytes, index.build
    monkeypatch.setattr(Path, "read_bytes", lambda file: seen.append(file) or read(file))
    monkeypatch.setattr(index, "build", lambda *given: indices.append(given) or draw(*given))
    code, said = called(tmp_path, capsys)
    assert code == 0, said.err
    assert "2 of 2 experiments complete" in said.err
    assert [seen.count(job.file) for job in jobs] == [2] * len(jobs)
    assert len(indices) == 1
    assert all(
        f"{name}/index.html" in (tmp_path / "results" / "index.html").read_text()
        for name in ("one", "two")
    )
