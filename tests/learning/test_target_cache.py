import pytest
import torch
from torch import nn

from sq.errors import SqError
from sq.learning.target_cache import TargetCache, check_rows

X = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def pair(limit, seen=None):
    def make(index):
        if seen is not None:
            seen.append(index.tolist())
        # a sum may differ with the batch
        return [2 * X[index], X[index].flatten(1).amax(1, keepdim=True)]

    return TargetCache(make, 10, 4, limit)


def test_kept_and_streamed_give_the_same(capsys):
    kept, streamed = pair(1.0), pair(1e-9)
    index = torch.tensor([7, 0, 3])
    for one, other in zip(kept(index), streamed(index), strict=True):
        assert torch.equal(one, other)
    assert (kept.streamed, streamed.streamed) == (False, True)
    assert "computed again in each step" in capsys.readouterr().err


def test_each_image_is_seen_once_where_memory_allows():
    seen = []
    kept = pair(1.0, seen)
    assert seen == []  # nothing before it is wanted
    kept(torch.tensor([1]))
    kept(torch.tensor([2, 9]))
    assert [number for part in seen for number in part] == list(range(10))


def test_channels_are_last_in_memory_after_picking():
    assert pair(1.0)(torch.tensor([3, 4]))[0].is_contiguous(memory_format=torch.channels_last)


def test_parts_of_images_go_with_their_image():
    def make(index):
        return [X[index].flatten(2).movedim(-1, 1).flatten(0, 1)]  # (16 B, 3)

    kept, streamed = TargetCache(make, 10, 4, 1.0), TargetCache(make, 10, 4, 1e-9)
    index = torch.tensor([7, 0, 3])
    assert kept(index)[0].shape == (48, 3)
    assert torch.equal(kept(index)[0], streamed(index)[0])


class Swaps(nn.Module):
    """As many rows for two images as twice for one, in another order."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x.flatten(1, 2).movedim(1, 0).flatten(0, 1))


def test_rows_in_another_order_are_refused():
    with pytest.raises(
        SqError, match=r"layer layer returns \(12, 2\) for one image and \(24, 2\) for two"
    ):
        check_rows(Swaps(), ["layer"], X[:2])
    check_rows(Swaps(), ["layer"], X[:1])  # of one alone nothing can be told
