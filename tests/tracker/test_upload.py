"""Uploading records: each once, to the same run; what cannot be is told, and holds up nothing else."""

import json
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import wandb
from cli_helpers import ROOT, compose
from wandb_helpers import KEY, client, offline, rows, server

from sq.config.instantiate import build
from sq.errors import SqError
from sq.records import record
from sq.report import figure
from sq.tracker import experiment_pages, run_page, upload
from sq.tracker import wandb as adapter

SOURCES = sorted((ROOT / "results" / "quickstart").glob("*.json"))[:3]
FAILED = "0123456789abcdef"
NOWHERE = "http://127.0.0.1:9"


def write(folder, *, failed=True):
    made = folder / "results" / "trial"
    made.mkdir(parents=True)
    for file in SOURCES:
        (made / file.name).write_bytes(file.read_bytes())
    if failed:
        found = json.loads(SOURCES[0].read_text())
        own = {k: found[k] for k in ("record", "choices", "config", "provenance")} | {
            "name": "trial",
            "key": FAILED,
        }
        record.write(
            made / f"{FAILED}.json",
            own | {"status": "failed", "error": "too hot", "traceback": "Tr: too hot"},
        )
    return made


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    return tmp_path


@pytest.fixture
def main(folder, capsys):
    """Return what runs the command and gives its exit code and the lines it says."""

    def call(*words, name="trial"):
        own = [f"--results={folder / 'results'}", f"--outputs={folder / 'outputs'}", *words]
        code = upload.main([name, *own])
        said = capsys.readouterr()
        assert said.out == ""
        return code, said.err.splitlines()

    return call


@pytest.fixture
def plain(monkeypatch):
    """Draw no figures, which take most of the time."""
    monkeypatch.setattr(figure, "all_figures", lambda *_: iter(()))


def touch(file):
    file.write_bytes(file.read_bytes() + b"\n")


def test_offline_once_and_what_changed_again(folder, main):
    with client(folder):
        code, said = main("--mode=offline")
        assert code == 0
        assert said[0].startswith("trial: 5 of 5 to upload to sq, offline in ")
        assert said[-1] == "trial: 5 uploaded, 0 were there as they are, 0 not uploaded"
        runs = offline(folder / "outputs")
        code, said = main("--mode=offline")
        assert (code, said) == (0, ["trial: 0 uploaded, 5 were there as they are, 0 not uploaded"])
        assert len(offline(folder / "outputs")) == 5
        changed = folder / "results" / "trial" / SOURCES[1].name
        touch(changed)
        code, said = main("--mode=offline")
        assert code == 0
        assert "2 of 5 to upload" in said[0]
        assert ", about " in said[0]
    ids = [
        run_page.identity("trial", stem) for stem in sorted([FAILED, *(f.stem for f in SOURCES)])
    ]
    assert {own["run"].run_id for own in runs} == {*ids, run_page.summary_identity("trial")}
    again = [own["run"].run_id for own in offline(folder / "outputs")[5:7]]
    assert again == [run_page.identity("trial", changed.stem), run_page.summary_identity("trial")]
    seen = {own["run"].run_id: own for own in runs}
    for file in SOURCES:
        own, made = seen[run_page.identity("trial", file.stem)], record.read(file)
        assert {name: own["summary"][name] for name in made["results"]} == made["results"]
        assert (own["run"].run_group, own["run"].job_type, own["exit"]) == ("trial", "run", 0)
        assert len(rows(own, "layers")[1]) == len(made["layers"])
    own = seen[run_page.identity("trial", FAILED)]
    assert (
        own["summary"].items()
        >= {"status": "failed", "error": "too hot", "traceback": "Tr: too hot"}.items()
    )
    assert own["exit"] == 1
    whole = seen[run_page.summary_identity("trial")]
    assert rows(whole, "failures")[1][0][0].endswith(f"({FAILED}): too hot")
    assert len(rows(whole, "table")[1]) == len(
        experiment_pages.read(folder / "results" / "trial").summary().tables["table"].rows
    )
    assert len([name for name in whole["media"] if name.endswith(".png")]) == 2


