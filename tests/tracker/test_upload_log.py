"""Notes of what was sent: by place, written whole, and no damage passed over."""

import json

import pytest

from sq.errors import SqError
from sq.tracker.upload import UploadLog


def test_notes_last(tmp_path):
    file = tmp_path / "below" / "a.json"
    made = UploadLog(file, "here")
    assert made.seconds is None
    assert not made.has("run", "1")
    made.add("run", "1")
    made.seconds = 0.5
    made.write()
    again = UploadLog(file, "here")
    assert again.has("run", "1")
    assert not again.has("run", "2")
    assert again.seconds == 0.5


def test_places_are_apart_and_kept(tmp_path):
    file = tmp_path / "a.json"
    for place in ("here", "there"):
        made = UploadLog(file, place)
        assert not made.has("run", "1")
        made.add("run", "1")
        made.write()
    assert UploadLog(file, "here").has("run", "1")
    assert set(json.loads(file.read_text())["places"]) == {"here", "there"}


def test_long_work_is_written_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("sq.tracker.upload.WRITE_INTERVAL", 0)
    UploadLog(tmp_path / "a.json", "here").add("run", "1")
    assert UploadLog(tmp_path / "a.json", "here").has("run", "1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"ledger": 2, "places": {}}',
        '{"ledger": 1, "places": []}',
        '{"ledger": 1, "places": {"here": {"sent": [], "seconds": 1}}}',
        '{"ledger": 1, "places": {"here": {"sent": {}, "seconds": "1"}}}',
        '{"ledger": 1, "places": {"here": {"sent": {}}}}',
    ],
)
def test_damage_is_told_and_left(text, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(
        SqError, match=r"a\.json is not a whole list of what was uploaded \(.*\): delete it"
    ):
        UploadLog(file, "here")
    assert file.read_text() == text


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(SqError, match="cannot read"):
        UploadLog(tmp_path, "here")
