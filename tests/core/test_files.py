"""Files written whole or not at all, and what is said where they cannot be."""

import errno
import os

import pytest

from sq.core import files
from sq.errors import SqError


def test_folders_are_made_and_content_is_replaced(tmp_path):
    file = tmp_path / "a" / "b" / "text.md"
    for text in ("first", "second, longer: \u00b5"):
        files.write_text(file, text)
        assert file.read_bytes() == text.encode()
    assert [f.name for f in file.parent.iterdir()] == ["text.md"]


def test_what_was_there_survives_and_the_setting_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "picture.png"
    files.write_bytes(file, b"before", "outputs")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        SqError, match=r"picture\.png: No space left on device; free space or correct outputs="
    ):
        files.write_bytes(file, b"after", "outputs")
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {"picture.png": b"before"}
