"""What a run sets in its process does not last into the next one."""

import pytest
import torch
from cli_helpers import as_it_was

from sq import ready


@pytest.fixture(autouse=True)
def _restored():
    with as_it_was():
        yield


def threads(wanted):
    ready.prepare({"device": "cpu", "threads": wanted, "seed": 0})
    return torch.get_num_threads()


def test_threads_of_one_run_are_not_those_of_the_next(monkeypatch):
    monkeypatch.setattr(ready, "_threads", 0)
    torch.set_num_threads(2)
    assert [threads(None), threads(3), threads(None), threads(1), threads(None)] == [2, 3, 2, 1, 2]
