"""Reading images: worker processes decode and prepare them for a network, in order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sq.core import cpu_cores
from sq.core.progress import track
from sq.errors import ImageError, SqError, one_line
from sq.types.images import Batch, Images, Objects, Prepare

IMAGES_PER_TASK = 32  # of a worker, if nothing else decides
MAX_WORKERS = 8  # if nothing else decides: more wait for the disk
NAMED = 3  # images in a message


def batches(
    images: Images,
    chosen: Sequence[int],
    prepare: Prepare,
    size: int,
    what: str,
    *,
    at_once: bool = False,
) -> Iterator[Batch]:
    """Yield the `chosen` images of a split, in that order, as batches for a network.

    Parameters
    ----------
    chosen : indices in the split
    size : images in a batch; the last one has fewer, and so have those with corrupt images left out
    what : label of the progress bar
    at_once : stop at the first image that cannot be read, not after the last batch

    Raises
    ------
    SqError : images cannot be read and the split does not allow to skip them, after the last batch
        (but see `at_once`); at once, if an image is not what the network takes, or all are corrupt
    """
    parts = [list(chosen[i : i + size]) for i in range(0, len(chosen), size)]
    corrupt: dict[str, str] = {}  # messages, by id
    loader = _loader(images, parts, prepare)
    for result in track(loader, what, len(parts)):
        if result.refusal:
            raise SqError(result.refusal)
        corrupt |= result.errors
        if corrupt and at_once and not images.skip_corrupt:
            break
        if result.indices:
            x = torch.as_tensor(result.pixels)
            ids = [images.ids[i] for i in result.indices]
            yield Batch(x, _labels(images, result.indices), ids)
    if corrupt and (not images.skip_corrupt or len(corrupt) == len(chosen)):
        messages = [f"{name}: {corrupt[name]}" for name in list(corrupt)[:NAMED]]
        more = ", ..." if len(corrupt) > NAMED else ""
        raise SqError(
            f"{len(corrupt)} of {len(chosen)} images cannot be read "
            f"({'; '.join(messages)}{more}): copy them again, remove them, or leave them "
            "out by dataset.skip_corrupt=true"
        )


def load(images: Images, chosen: Sequence[int], prepare: Prepare, what: str) -> Batch:
    """Return the `chosen` images of a split as one batch; see `batches`."""
    parts = list(batches(images, chosen, prepare, IMAGES_PER_TASK, what))
    ids: list[str] = []
    for part in parts:
        ids += part.ids
    index = {name: i for i, name in enumerate(images.ids)}
    y = _labels(images, [index[name] for name in ids])
    return Batch(torch.cat([part.x for part in parts]), y, ids)


def _loader(images: Images, parts: list[list[int]], prepare: Prepare) -> Any:
    """Return a loader of the results of all parts, in order."""
    workers = images.workers
    if workers is None:
        workers = min(cpu_cores.available(), MAX_WORKERS)
    processes = min(workers, len(parts))
    # Fork, as up to Python 3.13 on Linux: other methods import everything again, in each process
    # and for each pass over images.
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        _Parts(images, parts, prepare),
        batch_size=None,  # an item is a batch already, so that workers share whole batches
        # Otherwise PyTorch makes tensors of the arrays, which workers send through /dev/shm:
        # containers often have little of that.
        collate_fn=_unchanged,
        num_workers=processes,
        multiprocessing_context="fork" if processes and can_fork else None,
        # Nothing is drawn, but without it the global generator would seed the workers.
        generator=torch.Generator(),
    )


def _unchanged(result: Any) -> Any:
    return result


def _labels(images: Images, indices: list[int]) -> Tensor | list[Objects]:
    if isinstance(images.y, list):
        return [images.y[i] for i in indices]
    return images.y[indices]


class _Result(NamedTuple):
    """The images of one part."""

    pixels: np.ndarray  # (B, ...)
    indices: list[int]  # of these images in the split
    errors: dict[str, str]  # messages of images that could not be read, by id
    refusal: str  # why the run must stop; "" if it need not


@dataclass
class _Parts(Dataset):
    """The dataset of `DataLoader`: an item is a whole part."""

    images: Images
    parts: list[list[int]]
    prepare: Prepare

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> _Result:
        pixels: list[np.ndarray] = []
        indices: list[int] = []
        errors: dict[str, str] = {}
        for i in self.parts[index]:
            name = self.images.ids[i]
            try:
                image = self.images.read(i)
                image.load()
            except ImageError as error:
                errors[name] = str(error)
                continue
            except SqError as error:  # the file is intact, but contradicts the dataset
                return _refused(name, error)
            except Exception as error:  # damaged bytes can raise anything
                errors[name] = one_line(error)
                continue
            try:
                pixels.append(self.prepare(image, self.images.resized).numpy())
            except SqError as error:
                # As text: an exception of a worker arrives with its traceback in the message.
                return _refused(name, error)
            indices.append(i)
        stacked = np.stack(pixels) if pixels else np.empty(0, np.float32)
        return _Result(stacked, indices, errors, "")


def _refused(name: str, error: SqError) -> _Result:
    """Return the result of a part whose image `name` does not fit the network or the dataset."""
    return _Result(np.empty(0, np.float32), [], {}, f"{name}: {error}")
