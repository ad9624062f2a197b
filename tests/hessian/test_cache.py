import importlib
import inspect
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_helpers import ROOT
from torch import nn

from sq.hessian import cache, gram, layer_statistics
from sq.network import geometry
from sq.runtime import batching
from sq.storage.store import GIB, Kind, Store
from sq.types.images import Batch
from sq.types.problem import Model

DEVICE = torch.device("cpu")
SETTINGS = {"batch_size": 4, "positions": 1.0, "seed": 0}


def model(seed=0, stride=1):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, stride=stride), nn.Conv2d(3, 2, 1), nn.Flatten()).eval()
    return Model(net, geometry.find(net)[0], (2, 6, 6), "", None)


def first_layer(whole):
    return replace(whole, layers=whole.layers[:1])


def buffered(whole):
    whole.net.register_buffer("scale", torch.ones(1), persistent=False)
    return whole


def images(seed=0):
    x = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    return Batch(x, torch.zeros(8).long(), [f"image/{i}" for i in range(8)])


def collect(folder, net=None, batch=None, limit_gib=1.0, **settings):
    net, batch = net or model(), batch or images()
    kept = Store(folder and str(folder), limit_gib, settings.pop("origin", {}))
    return cache.collect(net, batch, kept, **SETTINGS | settings)


def entries(folder):
    return sorted(folder.glob("*.safetensors"))


def same(a, b):
    return a.images == b.images and a.layers.keys() == b.layers.keys() and a.digest() == b.digest()


def test_read_back_to_the_last_bit(tmp_path, monkeypatch):
    first, cached = collect(tmp_path)
    assert not cached
    assert same(first, layer_statistics.collect(model(), images(), **SETTINGS))
    monkeypatch.setattr(layer_statistics, "collect", lambda *_, **__: pytest.fail("collected"))
    again, cached = collect(tmp_path)
    assert cached
    assert same(first, again)
    assert {n: s.positions for n, s in again.layers.items()} == {"0": 8 * 16, "1": 8 * 16}
    assert all(s.hessian.dtype == torch.float64 for s in again.layers.values())


def training(whole):
    whole.net.train()
    return whole


def changed_code(monkeypatch):
    monkeypatch.setattr(cache, "CODE", [*cache.CODE[:-1], cache.CODE[-1] + "#"])


@pytest.mark.parametrize(
    "change",
    [
        {"net": model(seed=1)},
        {"net": model(stride=2)},
        {"net": first_layer(model())},
        {"batch": images(seed=1)},
        {"batch_size": 3},
        {"positions": 0.5},
        {"seed": 1, "positions": 0.5},
        {"origin": {"depth": 20}},
        {"net": buffered(model())},
        {"net": training(model())},
        changed_code,
    ],
    # Named: an address in a name would differ between the processes that share the tests out.
    ids=[
        "weights",
        "stride",
        "layers",
        "images",
        "batch_size",
        "positions",
        "seed",
        "origin",
        "buffers",
        "training",
        "code",
    ],
)
def test_whatever_shapes_statistics_makes_another_entry(tmp_path, monkeypatch, change):
    collect(tmp_path)
    if callable(change):
        change(monkeypatch)
        change = {}
    assert not collect(tmp_path, **change)[1]
    assert len(entries(tmp_path)) == 2
    assert collect(tmp_path, **change)[1]


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def empty(file):
    file.write_bytes(b"")


def foreign(file, metadata=None):
    from safetensors.torch import save_file

    save_file({"0": torch.zeros(1)}, file, metadata)


def of_another_form(file):
    foreign(file, {"sq": json.dumps({"positions": [1], "images": 8})})


@pytest.mark.parametrize("damage", [cut, flip, empty, foreign, of_another_form])
def test_a_damaged_entry_is_said_and_replaced(tmp_path, capsys, damage):
    first, _ = collect(tmp_path)
    damage(entries(tmp_path)[0])
    found, cached = collect(tmp_path)
    assert not cached
    assert same(found, first)
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be used" in said
    assert said.endswith("collecting them again")
    assert collect(tmp_path)[1]


