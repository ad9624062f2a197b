"""Pages: the same id for the same run only, the words a reader filters by, and causes that are not lost."""

import json

import pytest
from cli_helpers import ROOT

from sq.records import record
from sq.report import table
from sq.tracker import run_page

QUICKSTART = record.read_all(ROOT / "results" / "quickstart")
DONE = QUICKSTART[0]
FAILED = {k: DONE[k] for k in ("record", "key", "name", "choices", "config", "provenance")}
FAILED |= {"status": "failed", "error": "too hot", "traceback": "Traceback: too hot"}


def test_ids_are_the_same_in_every_process():
    assert run_page.identity("quickstart", "0123456789abcdef") == "0123456789abcdef-ed4f0b24"
    assert run_page.summary_identity("quickstart") == "summary-ed4f0b24"


def test_ids_tell_runs_and_experiments_apart():
    made = {run_page.identity(name, key) for name in ("a", "b") for key in ("1", "2")}
    made |= {run_page.summary_identity(name) for name in ("a", "b")}
    assert len(made) == 6


@pytest.mark.parametrize("name", ["quickstart", "é#?%:*" * 40])
def test_ids_are_such_as_the_client_takes(name):
    for own in (run_page.identity(name, "0123456789abcdef"), run_page.summary_identity(name)):
        assert len(own) <= 64
        assert not set(own) & set("/\\#?%:")


def test_tags_are_the_words_of_the_command_line():
    made = {
        **DONE,
        "choices": {**DONE["choices"], "correction": "bias"},
        "config": {**DONE["config"], "bits": 2.5},
    }
    own = DONE["choices"]
    assert run_page.tags(made) == [
        own["model"],
        own["dataset"],
        own["quantizer"],
        "bits=2.5",
        "correction=bias",
        "activation=none",
    ]


def test_tags_are_short_and_told_once():
    choices = {"model": "m" * 100, "dataset": "same", "quantizer": "same"}
    assert run_page.tags({"choices": choices, "config": {"bits": 4}}) == [
        "m" * 64,
        "same",
        "bits=4",
    ]


def test_done_run_has_every_figure_and_its_origin():
    page = run_page.run(DONE)
    assert (page.job_type, page.group, page.exit_code) == ("run", "quickstart", 0)
    assert page.summary.items() >= DONE["results"].items()
    assert page.config["provenance"]["commit"] == DONE["provenance"]["commit"]
    assert len(page.tables["layers"].rows) == len(DONE["layers"]) > 0
    name, bits, cost = page.tables["sensitivity"].rows[0]
    assert cost == DONE["sensitivity"][name][str(bits)]


def test_curves_of_what_was_learned_are_a_table():
    rows = [
        {"part": "network", "step": 0, "error": 2.0, "rounding": 1.0},
        {"part": "network", "step": 1, "error": 1.5},
    ]
    page = run_page.run({**DONE, "learning": {"curves": rows}})
    table = run_page.Table(
        ["part", "step", "error", "rounding"], [["network", 0, 2.0, 1.0], ["network", 1, 1.5, None]]
    )
    assert page.tables["curves"] == table
    assert "curves" not in run_page.run(DONE).tables


def test_scores_of_layers_are_a_table():
    page = run_page.run({**DONE, "learning": {"curves": [], "scores": {"a": 2.0, "b": 0.5}}})
    assert page.tables["scores"] == run_page.Table(["layer", "score"], [["a", 2.0], ["b", 0.5]])
    assert "scores" not in run_page.run({**DONE, "learning": {"scores": {}}}).tables


def test_layers_that_report_different_things_share_a_table():
    page = run_page.run({**DONE, "layers": [{"name": "a", "x": 1}, {"name": "b", "y": 2}]})
    assert page.tables["layers"] == run_page.Table(
        ["name", "x", "y"], [["a", 1, None], ["b", None, 2]]
    )


def test_failed_run_has_its_cause():
    page = run_page.run(FAILED)
    assert page.summary == {
        "status": "failed",
        "error": "too hot",
        "traceback": "Traceback: too hot",
    }
    assert (page.exit_code, page.tables) == (1, {})


def test_figures_outlive_a_failed_repetition():
    assert run_page.displayed(FAILED, None) is FAILED
    assert run_page.displayed(DONE, DONE | {"seconds": {}}) is DONE
    page = run_page.run(run_page.displayed(FAILED, DONE))
    assert page.summary.items() >= DONE["results"].items()
    assert page.summary["repeat_error"] == "too hot"
    assert page.exit_code == 0


def test_whole_experiment():
    page = run_page.summary("quickstart", QUICKSTART, {"k": "a (k): too hot"})
    assert page.tables["table"].rows == table.build(QUICKSTART).to_numpy().tolist()
    assert page.tables["failures"].rows == [["a (k): too hot"]]
    counts = {"runs": 46, "done": 45, "failed": 1, "not_repeated": 0, "commits": 1}
    assert page.summary == {"status": "failed", **counts}
    assert page.config["commits"] == [DONE["provenance"]["commit"]]
    assert set(page.pictures) == {"figure", "sensitivity_digits_resnet"}
    assert all(png.startswith(b"\x89PNG") for png in page.pictures.values())
    assert page.exit_code == 1
    json.dumps([page.config, page.summary], allow_nan=False)


def test_whole_experiment_without_failures_and_one_of_failures_only():
    done, failed = (
        run_page.summary("a", [DONE], {}),
        run_page.summary("a", [], {"k": "b (k): too hot"}),
    )
    assert (done.exit_code, set(done.tables)) == (0, {"table"})
    assert (failed.exit_code, set(failed.tables), failed.pictures) == (1, {"failures"}, {})


def test_pictures_are_the_same_to_the_byte():
    assert run_page.summary("a", [DONE], {}).pictures == run_page.summary("a", [DONE], {}).pictures
