"""What a sweep will do: how runs stand, which are its share, what it would run, and that two launchers share it."""

import subprocess
import threading
import time
from contextlib import ExitStack

import hydra
import pytest
from cli_helpers import (
    CONF,
    PATIENCE,
    call,
    command,
    compose,
    environment,
    error_line,
    settings,
    snapshot,
)
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import open_dict

from sq.config.schema import sweep_problems
from sq.records import record, run_locks
from sq.runs import job
from sq.runs.sweep import expand, plan
from sq.runs.sweep.expand import Job


def fake(folder, seed, status=None, **more):
    config, choices = compose(*settings(folder), f"seed={seed}")
    file = record.path(config)
    if status:
        seconds = {"load": 1.0, "quantize": 3.0}
        made = {
            "record": record.VERSION,
            "key": file.stem,
            "choices": choices,
            "status": status,
            "seconds": seconds,
        }
        record.write(file, made | more)
    return Job([f"seed={seed}"], config, choices)


def stand(jobs):
    known = plan.ExistingRuns(jobs)
    return [known.state(one) for one in jobs]


def test_how_runs_stand(tmp_path):
    jobs = [
        fake(tmp_path, 0, "done"),
        fake(tmp_path, 1, "failed", error="too hot"),
        fake(tmp_path, 2),
    ]
    jobs += [fake(tmp_path, 3, "done"), fake(tmp_path, 4)]
    record.path(jobs[3].config).write_text("{")
    held = run_locks.acquire(record.path(jobs[4].config))
    states = stand(jobs)
    held.release()
    assert [each.state for each in states] == ["done", "failed", "new", "damaged", "running"]
    assert states[1].cause == "too hot"
    assert "not a whole record" in states[3].cause
    assert "process" in states[4].cause
    assert stand(jobs)[4].state == "new"


def test_plans_keep_of_a_record_what_they_go_by_alone(tmp_path):
    jobs = [
        fake(tmp_path, 0, "done", layers=[{"name": "a"}] * 9, config={"bits": 4}),
        fake(tmp_path, 1, "failed"),
    ]
    kept = plan.ExistingRuns(jobs).states.values()
    assert {name for own in kept for name in own.record} == {"choices", "seconds"}


def test_a_single_run_that_is_done_reads_its_own_record_alone(tmp_path, monkeypatch):
    done, new = fake(tmp_path, 0, "done"), fake(tmp_path, 1)
    assert plan.single(new) == "about 4 s, by earlier records"
    monkeypatch.setattr(plan, "ExistingRuns", lambda jobs: pytest.fail("read the whole folder"))
    assert plan.single(done) == ""


@pytest.mark.parametrize(
    ("retry", "wanted"), [("failed", [1, 2]), ("none", [2]), ("all", [0, 1, 2])]
)
def test_what_is_tried_again(tmp_path, retry, wanted):
    runs = stand(
        [fake(tmp_path, 0, "done"), fake(tmp_path, 1, "failed", error=""), fake(tmp_path, 2)]
    )
    assert [each.job.config["seed"] for each in plan.chosen(runs, retry)] == wanted


def test_rerun_is_asked_of_done_runs_too(tmp_path):
    one = fake(tmp_path, 0, "done")
    again = Job(one.overrides, {**one.config, "rerun": True}, one.choices)
    assert len(plan.chosen(stand([again]), "none")) == 1


@pytest.mark.parametrize("of", [1, 2, 3, 7, 12])
def test_shards_are_all_runs_once(of):
    jobs = list(range(10))
    shares = [plan.share(jobs, f"{k}/{of}") for k in range(1, of + 1)]
    assert sorted(one for own in shares for one in own) == jobs
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert plan.share(jobs, None) == jobs


