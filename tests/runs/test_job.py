"""One job: what becomes of its log where there is no room for it."""

import errno
import logging
import os

import pytest

from sq.runs import job


class Full:
    """A stream on a full disk."""

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    flush = close = lambda self: self.write("")


@pytest.fixture
def log(monkeypatch):
    own = logging.getLogger("sq")
    monkeypatch.setattr(own, "propagate", own.propagate)
    monkeypatch.setattr(own, "level", own.level)
    return own


def test_log_on_a_full_disk_costs_one_line(tmp_path, log, capsys):
    file = tmp_path / "runs" / "ab.log"
    with job._LogTo(file) as _:
        log.info("begun")
        (handler,) = (own for own in log.handlers if isinstance(own, job._LogFile))
        handler.stream.close()
        handler.stream = Full()
        for _ in range(3):
            log.warning("a line without room")
    assert not any(isinstance(own, job._LogFile) for own in log.handlers)
    assert "begun" in file.read_text()
    said = capsys.readouterr().err
    assert said == (
        f"log: cannot be kept in {file} (No space left on device): free space or correct outputs=; "
        "the run goes on without\n"
    )


def test_log_in_a_folder_that_cannot_be_made_costs_one_line(tmp_path, log, capsys):
    (tmp_path / "file").write_text("")
    file = tmp_path / "file" / "runs" / "ab.log"
    with job._LogTo(file):
        log.info("begun")
    said = capsys.readouterr().err
    assert said.startswith(f"log: cannot be kept in {file} (")
    assert said.count("\n") == 1
