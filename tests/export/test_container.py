"""Files of tensors: what was written comes back, and whatever else is in a file is refused in one line."""

import errno
import json
import os
import random
import resource
import struct

import pytest
import torch
from safetensors.torch import save

from sq.errors import SqError
from sq.export import container

MOST = 2**30  # bytes of memory that a damaged file may take


def content():
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(500, generator=draw)
    return {"layers": [{"name": f"layer{i}", "shape": [i, 2]} for i in range(20)]}, {
        "numbers": numbers,
        "codes": torch.randint(256, (700,), generator=draw).to(torch.uint8),
        "integers": torch.arange(9),
    }


@pytest.fixture
def file(tmp_path):
    layout, tensors = content()
    container.write(tmp_path / "net.safetensors", layout, tensors | {"none": torch.empty(0)})
    return tmp_path / "net.safetensors"


def refusal(file):
    with pytest.raises(SqError) as caught:
        container.read(file)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.startswith(f"{file} ")
    return line


def test_what_was_written_comes_back(file):
    layout, tensors = container.read(file)
    wanted, given = content()
    assert layout == wanted
    assert list(tensors) != []
    assert {name: own.dtype for name, own in tensors.items()} == {
        name: own.dtype for name, own in given.items()
    }
    assert all(torch.equal(own, given[name]) for name, own in tensors.items())


def test_the_same_content_is_the_same_file(file, tmp_path):
    container.write(tmp_path / "again", *content())
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def damaged(data, draw):
    """Return `data` with something wrong: bits, bytes, the end, the header or its length, or what follows."""
    kind, at = draw.randrange(8), draw.randrange(len(data))
    made = bytearray(data)
    if kind == 0:
        made[at] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del made[at:]
    elif kind == 2:
        made[:8] = struct.pack(
            "<Q", draw.choice([0, 1, len(data), 2**31, 2**40, 2**63, draw.randrange(2**64)])
        )
    elif kind == 3:
        made[at : at + 64] = draw.randbytes(64)
    elif kind == 4:
        made += draw.randbytes(1 + draw.randrange(99))
    elif kind == 5:
        made = bytearray(draw.randbytes(draw.randrange(400)))
    elif kind == 6:  # sizes in the header
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        own = header[draw.choice([name for name in header if name != "__metadata__"])]
        own[draw.choice(["shape", "data_offsets"])] = draw.choice(
            [[2**40], [0, 2**50], [-1, 3], [2**62, 2**62], [], "x"]
        )
        text = json.dumps(header).encode()
        made = bytearray(struct.pack("<Q", len(text)) + text + data[8 + length :])
    else:
        del made[at : at + 1 + draw.randrange(50)]
    return bytes(made)


def test_damaged_files_are_refused_each_in_one_line_and_in_little_memory(file, tmp_path):
    data, draw, broken = file.read_bytes(), random.Random(0), tmp_path / "broken.safetensors"
    before, tried = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    while tried < 2000:
        made = damaged(data, draw)
        if made != data:
            tried += 1
            broken.write_bytes(made)
            refusal(broken)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST


def test_content_that_was_changed_and_hashed_again_is_not_believed_to_be_small(tmp_path):
    bomb = container.zlib.compress(b"[" + b"{}," * 2**26, 9)
    tensors = {container.LAYOUT_TENSOR: torch.frombuffer(bytearray(bomb), dtype=torch.uint8)}
    about = {container.FORMAT: f"{container.VERSION} {container._hash(tensors)}"}
    (tmp_path / "bomb").write_bytes(save(tensors, about))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "is damaged" in refusal(tmp_path / "bomb")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST


def test_a_number_without_an_axis_is_refused(tmp_path):
    tensors = {"numbers": torch.tensor(1.0)}
    about = {container.FORMAT: f"{container.VERSION} {container._hash(tensors)}"}
    (tmp_path / "one").write_bytes(save(tensors, about))
    assert "is damaged" in refusal(tmp_path / "one")


def test_another_version_is_named(file, monkeypatch):
    monkeypatch.setattr(container, "VERSION", 2)
    assert (
        "is of version 1 of the format, and this sq reads version 2: export the network again"
        in refusal(file)
    )


def test_other_files_are_told_apart(tmp_path):
    for name, made in {
        "a": save({"x": torch.ones(3)}),
        "b": save({"x": torch.ones(3)}, {"format": "pt"}),
    }.items():
        (tmp_path / name).write_bytes(made)
    assert "is damaged (it has no metadata)" in refusal(tmp_path / "a")
    assert "is no network that export=packed has written" in refusal(tmp_path / "b")
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "missing")
    assert "cannot be read (Is a directory)" in refusal(tmp_path)


def test_a_full_disk_leaves_what_was_there(file, monkeypatch):
    before = file.read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SqError, match=r"cannot write .*: No space left on device; free space"):
        container.write(file, {}, {})
    assert file.read_bytes() == before
    assert [own.name for own in file.parent.iterdir()] == [file.name]