def test_least_recently_used_entries_make_room(tmp_path):
    collect(tmp_path, batch=images(1))
    size = entries(tmp_path)[0].stat().st_size
    room = 3.5 * size / GIB
    (a,) = entries(tmp_path)
    collect(tmp_path, batch=images(2), limit_gib=room)
    collect(tmp_path, batch=images(3), limit_gib=room)
    for age, file in enumerate([a, *(e for e in entries(tmp_path) if e != a)]):
        os.utime(file, (age, age))  # a is the oldest ...
    b = next(e for e in entries(tmp_path) if e.stat().st_mtime == 1)
    assert collect(tmp_path, batch=images(1), limit_gib=room)[1]  # ... but was used last
    collect(tmp_path, batch=images(4), limit_gib=room)
    assert len(entries(tmp_path)) == 3
    assert a in entries(tmp_path)
    assert b not in entries(tmp_path)
    collect(tmp_path, batch=images(5), limit_gib=1.5 * size / GIB)
    assert len(entries(tmp_path)) == 1
    assert collect(tmp_path, batch=images(5))[1]


def test_an_entry_larger_than_all_room_is_not_kept(tmp_path):
    first, _ = collect(tmp_path)
    assert not collect(tmp_path, batch=images(1), limit_gib=1e-6)[1]
    assert len(entries(tmp_path)) == 1
    assert same(collect(tmp_path)[0], first)


def test_null_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not collect(None)[1]
    assert not collect(None)[1]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    found, cached = collect(tmp_path / "file" / "folder")
    assert not cached
    assert same(found, layer_statistics.collect(model(), images(), **SETTINGS))
    assert "no lock in" in (said := capsys.readouterr().err)
    assert "the run goes on without" in " ".join(said.split())


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, capsys):
    import safetensors.torch

    def fill(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fill)
    found, _ = collect(tmp_path)
    assert same(found, layer_statistics.collect(model(), images(), **SETTINGS))
    assert "No space left on device" in " ".join(capsys.readouterr().err.split())
    assert [f.suffix for f in tmp_path.iterdir()] in ([".lock"], [])


def slowly(folder, out):
    real = layer_statistics.collect

    def wait(*arguments, **settings):
        time.sleep(1.0)
        return real(*arguments, **settings)

    layer_statistics.collect = wait
    torch.set_num_threads(1)
    found, cached = collect(folder)
    out.put((found.digest(), cached))


def test_of_two_runs_at_once_one_collects(tmp_path):
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    runs = [context.Process(target=slowly, args=(tmp_path, out)) for _ in range(2)]
    for run in runs:
        run.start()
    results = [out.get(timeout=120) for _ in runs]
    for run in runs:
        run.join()
    assert sorted(cached for _, cached in results) == [False, True]
    assert results[0][0] == results[1][0]
    assert len(entries(tmp_path)) == 1
    assert not list(tmp_path.glob(".*.part"))


def test_the_seed_matters_only_where_something_is_drawn(tmp_path):
    collect(tmp_path)
    assert collect(tmp_path, seed=1)[1]


def test_files_of_killed_runs_are_removed(tmp_path):
    old, new = tmp_path / ".old.1.part", tmp_path / ".new.2.part"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    collect(tmp_path)
    assert not old.exists()
    assert new.exists()


NET = """
from torch import nn


class Own(nn.Sequential):
    def forward(self, x):
        return super().forward({})
"""


def test_code_is_what_runs_not_what_an_editor_saved_meanwhile(tmp_path, monkeypatch):
    def key():
        net = imported.Own(*model().net).eval()
        return cache.key(
            Model(net, geometry.find(net)[0], (2, 6, 6), "", None), images(), SETTINGS, {}
        )

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "own_net_of_a_test.py"
    file.write_text(NET.format("x"))
    imported = importlib.import_module(file.stem)
    before = key()
    file.write_text(NET.format("2 * x"))
    assert key() == before  # this process still runs the old code
    imported = importlib.reload(imported)
    assert key() != before


def test_own_code_is_read_when_it_is_imported(monkeypatch):
    before = cache.key(model(), images(), SETTINGS, {})
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda m: source(m) + "#")
    assert cache.key(model(), images(), SETTINGS, {}) == before
    assert {
        Path(m.__file__).read_text() for m in (layer_statistics, batching, gram, geometry)
    } <= set(cache.CODE)


