"""Entries of any kind; what statistics ask of them is in test_cache.py."""

import pytest
import torch

from sq.storage.store import NOWHERE, Kind, Store

DEVICE = torch.device("cpu")
LOSSES = Kind("losses", "measuring them", ["losses"])


def make(value=1.0, name="losses"):
    return lambda: ({name: torch.full((3,), value)}, {"seconds": 0.1, "words": "é"})


def never():
    pytest.fail("made again")


def test_tensors_and_note_come_back_as_they_were(tmp_path):
    kept = Store(str(tmp_path / "new" / "folder"), 1.0)
    tensors, note, there = kept.kept("a", LOSSES, make(), DEVICE)
    assert not there
    again, said, there = kept.kept("a", LOSSES, never, DEVICE)
    assert there
    assert said == note == {"seconds": 0.1, "words": "é"}
    assert [*again] == ["losses"]
    assert torch.equal(again["losses"], tensors["losses"])


def test_keys_tell_entries_apart(tmp_path):
    kept = Store(str(tmp_path), 1.0)
    kept.kept("a", LOSSES, make(1.0), DEVICE)
    kept.kept("b", LOSSES, make(2.0), DEVICE)
    assert [float(kept.kept(key, LOSSES, never, DEVICE)[0]["losses"][0]) for key in "ab"] == [
        1.0,
        2.0,
    ]


def test_no_folder_keeps_nothing():
    assert not NOWHERE.kept("a", LOSSES, make(), DEVICE)[2]
    assert not NOWHERE.kept("a", LOSSES, make(), DEVICE)[2]


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
    kept.kept("a", LOSSES, make(), DEVICE)
    found, _, there = kept.kept("a", kind, make(5.0, kind.names[0]), DEVICE)
    assert not there
    assert float(found[kind.names[0]][0]) == 5.0
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("losses: ")
    assert said.endswith("measuring them again")


def test_names_give_the_order(tmp_path):
    kind = Kind("pairs", "making them", ["z", "a"])
    kept = Store(str(tmp_path), 1.0)
    pair = {"z": torch.zeros(1), "a": torch.ones(1)}
    kept.kept("a", kind, lambda: (pair, {}), DEVICE)
    assert [*kept.kept("a", kind, never, DEVICE)[0]] == ["z", "a"]


def test_a_failure_to_make_leaves_nothing(tmp_path):
    def fail():
        raise ValueError("no")

    kept = Store(str(tmp_path), 1.0)
    with pytest.raises(ValueError, match="no"):
        kept.kept("a", LOSSES, fail, DEVICE)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not kept.kept("a", LOSSES, make(), DEVICE)[2]