def test_tracker_and_upload_make_the_same_page(folder):
    made = json.loads(SOURCES[0].read_text())
    begun = {k: made[k] for k in ("record", "key", "name", "choices", "config", "provenance")} | {
        "status": "failed"
    }
    where = run_page.Destination("offline", "sq", None, str(folder / "mirror"), 30)
    with client(folder):
        own = adapter.open(
            begun, mode="offline", project="sq", entity=None, dir=where.dir, timeout=30
        )
        own.close(made)
        adapter.upload(run_page.run(made), where)
    tracked, uploaded = offline(folder / "mirror")
    for name in ("run_id", "run_group", "job_type", "tags", "display_name", "project"):
        assert getattr(tracked["run"], name) == getattr(uploaded["run"], name)
    for seen in (tracked, uploaded):
        del seen["config"]["_wandb"]
        names = run_page.run(made).summary
        assert seen["summary"].keys() > names.keys()
        seen["summary"] = {name: seen["summary"][name] for name in names}
    assert tracked["config"] == uploaded["config"]
    assert tracked["summary"] == uploaded["summary"]
    assert tracked["exit"] == uploaded["exit"] == 0


def test_online_once(folder, main, plain):
    with server() as there, client(folder, WANDB_BASE_URL=there.url, WANDB_API_KEY=KEY):
        assert main()[0] == 0
        assert main()[1] == ["trial: 0 uploaded, 5 were there as they are, 0 not uploaded"]
        touch(folder / "results" / "trial" / SOURCES[1].name)
        assert main()[1][-1].startswith("trial: 2 uploaded")
    assert len(there.runs) == 5
    changed = {run_page.identity("trial", SOURCES[1].stem), run_page.summary_identity("trial")}
    assert {own for own, seen in there.runs.items() if seen["begun"] == 2} == changed
    made, seen = record.read(SOURCES[1]), there.runs[run_page.identity("trial", SOURCES[1].stem)]
    assert seen["summary"]["top1"] == made["results"]["top1"]
    assert seen["tags"] == run_page.tags(made)
    assert {own["project"] for own in there.runs.values()} == {"sq"}


def test_what_was_sent_offline_or_elsewhere_is_sent_here(folder, main, plain):
    with server() as there, client(folder, WANDB_BASE_URL=there.url, WANDB_API_KEY=KEY):
        assert main("--mode=offline")[0] == 0
        assert there.runs == {}
        assert main()[1][-1].startswith("trial: 5 uploaded")
        assert main("--force")[1][-1].startswith("trial: 5 uploaded")
        assert main("--project=other")[1][-1].startswith("trial: 5 uploaded")
        assert main("--project=other", "--entity=me")[1][-1].startswith("trial: 5 uploaded")


def test_one_run_refused_does_not_stop_the_others(folder, main, plain):
    refused = run_page.identity("trial", SOURCES[0].stem)
    with server() as there, client(folder, WANDB_BASE_URL=there.url, WANDB_API_KEY=KEY):
        there.deleted.add(refused)
        code, said = main("--timeout=2")
        assert code == 1
        assert said[-2].startswith(
            f"not uploaded: {refused}: run {refused} was deleted in W&B, which keeps its id"
        )
        assert said[-1] == "trial: 4 uploaded, 0 were there as they are, 1 not uploaded"
        assert len(there.runs) == 4
        there.deleted.clear()
        wandb.teardown()  # as a new process would
        assert main()[1][-1] == "trial: 1 uploaded, 4 were there as they are, 0 not uploaded"
        assert refused in there.runs


