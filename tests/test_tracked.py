"""The pages of a folder of records: all that stand there, as they stand."""

import json

import pytest
from cli_helpers import ROOT

from sq import mirror, record, tracked

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
    return {item.id: item.digest for item in tracked.read(folder).items()}


def test_an_item_for_each_record_and_the_whole_at_the_end(folder):
    found = tracked.read(folder)
    ids = [mirror.identity("trial", file.stem) for file in SOURCES]
    assert [item.id for item in found.items()] == [*ids, mirror.summary_identity("trial")]
    made = [item.draw() for item in found.items()]
    assert [page.id for page in made] == [item.id for item in found.items()]
    assert {page.group for page in made} == {"trial"}, "records belong to the folder they are in"
    assert made[-1].summary["done"] == 2
    assert found.damaged == []


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
    change(record.failed_rerun(folder / SOURCES[0].name), status="failed", error="too hot", traceback="T")
    found = tracked.read(folder)
    page, other, whole = (item.draw() for item in found.items())
    assert (page.summary["status"], page.summary["repeat_error"]) == ("done", "too hot")
    assert "repeat_error" not in other.summary
    assert (whole.summary["done"], whole.summary["failed"]) == (2, 1)
    assert digests(folder)[page.id] != before[page.id]


def test_failures_and_damage_are_in_the_whole(folder):
    change(folder / "0123.json", status="failed", error="too hot")
    (folder / "4567.json").write_text("{")
    found = tracked.read(folder)
    assert [item.id.partition("-")[0] for item in found.items()] == ["0123", *(f.stem for f in SOURCES), "summary"]
    lines = [line for (line,) in found.summary().tables["failures"].rows]
    assert len(lines) == 2
    assert lines[0].endswith("(0123): too hot")
    assert "4567.json is not a whole record" in lines[1]


def test_failure_known_from_elsewhere_is_told_once_and_in_those_words(folder):
    change(folder / "0123.json", status="failed", error="too hot")
    rows = tracked.read(folder).summary(["bits=3 (0123): too hot", "bits=2 (4567): left no record"]).tables["failures"]
    assert rows.rows == [["bits=3 (0123): too hot"], ["bits=2 (4567): left no record"]]


def test_known_records_are_not_parsed_again(folder, monkeypatch):
    known = {file.stem: record.read(file) for file in SOURCES}
    monkeypatch.setattr(record, "read", lambda file: None if file.parent.name == "failed" else pytest.fail("parsed"))
    assert tracked.read(folder, known).records.keys() == known.keys()