def test_estimate_of_time_and_memory(tmp_path):
    jobs = [fake(tmp_path, 0, "done", peak_bytes={"process": 3 * 2**30}), fake(tmp_path, 1)]
    known = plan.ExistingRuns(jobs)
    guess = known.estimate(jobs[1:])
    assert (guess.seconds, guess.gib, guess.unknown) == (4.0, 3.0, 0)
    runs = [known.state(one) for one in jobs]
    line = plan.forecast(runs, plan.chosen(runs, "failed"), known)
    assert line == "2 runs, 1 done, 1 to do, about 4 s and 3.0 GiB by earlier records"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retry": "some"}, "sweep.retry=some: "),
        ({"shard": "0/2"}, "sweep.shard=0/2: "),
        ({"shard": "3/2"}, "sweep.shard=3/2: "),
        ({"shard": "half"}, "sweep.shard=half: "),
        ({"max_runs": 0}, "sweep.max_runs=0: "),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    fine = {"dry_run": False, "retry": "failed", "shard": "2/2", "max_runs": 1}
    assert sweep_problems(fine) == []
    (line,) = sweep_problems(fine | settings)
    assert line.startswith(message)


def test_a_key_is_found_once_for_a_run_of_a_sweep(tmp_path, monkeypatch):
    hashed = []
    key = record.key
    monkeypatch.setattr(record, "key", lambda config: hashed.append(config["bits"]) or key(config))
    assert call(tmp_path, "bits=3,4", sweep=True).returncode == 0
    assert sorted(hashed) == [3, 4]


def test_points_are_those_that_hydra_composes():
    words = [
        "quantizer=rtn,sensiquant",
        "bits=3,4",
        "model=digits_resnet",
        "dataset=digits",
        "+tracker.x=1",
        "seed=7",
        "quantizer.damp=${bits}",
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", words, RunMode.MULTIRUN)
        jobs = expand.expand(loader, master)
        assert [one.overrides[:2] for one in jobs] == [
            [f"quantizer={q}", f"bits={b}"] for q in ("rtn", "sensiquant") for b in (3, 4)
        ]
        assert [one.config["quantizer"]["damp"] for one in jobs] == [3, 4, 3, 4]
        for one in jobs:
            composed = loader.load_sweep_config(master, one.overrides)
            assert one.config == expand.resolve(composed)
            assert one.choices == expand.chosen(composed.hydra)


def test_dry_run_runs_nothing(tmp_path):
    assert call(tmp_path, "bits=4", sweep=True).returncode == 0
    before = snapshot(tmp_path)
    done = call(tmp_path, "bits=4,3", "sweep.dry_run=true", sweep=True)
    assert done.returncode == 0, done.stderr
    assert snapshot(tmp_path) == before
    assert "2 runs, 1 done, 1 to do, about" in done.stderr
    lines = [line for line in done.stdout.splitlines() if "bits=" in line]
    assert ["done" in line for line in lines] == [True, False]
    assert [line.split("│")[1].strip() for line in lines] == ["", "run"]


def test_dry_run_says_what_makes_no_sense(tmp_path):
    done = call(tmp_path, "bits=4,0", "sweep.dry_run=true", sweep=True)
    assert done.returncode == 1
    assert "bits=0: allowed are 1 to 16" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["seed=range(5)", "sweep.max_runs=4"],
            "nothing was run: up to 5 runs, more than sweep.max_runs=4",
        ),
        (["bits=3", "sweep.shard=2/2"], "sweep.shard=2/2 of 1 runs is empty"),
        (["bits=3", "sweep.shard=2of2"], "sweep.shard=2of2: k/n"),
        (["bits=3", "sweep.retry=sometimes"], "sweep.retry=sometimes: "),
    ],
)
def test_sweep_that_makes_no_sense_as_a_whole(tmp_path, words, message):
    done = call(tmp_path, *words, sweep=True)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert snapshot(tmp_path / "results") == {}


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["seed=range(40000)", "bits=4,3"], 80_000),
        (["seed=range(0,10000000,3)"], 3_333_334),
        (["quantizer.damp=range(0.01,1,0.0001)", "bits=range(8,1,-1)"], 69_300),
        (["quantizer=glob([r*,g*])", "seed=range(1000000000)"], 2_000_000_000),
    ],
)
def test_slip_of_the_keyboard_is_refused_before_it_is_expanded(
    tmp_path, words, number, monkeypatch
):
    monkeypatch.setattr(BasicSweeper, "split_arguments", lambda *_: pytest.fail("expanded"))
    done = call(tmp_path, *words, sweep=True)
    assert (
        error_line(done)
        == f"sq: nothing was run: up to {number} runs, more than sweep.max_runs=1000"
    )