def test_records_that_are_none_do_not_stop_the_others(folder, main):
    (folder / "results" / "trial" / "4567.json").write_text("{")
    bare = {"record": record.VERSION, "status": "done"}
    (folder / "results" / "trial" / "89ab.json").write_text(json.dumps(bare))
    with client(folder):
        code, said = main("--mode=offline")
    assert code == 1
    lost = [line.partition(": ")[2] for line in said if line.startswith("not uploaded")]
    assert "4567.json is not a whole record" in lost[0]
    assert lost[1].startswith(run_page.identity("trial", "89ab"))
    assert {own["run"].job_type for own in offline(folder / "outputs")} == {"run"}
    assert len(offline(folder / "outputs")) == 4


def test_connection_lost_on_the_way_ends_it_at_once(folder, main, plain):
    with server() as there, client(folder, WANDB_BASE_URL=there.url, WANDB_API_KEY=KEY):
        there.most = 2
        code, said = main("--timeout=5")
        assert code == 1
        assert len([line for line in said if line.startswith("not uploaded")]) == 3
        assert len([line for line in said if "not tried, W&B takes no runs" in line]) == 2
        there.most, there.refuses = 1000, False
        wandb.teardown()  # as a new process would
        assert main()[1][-1] == "trial: 3 uploaded, 2 were there as they are, 0 not uploaded"


@pytest.mark.parametrize(
    ("environment", "cause"),
    [
        ({}, "there is no key (run `wandb login`"),
        ({"WANDB_API_KEY": KEY}, "no answer within 2 s; check the network"),
        ({"WANDB_API_KEY": "short"}, "API key must have"),
    ],
    ids=["no key", "no server", "no such key"],
)
def test_nothing_is_marked_where_nothing_can_be_sent(environment, cause, folder, main):
    with client(folder, WANDB_BASE_URL=NOWHERE, WANDB_HTTP_TIMEOUT="1", **environment):
        start = time.monotonic()
        code, (line,) = main("--timeout=2")
        assert time.monotonic() - start < 10
    assert code == 1
    assert line.startswith(f"sq: W&B takes no runs for sq at {NOWHERE}: ")
    assert cause in line
    assert not (folder / "outputs" / "tracked").exists()


def test_damaged_notes_are_one_line(folder, main):
    notes = folder / "outputs" / "tracked" / "trial.json"
    notes.parent.mkdir(parents=True)
    notes.write_text("{")
    code, (line,) = main("--mode=offline")
    assert code == 1
    assert line.startswith(f"sq: {notes} is not a whole list of what was uploaded")
    assert not (folder / "outputs" / "wandb").exists()


def test_folder_without_records(folder, main):
    (folder / "results" / "empty").mkdir()
    code, (line,) = main(name="empty")
    assert code == 1
    assert "no records in" in line


def test_interrupted(folder, main, monkeypatch):
    def upload(page, where):
        if page.id.startswith(SOURCES[1].stem):
            raise KeyboardInterrupt

    monkeypatch.setattr(adapter, "upload", upload)
    code, said = main("--mode=offline")
    assert code == 130
    assert "the same command goes on" in said[-1]
    ahead = [
        stem for stem in sorted([FAILED, *(f.stem for f in SOURCES)]) if stem < SOURCES[1].stem
    ]
    assert f"trial: {5 - len(ahead)} of 5 to upload" in main("--mode=offline")[1][0]
    assert len(ahead) > 0


def records(*trackers):
    return [
        {"config": {"tracker": {"_target_": "sq.tracker.wandb.open", **own}}} for own in trackers
    ]


def options(**more):
    return Namespace(
        **{
            "mode": "online",
            "project": None,
            "entity": None,
            "outputs": "o",
            "timeout": None,
            **more,
        }
    )


def test_destination_is_that_of_the_runs():
    assert upload.destination(options(), records({})) == run_page.Destination(
        "online", "sq", None, "o", 30
    )
    made = upload.destination(
        options(timeout=3), records({"project": "p", "entity": "e"}, {}, {"project": "p"})
    )
    assert made == run_page.Destination("online", "p", "e", "o", 3)
    assert (
        upload.destination(
            options(project="mine"), records({"project": "p"}, {"project": "q"})
        ).project
        == "mine"
    )


