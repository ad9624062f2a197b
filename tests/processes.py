"""Python processes for tests, forked from one that has imported PyTorch already.

A short run takes five seconds of CPU, of which half is importing libraries. `Popen` and `run` are
those of `subprocess`, for commands that begin with `sys.executable`: the process is a fork of a
server that has imported the libraries of `PRELOADED`, and nothing of sq. What it does from there on
is what a new interpreter does: the script, module or code it is given becomes ``__main__``, with the
environment, working directory, standard streams and search path of the command.

Where that makes a difference, a new interpreter is started: with options of Python, and with
environment variables that libraries read as they are imported. A test of what is imported, or of
how much memory that takes, uses `subprocess` itself.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import importlib
import inspect
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any

PRELOADED = (
    "hydra",
    "hydra._internal.utils",
    "hydra.core.override_parser.overrides_parser",
    "numpy",
    "omegaconf",
    "pandas",
    "PIL.Image",
    "psutil",
    "pydantic",
    "safetensors.torch",
    "scipy.stats",
    "tabulate",
    "torch",
    "yaml",
)
# Libraries read these as they are imported, or Python as it starts.
READ_AT_IMPORT = ("ATEN_", "KMP_", "LD_", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_")
READ_AT_START = ("PYTHON",)
HANDLED = ("PYTHONPATH", "PYTHONUNBUFFERED")
LONGEST = 1 << 20  # bytes of a request: its environment and command line


def run(words: list[str], **options: Any) -> subprocess.CompletedProcess:
    """Do what `subprocess.run` does, for a command of Python."""
    check, timeout = options.pop("check", False), options.pop("timeout", None)
    if options.pop("capture_output", False):
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with Popen(words, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(words, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


class Popen(subprocess.Popen):
    """`subprocess.Popen` for a command of Python, forked where that makes no difference."""

    _status: int | None = None  # a pipe that the exit status comes through, as `os.waitpid` has it

    def _execute_child(self, *arguments: Any) -> None:
        named = inspect.signature(super()._execute_child).bind(*arguments).arguments
        words = [os.fspath(word) for word in named["args"]]
        env = dict(os.environ if named["env"] is None else named["env"])
        if not _can_be_forked(words, env):
            super()._execute_child(*arguments)
            return
        request = {
            "words": words[1:],
            "env": {str(name): str(value) for name, value in env.items()},
            "cwd": os.fspath(named["cwd"] or Path.cwd()),
            "new_session": bool(named["start_new_session"]),
        }
        given = (named["p2cread"], named["c2pwrite"], named["errwrite"])
        streams = [standard if fd == -1 else fd for standard, fd in enumerate(given)]
        self._status, there = os.pipe()
        try:
            self.pid = _server().start(request, [*streams, there])
        finally:
            os.close(there)
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(named[end] for end in pipes))
        self._child_created = True

    def _internal_poll(self, *arguments: Any, **named: Any) -> int | None:
        if self._status is None:
            return super()._internal_poll(*arguments, **named)
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid == self.pid:
                self._handle_exitstatus(status)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._status is None:
            return super()._try_wait(wait_flags)
        if wait_flags == os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        text = os.read(self._status, 32)
        os.close(self._status)
        self._status = -1
        return self.pid, int(text) if text else signal.SIGKILL  # nothing: the server was killed


def _can_be_forked(words: list[str], env: dict[str, str]) -> bool:
    """Return whether a fork does what a new interpreter does."""
    if words[0] != sys.executable or not hasattr(os, "fork"):
        return False
    if words[1].startswith("-") and words[1] not in ("-c", "-m"):
        return False
    changed = {n for n in {*env, *os.environ} if env.get(n) != os.environ.get(n)} - {*HANDLED}
    return not any(name.startswith(READ_AT_IMPORT + READ_AT_START) for name in changed)


class _Server:
    """The process that others are forked from; it ends with this one."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.line, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
        env = {name: value for name, value in os.environ.items() if name not in HANDLED}
        command = [sys.executable, __file__, str(theirs.fileno())]
        self.process = subprocess.Popen(
            command,
            env=env,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt of the tests is not meant for it
        )
        theirs.close()

    def start(self, request: dict[str, Any], fds: list[int]) -> int:
        """Return the process id of a fork that does what `request` says, with the descriptors `fds`."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self.line.sendmsg([json.dumps(request).encode()], ancillary)
        return int(self.line.recv(32))

    def end(self) -> None:
        """Let the process end, and wait for that."""
        self.line.close()
        self.process.wait()


_servers: list[_Server] = []


def _server() -> _Server:
    if not _servers:
        _servers.append(_Server())
        atexit.register(_servers[0].end)
    return _servers[0]


# What follows is done in the server, and in the processes forked from it.


def _serve(line: socket.socket) -> None:
    """Fork a process for each request on `line`, and report how each ends, until nobody is there."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    for name in PRELOADED:
        # Not all are installed everywhere.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    ended, wake = os.pipe()
    for fd in (ended, wake):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pipes: dict[int, int] = {}  # by process id
    while True:
        ready, _, _ = select.select([line, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _report(pipes)
        if line not in ready:
            continue
        message, fds, _, _ = socket.recv_fds(line, LONGEST, 4)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for fd in (ended, wake, line.fileno(), *pipes.values(), fds[3]):
                os.close(fd)
            _become(json.loads(message), fds[:3])
        for fd in fds[:3]:
            os.close(fd)
        pipes[pid] = fds[3]
        line.send(str(pid).encode())


def _report(pipes: dict[int, int]) -> None:
    """Write the exit status of every process that has ended to its pipe."""
    while pipes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        fd = pipes.pop(pid)
        with contextlib.suppress(OSError):  # nobody asks for it any more
            os.write(fd, str(status).encode())
        os.close(fd)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Be the process that was asked for; never returns."""
    for number, default in ((signal.SIGCHLD, signal.SIG_DFL), (signal.SIGPIPE, signal.SIG_IGN)):
        signal.signal(number, default)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # None of them is one of the first three, which the server has open.
    for standard, fd in enumerate(streams):
        os.dup2(fd, standard)
        os.close(fd)
    lines = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(write_through=lines)
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", closefd=False, errors="backslashreplace", buffering=1
    )
    code = 1
    try:
        _execute(request["words"], request["cwd"])
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"Exception ignored in: {sys.stdout!r}\n{error!r}\n")
        code = 120
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    sys.stderr.write(f"{end.code}\n")
    return 1


def _execute(words: list[str], folder: str) -> None:
    """Do what Python does with the command line `words`, after its name, in `folder`."""
    outside = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:0] = outside
    importlib.invalidate_caches()
    if words[0] == "-c":
        sys.argv[:] = ["-c", *words[2:]]
        sys.path.insert(0, "")
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    elif words[0] == "-m":
        sys.argv[:] = ["-m", *words[2:]]
        sys.path.insert(0, folder)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
