"""States on disk: what they hold, whose they are, and what goes wrong with a folder."""

import copy
import os

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sq.storage import store
from sq.storage.resume import Location, Resume

ROOM = 2**30


class Values(nn.Module):
    def __init__(self):
        super().__init__()
        self.learned = nn.Parameter(torch.arange(3.0))
        self.register_buffer("given", torch.ones(1000))


def begun(place, steps=3):
    """Values that have been learned for some steps, and their state as it was written then."""
    values = Values()
    optimizer = torch.optim.Adam([values.learned], lr=0.1, fused=True)
    resume = Resume(values, place)
    for _ in range(steps):
        values.learned.grad = values.learned.detach() + 1
        optimizer.step()
    resume.spent.steps, resume.spent.cpu, resume.spent.seconds = steps, 2.5, {"layer": 1.5}
    resume.rows.append({"step": 0})
    return values, optimizer, resume


def test_state_is_taken_up_bit_by_bit_with_what_it_took(tmp_path):
    place = Location(tmp_path, "own", ROOM)
    values, optimizer, resume = begun(place)
    assert resume.before == 0
    assert resume.save(1, 3, [optimizer])
    other = Values()
    again = torch.optim.Adam([other.learned], lr=0.1, fused=True)
    found = Resume(other, place)
    assert (found.begin(0, []), found.begin(1, [again]), found.begin(2, [])) == (None, 3, 0)
    assert torch.equal(other.learned, values.learned)
    for name, own in optimizer.state[values.learned].items():
        assert torch.equal(again.state[other.learned][name], own)
    assert (found.spent, found.rows, found.before) == (resume.spent, resume.rows, 3)
    found.done()
    assert not place.file.exists()


def test_moments_are_as_their_optimizer_wants_them(tmp_path):
    # Fused Adam wants its number of steps in float32 on the device of what it learns: this is the
    # half a CPU can see.
    place = Location(tmp_path, "own", ROOM)
    values, optimizer, resume = begun(place)
    state = optimizer.state[values.learned]
    state["step"] = state["step"].double()
    resume.save(0, 3, [optimizer])
    other = Values()
    again = torch.optim.Adam([other.learned], lr=0.1, fused=True)
    Resume(other, place).begin(0, [again])
    assert again.state[other.learned]["step"].dtype == torch.float32
    other.learned.grad = torch.ones(3)
    again.step()


def test_only_what_is_learned_is_kept(tmp_path):
    place = Location(tmp_path, "own", ROOM)
    _, optimizer, resume = begun(place)
    resume.save(0, 3, [optimizer])
    with safe_open(place.file, "pt") as entry:
        assert {name for name in entry.keys() if name.startswith("value.")} == {"value.learned"}  # noqa: SIM118
    other = Values()
    other.given += 1
    Resume(other, place)
    assert torch.equal(other.given, torch.full((1000,), 2.0))


@pytest.mark.parametrize("error", [OSError("no space"), SafetensorError("I/O error: no space")])
def test_write_that_fails_costs_the_state_not_the_run(error, tmp_path, monkeypatch, capsys):
    _, optimizer, resume = begun(Location(tmp_path, "own", ROOM))

    def fail(*_):
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    assert not resume.save(0, 3, [optimizer])
    assert "the checkpoint after step 3 cannot be stored" in capsys.readouterr().err
    assert [*(tmp_path / store.UNFINISHED).iterdir()] == []


def test_larger_than_the_room_is_not_kept(tmp_path, capsys):
    _, optimizer, resume = begun(Location(tmp_path, "own", 100))
    assert not resume.save(0, 3, [optimizer])
    assert "cache_gib allows 100" in capsys.readouterr().err


def test_states_left_behind_make_room(tmp_path):
    place = Location(tmp_path, "own", ROOM)
    _, optimizer, resume = begun(place)
    resume.save(0, 3, [optimizer])
    size = place.file.stat().st_size
    os.utime(place.file, (1, 1))
    newer = Location(tmp_path, "newer", size + 10)
    begun(newer)[2].save(0, 3, [optimizer])
    assert [*newer.file.parent.iterdir()] == [newer.file]


@pytest.mark.parametrize("spoil", ["cut", "shape"])
def test_state_that_does_not_fit_is_left_and_nothing_is_half_loaded(spoil, tmp_path, capsys):
    place = Location(tmp_path, "own", ROOM)
    _, optimizer, resume = begun(place)
    resume.save(0, 3, [optimizer])
    other = Values()
    if spoil == "cut":
        place.file.write_bytes(place.file.read_bytes()[:50])
    else:
        other.learned = nn.Parameter(torch.zeros(4))
    before = copy.deepcopy(other.state_dict())
    found = Resume(other, place)
    assert "starting from the beginning" in capsys.readouterr().err
    assert (found.stage, found.before, found.begin(0, [])) == (-1, 0, 0)
    assert all(torch.equal(own, before[name]) for name, own in other.state_dict().items())