def test_destination_that_no_run_names_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert upload.destination(options(), records({})) == run_page.Destination(
        "online", "theirs", "team", "o", 30
    )
    assert upload.destination(options(), records({"project": "p"})).project == "p"
    assert upload.destination(options(project="mine", entity="me"), []).entity == "me"


def test_runs_of_two_projects_are_not_guessed_about():
    with pytest.raises(SqError, match=r"2 W&B projects, p, q: choose with --project"):
        upload.destination(options(), records({"project": "q"}, {"project": "p"}))


def test_no_time_to_wait_is_refused():
    with pytest.raises(SqError, match="--timeout 0: seconds, 1 or more"):
        upload.destination(options(timeout=0), [])


@pytest.mark.parametrize(
    "option", sorted(file.stem for file in (ROOT / "conf" / "tracker").glob("*.yaml"))
)
def test_every_tracker_takes_summaries(option):
    part = compose(f"tracker={option}")[0]["tracker"]
    build({**part, "_target_": part["_target_"].removesuffix("open") + "summarise"}, "tracker")


def test_no_such_experiment_is_one_line():
    words = [sys.executable, "-X", "importtime", "-m", "sq", "track", "quickstar"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nearest: quickstart" in done.stderr
    loaded = {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time")
    }
    assert "sq.tracker.upload" in loaded or "argparse" in loaded
    assert not loaded & {"wandb", "torch", "pandas", "matplotlib"}


# The end of a sweep.


def config(folder, **knobs):
    part = {
        "_target_": "sq.tracker.wandb.open",
        "_partial_": True,
        "mode": "offline",
        "project": "sq",
        "entity": None,
    }
    part |= {"dir": str(folder / "mirror"), "timeout": 30, **knobs}
    return {"name": "trial", "results": str(folder / "results"), "tracker": part}


def test_sweep_leaves_the_whole_experiment(folder):
    place, other = folder / "results" / "trial", folder / "results" / "other"
    known = {place / file.name: record.read(file) for file in SOURCES[:1]}
    failures = {
        place / "4567.json": "bits=3 (4567): left no record",
        other / "89.json": "of another experiment",
    }
    with client(folder):
        upload.summarise(known, failures, config(folder))
    (seen,) = offline(folder / "mirror")
    assert seen["run"].run_id == run_page.summary_identity("trial")
    assert (seen["summary"]["done"], seen["summary"]["failed"]) == (3, 2)
    assert rows(seen, "failures")[1][0] == ["bits=3 (4567): left no record"]


@pytest.mark.parametrize(
    "part", [{"_target_": "sq.tracker.none.open", "_partial_": True}, {"mode": "disabled"}]
)
def test_sweep_without_a_tracker_draws_nothing(part, folder, monkeypatch):
    monkeypatch.setattr(experiment_pages, "read", lambda *_: pytest.fail("read"))
    own = config(folder)
    own["tracker"] = part if "_target_" in part else own["tracker"] | part
    upload.summarise({}, {}, own)
    assert not (folder / "mirror").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "W&B could not leave the summary: too hot"),
        (
            {"_target_": "sq.tracker.no_such.open"},
            "no summary in the tracker: tracker._target_=sq.tracker.no_such",
        ),
        ({"_target_": None}, "no summary in the tracker"),
    ],
)
def test_summary_that_cannot_be_left_does_not_fail_the_sweep(
    change, said, folder, monkeypatch, capsys, caplog
):
    def broken(*_):
        raise RuntimeError("too hot")

    monkeypatch.setattr(experiment_pages, "read", broken)
    monkeypatch.setattr(adapter.log, "propagate", True)
    with client(folder):
        upload.summarise({}, {}, config(folder, **change))
    assert said in capsys.readouterr().err + caplog.text
