"""Entries and unfinished states share the room there is."""

import os

from sq.storage import eviction


def put(folder, name, age, size=100):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_bytes(b"x" * size)
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


def test_unfinished_states_count_and_the_oldest_give_way(tmp_path):
    unfinished = tmp_path / eviction.UNFINISHED
    old, state = put(unfinished, "a.safetensors", 50), put(unfinished, "b.safetensors", 10)
    entry, newest = put(tmp_path, "c.safetensors", 30), put(tmp_path, "d.safetensors", 99)
    killed = put(unfinished, ".e.1.part", 5)
    eviction.make(tmp_path, newest, "entries", 300)
    assert [file.exists() for file in (old, entry, state, newest, killed)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    eviction.make(tmp_path, state, "unfinished states", 100)
    assert [*tmp_path.rglob("*.safetensors")] == [state]