def test_limit_counts_values_given_twice_once(tmp_path):
    words = ["seed=1,1", "bits=4,3", "sweep.max_runs=2", "sweep.dry_run=true"]
    assert "2 runs" in call(tmp_path, *words, sweep=True).stderr


def test_shards_and_all_again(tmp_path):
    points = "calibration.images=32,33,34"
    done = call(tmp_path, points, "sweep.shard=1/2", sweep=True)
    assert "2 of 2 runs done" in done.stderr
    done = call(tmp_path, points, "sweep.shard=2/2", sweep=True)
    assert "1 of 1 runs done" in done.stderr
    before = snapshot(tmp_path / "results")
    done = call(tmp_path, points, sweep=True)
    assert "3 runs, 3 done, 0 to do" in done.stderr
    assert snapshot(tmp_path / "results") == before
    done = call(tmp_path, points, "sweep.retry=all", sweep=True)
    assert "3 to do" in done.stderr
    after = snapshot(tmp_path / "results")
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after if name.endswith(".json"))


def test_two_launchers_do_each_run_once(tmp_path):
    sizes = [32, 64, 96, 128, 160, 192]
    words = f"calibration.images={','.join(map(str, sizes))}"
    places = [tmp_path / "one", tmp_path / "other"]
    # Until both are there, all runs are somebody else's.
    files = [
        record.path(compose(*settings(tmp_path), f"calibration.images={size}")[0]) for size in sizes
    ]
    held = [run_locks.acquire(file) for file in files]
    with ExitStack() as stack:
        every = []
        for own in places:
            own.mkdir()
            out, err = (stack.enter_context((own / name).open("w")) for name in ("out", "err"))
            mine = [
                f"outputs={own}" if w.startswith("outputs=") else w
                for w in command(tmp_path, words, sweep=True)
            ]
            env = environment(tmp_path)
            every.append(
                stack.enter_context(
                    subprocess.Popen(mine, cwd=tmp_path, env=env, stdout=out, stderr=err)
                )
            )
        until = time.monotonic() + PATIENCE
        while not all(
            (own / "err").read_text().count("another launcher") >= len(sizes) for own in places
        ):
            assert time.monotonic() < until
            time.sleep(0.05)
        for one in held:
            one.release()
        assert [process.wait(PATIENCE) for process in every] == [0, 0], [
            (own / "err").read_text() for own in places
        ]
    assert (places[0] / "out").read_text() == (places[1] / "out").read_text()  # one table
    assert all("6 of 6 runs done, 0 failed" in (own / "err").read_text() for own in places)
    # a log is begun by the process that does the run
    logs = [{file.stem for file in (own / "runs").glob("*.log")} for own in places]
    assert logs[0] & logs[1] == set()
    assert logs[0] | logs[1] == {file.stem for file in files}
    assert min(map(len, logs)) > 0
    assert list((tmp_path / "results" / "runs" / "claims").iterdir()) == []


