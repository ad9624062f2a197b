"""Reading images: decoded and prepared for a network in worker processes, in order, with progress."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sq.core import cpu_cores
from sq.core.progress import track
from sq.errors import ImageError, SqError, one_line
from sq.types.images import Batch, Images, Objects, Prepare

TOGETHER = 32  # images in a task of a worker, where nothing else decides
MANY = 8  # processes that decode, where nothing else decides: more wait for the disk
SHOWN = 3  # images named in a message


def batches(
    images: Images,
    chosen: Sequence[int],
    prepare: Prepare,
    size: int,
    what: str,
    *,
    at_once: bool = False,
) -> Iterator[Batch]:
    """Yield the `chosen` images of a split, in that order, as batches a network takes.

    Parameters
    ----------
    chosen : places in the split
    size : images in a batch; the last one, and those with corrupt images left out, have fewer
    what : for the progress line
    at_once : an image that cannot be read stops it there, not after the last batch

    Raises
    ------
    SqError : after the last batch (but see `at_once`), if images could not be read and the split
    does not allow to
        skip them; at once, if an image is not what the network takes, or all are corrupt
    """
    parts = [list(chosen[i : i + size]) for i in range(0, len(chosen), size)]
    workers = min(cpu_cores.available(), MANY) if images.workers is None else images.workers
    # Every item is a batch already, so that workers share whole batches among them.
    loader: Any = DataLoader(
        _Parts(images, parts, prepare),
        batch_size=None,
        num_workers=(processes := min(workers, len(parts))),
        # As up to Python 3.13 on Linux: others import everything anew, in each process and for each
        # pass over images.
        multiprocessing_context="fork"
        if processes and "fork" in multiprocessing.get_all_start_methods()
        else None,
        # nothing is drawn, but the global one would be used to seed workers
        generator=torch.Generator(),
    )
    corrupt: dict[str, str] = {}
    for pixels, places, errors, refusal in track(loader, what, len(parts)):
        if refusal:
            raise SqError(refusal)
        corrupt |= errors
        if corrupt and at_once and not images.skip_corrupt:
            break
        if len(places):
            yield Batch(
                torch.as_tensor(pixels), _at(images, places), [images.ids[i] for i in places]
            )
    if corrupt and (not images.skip_corrupt or len(corrupt) == len(chosen)):
        named = "; ".join(f"{name}: {why}" for name, why in list(corrupt.items())[:SHOWN])
        more = ", ..." if len(corrupt) > SHOWN else ""
        raise SqError(
            f"{len(corrupt)} of {len(chosen)} images cannot be read ({named}{more}): copy them again, remove them, "
            "or leave them out by dataset.skip_corrupt=true"
        )


def load(images: Images, chosen: Sequence[int], prepare: Prepare, what: str) -> Batch:
    """Return the `chosen` images of a split as one batch; see `batches`."""
    parts = list(batches(images, chosen, prepare, TOGETHER, what))
    places = {name: i for i, name in enumerate(images.ids)}
    read = [places[name] for p in parts for name in p.ids]
    return Batch(torch.cat([p.x for p in parts]), _at(images, read), [images.ids[i] for i in read])


def _at(images: Images, places: list[int]) -> Tensor | list[Objects]:
    return [images.y[i] for i in places] if isinstance(images.y, list) else images.y[places]


@dataclass
class _Parts(Dataset):
    """What `DataLoader` draws from: the images of each part, as arrays, and what could not be read."""

    images: Images
    parts: list[list[int]]
    prepare: Prepare

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[int], dict[str, str], str]:
        pixels, places, errors = [], [], {}
        for place in self.parts[index]:
            name = self.images.ids[place]
            try:
                image = self.images.read(place)
                image.load()
            except SqError as error:
                # the file is whole, and not what the dataset says
                if not isinstance(error, ImageError):
                    return _refused(name, error)
                errors[name] = str(error)
                continue
            except Exception as error:  # damaged bytes raise whatever they happen to decode to
                errors[name] = one_line(error)
                continue
            try:
                pixels.append(self.prepare(image, self.images.resized).numpy())
            except SqError as error:
                # said here: a worker's exceptions arrive with its traceback in the message
                return _refused(name, error)
            places.append(place)
        # Arrays go through a pipe; tensors would go through /dev/shm, which containers keep small.
        return np.stack(pixels) if pixels else np.empty(0, np.float32), places, errors, ""


def _refused(name: str, error: SqError) -> tuple[np.ndarray, list[int], dict[str, str], str]:
    """Return the item of a part whose image `name` is not what the network or the dataset says."""
    return np.empty(0, np.float32), [], {}, f"{name}: {error}"
