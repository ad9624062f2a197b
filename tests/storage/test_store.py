"""Entries of any kind, and eviction; what statistics ask of them is in test_cache.py."""

import os

import pytest
import torch

from sq.storage import store
from sq.storage.store import NOWHERE, Kind, Store

DEVICE = torch.device("cpu")
LOSSES = Kind("losses", "measuring them", ["losses"])


def make(value=1.0, name="losses"):
    return lambda: ({name: torch.full((3,), value)}, {"seconds": 0.1, "words": "é"})


def never():
    pytest.fail("made again")


def test_tensors_and_note_come_back_as_they_were(tmp_path):
    kept = Store(str(tmp_path / "new" / "folder"), 1.0)
    tensors, note, there = kept.get_or_compute("a", LOSSES, make(), DEVICE)
    assert not there
    again, said, there = kept.get_or_compute("a", LOSSES, never, DEVICE)
    assert there
    assert said == note == {"seconds": 0.1, "words": "é"}
    assert [*again] == ["losses"]
    assert torch.equal(again["losses"], tensors["losses"])


def test_keys_tell_entries_apart(tmp_path):
    kept = Store(str(tmp_path), 1.0)
    kept.get_or_compute("a", LOSSES, make(1.0), DEVICE)
    kept.get_or_compute("b", LOSSES, make(2.0), DEVICE)
    assert [
        float(kept.get_or_compute(key, LOSSES, never, DEVICE)[0]["losses"][0]) for key in "ab"
    ] == [
        1.0,
        2.0,
    ]


def test_no_folder_keeps_nothing():
    assert not NOWHERE.get_or_compute("a", LOSSES, make(), DEVICE)[2]
    assert not NOWHERE.get_or_compute("a", LOSSES, make(), DEVICE)[2]


@pytest.mark.parametrize(
    "kind",
    [
        Kind("losses", "measuring them", ["others"]),
        Kind("losses", "measuring them", ["losses"], lambda note: False),
        Kind("losses", "measuring them", ["losses"], lambda note: note["absent"]),
    ],
    ids=["names", "note", "note of another form"],
)
def test_an_entry_that_is_not_of_its_kind_is_made_again(tmp_path, capsys, kind):
    kept = Store(str(tmp_path), 1.0)
    kept.get_or_compute("a", LOSSES, make(), DEVICE)
    found, _, there = kept.get_or_compute("a", kind, make(5.0, kind.names[0]), DEVICE)
    assert not there
    assert float(found[kind.names[0]][0]) == 5.0
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("losses: ")
    assert said.endswith("measuring them again")


def test_names_give_the_order(tmp_path):
    kind = Kind("pairs", "making them", ["z", "a"])
    kept = Store(str(tmp_path), 1.0)
    pair = {"z": torch.zeros(1), "a": torch.ones(1)}
    kept.get_or_compute("a", kind, lambda: (pair, {}), DEVICE)
    assert [*kept.get_or_compute("a", kind, never, DEVICE)[0]] == ["z", "a"]


def test_a_failure_to_make_leaves_nothing(tmp_path):
    def fail():
        raise ValueError("no")

    kept = Store(str(tmp_path), 1.0)
    with pytest.raises(ValueError, match="no"):
        kept.get_or_compute("a", LOSSES, fail, DEVICE)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not kept.get_or_compute("a", LOSSES, make(), DEVICE)[2]


def put(folder, name, age, size=100):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_bytes(b"x" * size)
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


def test_unfinished_states_count_and_the_oldest_give_way(tmp_path):
    unfinished = tmp_path / store.UNFINISHED
    old, state = put(unfinished, "a.safetensors", 50), put(unfinished, "b.safetensors", 10)
    entry, newest = put(tmp_path, "c.safetensors", 30), put(tmp_path, "d.safetensors", 99)
    killed = put(unfinished, ".e.1.part", 5)
    store.evict(tmp_path, newest, "entries", 300)
    assert [file.exists() for file in (old, entry, state, newest, killed)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    store.evict(tmp_path, state, "checkpoints", 100)
    assert [*tmp_path.rglob("*.safetensors")] == [state]
