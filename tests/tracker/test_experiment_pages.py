"""The pages of a folder of records: all that stand there, as they stand."""

import json
from pathlib import Path

import pytest
from cli_helpers import ROOT

from sq.errors import SqError
from sq.records import record, run_state
from sq.report.slim import Slim
from sq.tracker import experiment_pages, run_page

SOURCES = sorted((ROOT / "results" / "quickstart").glob("*.json"))[:2]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "trial"
    made.mkdir()
    for file in SOURCES:
        (made / file.name).write_bytes(file.read_bytes())
    return made


def change(file, **more):
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(json.loads(SOURCES[0].read_text()) | more))


def digests(folder):
    return {item.id: item.digest for item in experiment_pages.read(folder).items()}


def test_an_item_for_each_record_and_the_whole_at_the_end(folder):
    found = experiment_pages.read(folder)
    ids = [run_page.identity("trial", file.stem) for file in SOURCES]
    assert [item.id for item in found.items()] == [*ids, run_page.summary_identity("trial")]
    made = [item.draw() for item in found.items()]
    assert [page.id for page in made] == [item.id for item in found.items()]
    assert {page.group for page in made} == {"trial"}, "records belong to the folder they are in"
    assert made[-1].summary["done"] == 2
    assert found.damaged == {}


def test_digests_follow_the_bytes(folder):
    before = digests(folder)
    assert digests(folder) == before
    first, second, whole = before
    (folder / SOURCES[0].name).write_bytes(SOURCES[0].read_bytes() + b"\n")
    after = digests(folder)
    assert after[first] != before[first]
    assert after[second] == before[second]
    assert after[whole] != before[whole]


def test_failed_repetition_is_told_beside_the_figures(folder):
    before = digests(folder)
    change(
        record.failed_rerun(folder / SOURCES[0].name),
        status="failed",
        error="too hot",
        traceback="T",
    )
    found = experiment_pages.read(folder)
    page, other, whole = (item.draw() for item in found.items())
    assert (page.summary["status"], page.summary["repeat_error"]) == ("done", "too hot")
    assert "repeat_error" not in other.summary
    assert [whole.summary[name] for name in ("runs", "done", "failed", "not_repeated")] == [
        2,
        2,
        0,
        1,
    ]
    ((line,),) = whole.tables["failures"].rows
    assert f"({SOURCES[0].stem}): repeating it failed: too hot" in line
    assert digests(folder)[page.id] != before[page.id]


def test_failures_and_damage_are_in_the_whole(folder):
    change(folder / "0123.json", status="failed", error="too hot")
    (folder / "4567.json").write_text("{")
    found = experiment_pages.read(folder)
    assert [item.id.partition("-")[0] for item in found.items()] == [
        "0123",
        *(f.stem for f in SOURCES),
        "summary",
    ]
    lines = [line for (line,) in found.summary().tables["failures"].rows]
    assert len(lines) == 2
    assert lines[0].endswith("(0123): too hot")
    assert "4567.json is not a whole record" in lines[1]


def test_failure_known_from_elsewhere_is_told_once_and_in_those_words(folder):
    change(folder / "0123.json", status="failed", error="too hot")
    rows = (
        experiment_pages.read(folder)
        .summary({"0123": "bits=3: too hot", "4567": "left no record"})
        .tables["failures"]
    )
    assert rows.rows == [["bits=3: too hot"], ["left no record"]]


def test_known_records_are_not_read_again(folder, monkeypatch):
    slim = Slim()
    known = {file.stem: slim(record.read(file)) for file in reversed(SOURCES)}
    whole = experiment_pages.read(folder).summary()
    monkeypatch.setattr(run_state, "find", lambda *_: pytest.fail("read"))
    found = experiment_pages.read(folder, known)
    assert found.records.keys() == known.keys()
    assert found.summary() == whole, "whichever of equal prices was kept"


def test_each_file_is_read_once_and_layers_are_not_kept(folder, monkeypatch):
    seen = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: seen.append(file.name) or read(file))
    found = experiment_pages.read(folder)
    assert seen.count(SOURCES[0].name) == 2, (
        "the record, and its failed repetition, which is not there"
    )
    assert all("layers" not in own for own in found.records.values())
    assert found.items()[0].draw().tables["layers"].rows, "a page has them all the same"


def test_what_changed_or_went_since_is_told_when_its_page_is_drawn(folder):
    first, second, _ = experiment_pages.read(folder).items()
    (folder / SOURCES[0].name).unlink()
    (folder / SOURCES[1].name).write_text("{")
    with pytest.raises(SqError, match="is gone"):
        first.draw()
    with pytest.raises(SqError, match="not a whole record"):
        second.draw()