def test_a_run_that_another_process_does_is_left_or_waited_for(tmp_path, monkeypatch):
    config, choices = compose(*settings(tmp_path))
    file = record.path(config)
    monkeypatch.setattr(job, "POLL", 0.02)
    monkeypatch.setattr(job, "_run", lambda *_: pytest.fail("run although another process does it"))
    held = run_locks.acquire(file)
    assert job.execute(Job([], config, choices), wait=False) is None
    theirs = {"record": record.VERSION, "status": "done", "by": "another"}

    def finish():
        time.sleep(0.2)
        record.write(file, theirs)
        held.release()

    other = threading.Thread(target=finish)
    other.start()
    assert job.execute(Job([], config, choices), wait=True) == theirs
    other.join()


def test_a_run_that_was_taken_over_is_not_recorded(tmp_path, monkeypatch):
    config, choices = compose(*settings(tmp_path))
    monkeypatch.setattr(job, "_run", lambda *_: {"record": record.VERSION, "status": "done"})
    monkeypatch.setattr(run_locks.RunLock, "lost", lambda self: True)
    made, failure = job.attempt(Job([], config, choices), wait=True)
    assert made is None
    assert "another launcher took this process for dead" in failure
    assert record.read(record.path(config)) is None


def test_a_launcher_that_gives_up_leaves_the_summary(tmp_path, monkeypatch):
    def crash(self, job_overrides, initial_job_idx):
        raise RuntimeError("job 7 was killed\nby a signal")

    assert call(tmp_path, "bits=3", sweep=True).returncode == 0
    submitit = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"
    monkeypatch.setattr(Plugins.instance().class_name_to_class[submitit], "launch", crash)
    done = call(tmp_path, "bits=3,4", "hydra/launcher=submitit_local", sweep=True)
    assert done.returncode == 1
    assert "launcher: " in done.stderr
    assert "job 7 was killed" in done.stderr
    assert "left no record" in done.stderr
    assert "1 of 2 runs done, 1 failed" in done.stderr
    assert done.stdout.count("│ rtn") == 1


def test_what_the_command_says_takes_the_place_of_what_the_file_says():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", ["bits=2", "seed=1,5"], RunMode.MULTIRUN)
        with open_dict(master):
            master.hydra.sweeper.params = {"seed": "0,1,2", "bits": "4,3"}
        jobs = expand.expand(loader, master)
    assert [one.overrides for one in jobs] == [["seed=1", "bits=2"], ["seed=5", "bits=2"]]


@pytest.mark.parametrize("status", ["failed", "done"])
def test_an_attempt_since_the_sweep_was_planned_is_the_one_wanted(tmp_path, monkeypatch, status):
    config, choices = compose(*settings(tmp_path))
    file = record.path(config)
    theirs = {"record": record.VERSION, "status": status, "error": "theirs"}
    monkeypatch.setattr(job, "_run", lambda *_: pytest.fail("done a second time"))
    planned = record.fingerprint(file)
    record.write(file, theirs)
    assert job.execute(Job([], {**config, "rerun": True}, choices, planned), wait=True) == theirs


def test_a_dead_process_is_recorded_unless_its_run_was_attempted_or_is_held(tmp_path):
    config, choices = compose(*settings(tmp_path))
    file = record.path(config)
    seen = record.fingerprint(file)
    held = run_locks.acquire(file)
    assert not job.record_death(Job([], config, choices, seen), "killed", "its log"), (
        "a process holds it"
    )
    assert record.read(file) is None
    held.release()
    assert job.record_death(Job([], config, choices, seen), "killed", "its log")
    made = record.read(file)
    assert (made["status"], made["error"], made["traceback"]) == ("failed", "killed", "its log")
    assert job.record_death(Job([], config, choices, seen), "killed again", ""), (
        "settled: there is a record since"
    )
    assert record.read(file) == made
    record.write(file, {"record": record.VERSION, "status": "done"})
    assert job.record_death(
        Job([], config, choices, record.fingerprint(file)), "repeating it was killed", ""
    )
    assert record.read(file)["status"] == "done", "figures are spared"
    assert record.read(record.failed_rerun(file))["error"] == "repeating it was killed"
