"""A forked process of a test does what a new interpreter does."""

import os
import signal
import subprocess
import sys
import time

import processes
import pytest

SHOW = """
import json, os, sys
print(json.dumps([sys.argv, sys.path[:2], os.getcwd(), os.environ.get("COLOUR"), __name__]))
print("to stderr", file=sys.stderr)
sys.exit(int(os.environ.get("CODE", "0")))
"""
PIPES = {"capture_output": True, "text": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "show.py").write_text(SHOW)
    return folder


@pytest.mark.parametrize(
    "words", [["-c", SHOW, "a", "b=1"], ["-m", "show", "a"], ["show.py", "--x", "a b"]]
)
@pytest.mark.parametrize("code", ["0", "3"])
def test_output_and_end_are_those_of_a_new_interpreter(words, code, folder):
    env = {**os.environ, "COLOUR": "blue", "CODE": code, "PYTHONPATH": str(folder / "more")}
    command = [sys.executable, *words]
    here = processes.run(command, cwd=folder, env=env, **PIPES)
    there = subprocess.run(command, cwd=folder, env=env, **PIPES)
    assert (here.returncode, here.stdout, here.stderr) == (
        there.returncode,
        there.stdout,
        there.stderr,
    )
    assert here.returncode == int(code)


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("raise SystemExit('no such file')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import atexit; atexit.register(print, 'at exit'); print('first')", 0),
        ("import threading; threading.Timer(0.2, print, ['of a thread']).start()", 0),
        ("raise KeyboardInterrupt", -2),
    ],
)
def test_ends_of_all_kinds(code, wanted):
    here = processes.run([sys.executable, "-c", code], **PIPES)
    there = subprocess.run([sys.executable, "-c", code], **PIPES)
    assert here.returncode == there.returncode == wanted
    assert here.stdout == there.stdout
    assert here.stderr.splitlines()[-1:] == there.stderr.splitlines()[-1:]


def test_it_is_forked_and_imports_nothing_of_sq():
    code = "import os, sys; print(os.getppid(), 'torch' in sys.modules, 'sq' in sys.modules)"
    done = processes.run([sys.executable, "-c", code], **PIPES)
    assert done.stdout.split() == [str(processes._server().process.pid), "True", "False"]


def test_variables_that_libraries_read_start_an_interpreter():
    env = {**os.environ, "OMP_NUM_THREADS": "3"}
    code = "import sys; print('torch' in sys.modules)"
    assert processes.run([sys.executable, "-c", code], env=env, **PIPES).stdout == "False\n"
    assert processes.run([sys.executable, "-S", "-c", code], **PIPES).stdout == "False\n"
    assert processes.run(["echo", "x"], **PIPES).stdout == "x\n"


def test_a_process_is_waited_for_killed_and_timed_out():
    with processes.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert process.poll() == -signal.SIGKILL


def test_an_interrupt_of_its_group_reaches_it():
    code = """
import os, time
print(os.getpgid(0) == os.getpid(), flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
    options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with processes.Popen([sys.executable, "-c", code], **options) as process:
        assert process.stdout.readline() == "True\n"
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate()[0] == "interrupted\n"
    assert process.returncode == 0


def test_streams_go_where_they_are_sent(tmp_path):
    code = "import sys; print(sys.stdin.read()); print('e', file=sys.stderr)"
    with (tmp_path / "out").open("w") as out:
        done = processes.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    assert done.returncode == 0
    assert sorted((tmp_path / "out").read_text().split()) == ["e"]


def test_failure_is_raised_where_it_is_asked_for():
    with pytest.raises(subprocess.CalledProcessError):
        processes.run([sys.executable, "-c", "raise SystemExit(2)"], check=True)


def test_many_at_a_time():
    code = "import sys, time; time.sleep(0.2); sys.exit(int(sys.argv[1]))"
    every = [processes.Popen([sys.executable, "-c", code, str(n)]) for n in range(8)]
    assert [process.wait() for process in every] == list(range(8))
