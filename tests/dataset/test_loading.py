"""Reading images: order, batches, worker processes, and images that cannot be read."""

import multiprocessing
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from sq.dataset import loading as reading
from sq.errors import SqError
from sq.types.images import Images, Objects


@dataclass(frozen=True)
class Levels:
    """Grey images 2x2 whose level is their place; `broken` ones raise."""

    broken: tuple[int, ...] = ()

    def __call__(self, place):
        if place in self.broken:
            raise OSError(f"truncated\nin line {place}")
        return Image.new("L", (2, 2), place)


def prepare(image, resized):
    return torch.from_numpy(np.asarray(image, np.float32)[None] + 1000 * resized)


def refuse(image, resized):
    raise SqError("the image is 2x2 L, the network takes 8x8: choose another dataset")


def split(count=10, **more):
    return Images(
        [f"i/{n}" for n in range(count)], torch.arange(count), **{"read": Levels(), **more}
    )


@pytest.mark.parametrize("workers", [0, 2, None])
@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_images_come_in_the_order_asked_for(workers, size):
    chosen = [7, 1, 3, 9, 0, 2]
    parts = list(reading.batches(split(workers=workers), chosen, prepare, size, "x"))
    assert [len(p.x) for p in parts] == [len(chosen[i : i + size]) for i in range(0, 6, size)]
    assert torch.cat([p.x for p in parts])[:, 0, 0, 0].tolist() == chosen
    assert torch.cat([p.y for p in parts]).tolist() == chosen
    assert [name for p in parts for name in p.ids] == [f"i/{n}" for n in chosen]
    assert {p.x.dtype for p in parts} == {torch.float32}


def test_one_batch_of_all():
    batch = reading.load(split(100), range(99, -1, -1), prepare, "x")
    assert batch.x[:, 0, 0, 0].tolist() == batch.y.tolist() == list(range(99, -1, -1))


def test_transform_is_told_what_is_resized():
    assert reading.load(split(resized=True), [4], prepare, "x").x.unique().tolist() == [1004]


def test_objects_stay_with_their_images():
    y = [
        Objects(torch.zeros(n, 4), torch.zeros(n).long(), torch.zeros(n).bool(), (2, 2))
        for n in range(4)
    ]
    batch = reading.load(Images([*"abcd"], y, Levels()), [3, 0, 2], prepare, "x")
    assert [len(o.classes) for o in batch.y] == [3, 0, 2]
    assert batch.ids == ["d", "a", "c"]


def test_images_of_workers_come_through_a_pipe_and_not_through_shared_memory():
    """Containers often have little of that."""
    (part,) = reading.batches(split(workers=2), [0, 1], prepare, 2, "x")
    assert not part.x.is_shared()
    part.x[0] = 0  # and can be changed


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_named_and_counted_in_one_line(workers):
    bad = split(read=Levels(broken=(8, 1, 5, 2)), workers=workers)
    with pytest.raises(SqError) as caught:
        reading.load(bad, range(10), prepare, "x")
    text = str(caught.value)
    assert text.startswith(
        "4 of 10 images cannot be read (i/1: OSError: truncated in line 1; i/2: "
    )
    assert "i/8" not in text
    assert text.endswith("or leave them out by dataset.skip_corrupt=true")
    assert "\n" not in text


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_can_be_left_out(workers):
    bad = split(read=Levels(broken=(8, 1)), workers=workers, skip_corrupt=True)
    batch = reading.load(bad, range(10), prepare, "x")
    assert batch.y.tolist() == batch.x[:, 0, 0, 0].tolist() == [0, 2, 3, 4, 5, 6, 7, 9]


def test_part_without_a_readable_image_is_no_batch():
    bad = split(6, read=Levels(broken=(2, 3)), skip_corrupt=True)
    assert [p.y.tolist() for p in reading.batches(bad, range(6), prepare, 2, "x")] == [
        [0, 1],
        [4, 5],
    ]


def test_nothing_left_is_an_error_even_so():
    with pytest.raises(SqError, match="2 of 2 images cannot be read"):
        reading.load(
            split(2, read=Levels(broken=(0, 1)), skip_corrupt=True), range(2), prepare, "x"
        )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [True, False])
def test_image_the_network_does_not_take_is_not_a_corrupt_one(workers, skip):
    with pytest.raises(SqError) as caught:
        reading.load(split(workers=workers, skip_corrupt=skip), range(10), refuse, "x")
    assert (
        str(caught.value)
        == "i/0: the image is 2x2 L, the network takes 8x8: choose another dataset"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_drawn_from_the_global_generator(workers):
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    reading.load(split(40, workers=workers), range(40), prepare, "x")
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("workers", [0, 2])
def test_who_stops_early_leaves_no_process_behind(workers):
    parts = reading.batches(split(workers=workers), range(10), prepare, 1, "x")
    assert next(parts).ids == ["i/0"]
    parts.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_has_an_image_for_each_id_where_some_are_corrupt(workers):
    bad = split(9, read=Levels(broken=(0, 4, 5, 8)), workers=workers, skip_corrupt=True)
    for part in reading.batches(bad, [8, 7, 0, 6, 5, 4, 3, 2, 1], prepare, 4, "x"):
        assert (
            part.x[:, 0, 0, 0].tolist() == part.y.tolist() == [int(name[2:]) for name in part.ids]
        )
        assert len(part.ids) > 0