def test_an_entry_in_a_folder_that_may_only_be_read_is_used(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    first, _ = collect(tmp_path)
    monkeypatch.setattr(os, "utime", refuse)
    again, cached = collect(tmp_path)
    assert cached
    assert same(first, again)
    assert capsys.readouterr().err == ""


def test_the_bound_holds_to_the_byte(tmp_path):
    collect(tmp_path)
    (file,) = entries(tmp_path)
    size = file.stat().st_size
    file.unlink()
    collect(tmp_path, limit_gib=(size - 1) / GIB)
    assert [f.suffix for f in tmp_path.iterdir()] in ([".lock"], [])
    collect(tmp_path, limit_gib=size / GIB)
    assert [f.stat().st_size for f in entries(tmp_path)] == [size]


def test_an_entry_that_another_run_removes_meanwhile_is_no_failure(tmp_path, monkeypatch, capsys):
    collect(tmp_path)
    (gone,) = entries(tmp_path)
    stat = Path.stat

    def vanish(file, **how):
        if file == gone:
            raise FileNotFoundError(2, "No such file or directory")
        return stat(file, **how)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", vanish)
        collect(tmp_path, batch=images(1))
    assert capsys.readouterr().err == ""
    assert collect(tmp_path, batch=images(1))[1]


def test_an_entry_that_may_not_be_removed_is_said_and_the_new_one_kept(
    tmp_path, monkeypatch, capsys
):
    def refuse(file, **_):
        if file.suffix == ".safetensors":
            raise PermissionError(1, "Operation not permitted")

    collect(tmp_path)
    size = entries(tmp_path)[0].stat().st_size
    monkeypatch.setattr(Path, "unlink", refuse)
    collect(tmp_path, batch=images(1), limit_gib=1.5 * size / GIB)
    assert "cannot make room" in " ".join(capsys.readouterr().err.split())
    assert collect(tmp_path, batch=images(1))[1]


def alone(code, *words):
    """Run `code` in a process of its own and return what it printed."""
    head = "import os, sys, torch, test_cache as t; from pathlib import Path\n"
    head += "from sq.hessian import cache; from sq.network import geometry as layers\n"
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", head + code, *map(str, words)],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.split()


def test_statistics_outlive_their_file(tmp_path):
    first, _ = collect(tmp_path)
    # A tensor still mapped to the file would end this process with a bus error.
    code = (
        "folder = Path(sys.argv[1]); torch.set_num_threads(int(sys.argv[2])); found, cached = t.collect(folder)\n"
        "os.truncate(t.entries(folder)[0], 0); print(cached, found.digest())"
    )
    assert alone(code, tmp_path, torch.get_num_threads()) == ["True", first.digest()]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is looked up in /proc")
def test_reading_takes_the_memory_of_one_copy(tmp_path):
    # 8 MiB each
    kept = {str(i): torch.full((1, 1024, 1024), i, dtype=torch.float64) for i in range(16)}
    Store(str(tmp_path), 1.0).get_or_compute(
        "entry", Kind("squares", "making them", [*kept]), lambda: (kept, {}), DEVICE
    )
    # VmHWM is the peak of this process alone; that of getrusage begins with its parent's.
    code = (
        "import safetensors.torch; from sq.storage.store import Kind, Store\n"
        "def memory(what): return int(Path('/proc/self/status').read_text().split(what)[1].split()[0])\n"
        "kind = Kind('squares', 'making them', [str(i) for i in range(16)])\n"
        "before = memory('VmRSS:')\n"
        "found, _, there = Store(sys.argv[1], 1.0).get_or_compute('entry', kind, None, t.DEVICE)\n"
        "assert there and len(found) == 16\n"
        "print(memory('VmHWM:') - before)"
    )
    # KiB: all layers once, and one at work
    assert 16 * 8 * 1024 < int(alone(code, tmp_path)[0]) < 1.4 * 16 * 8 * 1024


def test_an_entry_removed_while_it_is_opened_is_collected_again(tmp_path, monkeypatch, capsys):
    import safetensors

    def late(file, *arguments):
        file.unlink(missing_ok=True)
        # torch's own, once the library has read the header
        raise RuntimeError("unable to open file")

    first, _ = collect(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(safetensors, "safe_open", late)
        found, cached = collect(tmp_path)
    assert not cached
    assert same(found, first)
    assert capsys.readouterr().err == ""  # nothing was damaged
    assert collect(tmp_path)[1]
