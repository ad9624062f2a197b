import multiprocessing
import os
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from sq import cache, layers, statistics
from sq.types import Model, Split

SETTINGS = {"batch_size": 4, "positions": 1.0, "seed": 0}


def model(seed=0, stride=1):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, stride=stride), nn.Conv2d(3, 2, 1), nn.Flatten()).eval()
    return Model(net, layers.find(net)[0], (2, 6, 6), "")


def first_layer(whole):
    return replace(whole, layers=whole.layers[:1])


def buffered(whole):
    whole.net.register_buffer("scale", torch.ones(1), persistent=False)
    return whole


def images(seed=0):
    x = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    return Split(x, torch.zeros(8).long(), [f"image/{i}" for i in range(8)])


def collect(folder, net=None, batch=None, limit_gib=1.0, **settings):
    net, batch = net or model(), batch or images()
    return cache.collect(
        net, batch, folder=folder and str(folder), limit_gib=limit_gib, **{"origin": {}} | SETTINGS | settings
    )


def entries(folder):
    return sorted(folder.glob("*.safetensors"))


def same(a, b):
    return a.images == b.images and a.layers.keys() == b.layers.keys() and a.digest() == b.digest()


def test_read_back_to_the_last_bit(tmp_path, monkeypatch):
    first, cached = collect(tmp_path)
    assert not cached
    assert same(first, statistics.collect(model(), images(), **SETTINGS))
    monkeypatch.setattr(statistics, "collect", lambda *_, **__: pytest.fail("collected"))
    again, cached = collect(tmp_path)
    assert cached
    assert same(first, again)
    assert {n: s.positions for n, s in again.layers.items()} == {"0": 8 * 16, "1": 8 * 16}
    assert all(s.hessian.dtype == torch.float64 for s in again.layers.values())


def changed_code(monkeypatch):
    source = cache.inspect.getsource
    monkeypatch.setattr(cache.inspect, "getsource", lambda m: source(m) + "#" * (m is statistics))


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
        changed_code,
    ],
    ids=str,
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


def foreign(file):
    from safetensors.torch import save_file

    save_file({"0": torch.zeros(1)}, file)


@pytest.mark.parametrize("damage", [cut, flip, empty, foreign])
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
    room = 3.5 * size / cache.GIB
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
    collect(tmp_path, batch=images(5), limit_gib=1.5 * size / cache.GIB)
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
    assert same(found, statistics.collect(model(), images(), **SETTINGS))
    assert "no lock in" in (said := capsys.readouterr().err)
    assert "the run goes on without" in " ".join(said.split())


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, capsys):
    import safetensors.torch

    def fill(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fill)
    found, _ = collect(tmp_path)
    assert same(found, statistics.collect(model(), images(), **SETTINGS))
    assert "No space left on device" in " ".join(capsys.readouterr().err.split())
    assert [f.suffix for f in tmp_path.iterdir()] in ([".lock"], [])


def slowly(folder, out):
    real = statistics.collect

    def wait(*arguments, **settings):
        time.sleep(1.0)
        return real(*arguments, **settings)

    statistics.collect = wait
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
