"""What the adapters of YOLO networks share: layers that ultralytics builds, and the way through them."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from sq.core import installation
from sq.errors import SqError
from sq.model.letterbox import letterbox

SPAN = ((0.0,), (1.0,))  # of the values that the networks take
STRIDES = (8, 16, 32)  # pixels of the input per cell of the three maps that a head reads


class Routed(nn.Module):
    """Layers that read one earlier output or a list of them, as each layer's `f` says; the last is the head."""

    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.model = layers
        parts: list[Any] = list(layers)
        self._sources = [_absolute(layer.f, place) for place, layer in enumerate(parts)]
        self._kept = {s for source in self._sources if isinstance(source, list) for s in source}

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, S, S) in 0..1 to what the head returns: raw predictions (B, N, K)."""
        outputs: dict[int, Tensor] = {}
        for place, (layer, source) in enumerate(zip(self.model, self._sources, strict=True)):
            x = layer([outputs[s] for s in source] if isinstance(source, list) else x)
            if place in self._kept:
                outputs[place] = x
        return x


def _absolute(source: int | list[int], place: int) -> list[int] | None:
    """Return the places that the layer at `place` reads, or None where it reads the layer before it."""
    if source == -1:
        return None
    assert isinstance(source, list), "layers of the YOLO family read the one before, or a list"
    return [place + s if s < 0 else s for s in source]


def build(family: str, size: str) -> nn.Sequential:
    """Return the layers of a network for the 80 classes of COCO, with random weights, ready to evaluate.

    Parameters
    ----------
    family : an architecture of ultralytics: "yolov5", "yolov8", "yolo11", ...
    size : its scale: "n", "s", "m", "l", "x"

    Raises
    ------
    SqError : ultralytics is not installed, or too old to know the family
    """
    with _quietly():
        try:
            import ultralytics
            from ultralytics.nn.tasks import DetectionModel
        except ImportError as error:
            raise SqError(
                f"YOLO networks need ultralytics ({error}): {installation.command('detection')}"
            ) from error
        # By name, ultralytics would prefer a file of the working directory to its own.
        found = sorted(Path(ultralytics.__file__).parent.glob(f"cfg/models/*/{family}.yaml"))
        if not found:
            raise SqError(
                f"ultralytics {ultralytics.__version__} has no {family}: python -m pip install --upgrade ultralytics"
            )
        architecture: Any = OmegaConf.to_container(OmegaConf.load(found[0]))
        net: Any = DetectionModel({**architecture, "scale": size}, verbose=False)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # it would overwrite what a hook was given
    return net.model.eval()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Put back what importing ultralytics changes for the whole process, and let it write and ask nothing.

    It writes settings into the home directory, looks for the internet, logs to the standard output,
    replaces `torch.save` and `PIL.Image.open` (by one that wants to install packages), sets
    OMP_NUM_THREADS for child processes, and changes how tensors and arrays are printed.
    """
    environment, save, printed = dict(os.environ), torch.save, np.get_printoptions()
    opened = Image.open
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ |= {
            "YOLO_CONFIG_DIR": folder,
            "YOLO_OFFLINE": "true",
            "YOLO_AUTOINSTALL": "false",
            "YOLO_VERBOSE": "false",
        }
        try:
            yield
        finally:
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)
            torch.save = save
            Image.open = opened
            torch.set_printoptions(profile="default")
            np.set_printoptions(**printed)


def check_side(image: int) -> None:
    """Raise an `SqError` unless `image`, the side of the input in pixels, is a multiple of the widest stride."""
    if image % STRIDES[-1]:
        low = max(image // STRIDES[-1], 1) * STRIDES[-1]
        raise SqError(
            f"model.image={image}: should be a multiple of {STRIDES[-1]}: take {low}, or {low + STRIDES[-1]}"
        )


def cells(image: int, stride: int) -> Tensor:
    """Return (n, 2): column and row of each cell of an input of `image` pixels square, row after row."""
    side = torch.arange(image // stride, dtype=torch.float32)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([columns, rows], 2).flatten(0, 1)


def prepare(image: Image.Image, resized: bool, *, size: int) -> Tensor:
    """Return `image` letterboxed to `size` pixels: the same for an image that is `resized` already."""
    return letterbox(image, size)
