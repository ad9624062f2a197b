import torch

from sq.kept import Kept

X = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def pair(limit, seen=None):
    def make(index):
        if seen is not None:
            seen.append(index.tolist())
        return [2 * X[index], X[index].flatten(1).sum(1, keepdim=True)]

    return Kept(make, 10, 4, limit)


def test_kept_and_streamed_give_the_same(capsys):
    kept, streamed = pair(1.0), pair(1e-9)
    index = torch.tensor([7, 0, 3])
    for one, other in zip(kept(index), streamed(index), strict=True):
        assert torch.equal(one, other)
    assert (kept.streamed, streamed.streamed) == (False, True)
    assert "made anew each step" in capsys.readouterr().err


def test_each_image_is_seen_once_where_memory_allows():
    seen = []
    kept = pair(1.0, seen)
    assert seen == []  # nothing before it is wanted
    kept(torch.tensor([1]))
    kept(torch.tensor([2, 9]))
    assert [number for part in seen for number in part] == list(range(10))


def test_channels_are_last_in_memory_after_picking():
    assert pair(1.0)(torch.tensor([3, 4]))[0].is_contiguous(memory_format=torch.channels_last)
