import signal
import sys
import threading
import time

import pytest

from sq.errors import SqError
from sq.reproduce import children


def ran(tmp_path, code):
    return children.run(
        [sys.executable, "-c", code], tmp_path / "logs" / "a.log", [tmp_path / "record"], "a"
    )


def test_what_it_says_goes_to_the_log(tmp_path):
    assert ran(tmp_path, "import sys; print('out'); print('err', file=sys.stderr)") == ""
    assert sorted((tmp_path / "logs" / "a.log").read_text().split()) == ["err", "out"]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("print('sq: no such thing'); print('more'); exit(1)", "sq: no such thing"),
        (
            "print('[1/2] a'); print('failed: a: too hot'); print('table'); exit(1)",
            "failed: a: too hot",
        ),
        ("raise ValueError('odd')", "ValueError: odd"),
        ("exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "it was ended by signal 9"),
    ],
)
def test_why_it_failed(code, cause, tmp_path):
    assert ran(tmp_path, code) == cause


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(SqError, match="correct outputs="):
        ran(tmp_path, "")


@pytest.mark.parametrize(
    ("deaf", "code"),
    [("", -signal.SIGINT), ("signal.signal(signal.SIGINT, signal.SIG_IGN)", -signal.SIGTERM)],
)
def test_no_child_outlives_an_interrupt(deaf, code, tmp_path, monkeypatch):
    # What SIGINT does to a Python process is told by its handler's default here: the child dies of
    # it.
    monkeypatch.setattr(children, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(children, "PATIENCE_SECONDS", 0.5)
    started = []
    popen = children.subprocess.Popen
    monkeypatch.setattr(
        children.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[0]
    )
    begun = tmp_path / "begun"

    def interrupt():
        while not begun.exists():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    body = f"import signal, time, pathlib; {deaf or 'signal.signal(signal.SIGINT, signal.SIG_DFL)'}"
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, f"{body}; pathlib.Path({str(begun)!r}).touch(); time.sleep(60)")
    other.join()
    assert started[0].returncode == code
