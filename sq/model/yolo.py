"""Shared code of the YOLO networks: layers from ultralytics, and the forward pass through them."""

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

SPAN = ((0.0,), (1.0,))  # input values of black and white
STRIDES = (8, 16, 32)  # input pixels per cell of the three maps that a head reads


class Routed(nn.Module):
    """Layers that read an earlier output or a list of them, by their `f`; the last is the head."""

    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.model = layers
        self._sources: list[list[int] | None] = []  # None: the layer before
        self._needed_later: set[int] = set()
        parts: list[Any] = list(layers)
        for index, layer in enumerate(parts):
            sources = _absolute(layer.f, index)
            self._sources.append(sources)
            self._needed_later.update(sources or [])

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, S, S) in 0..1 to the head's output: raw predictions (B, N, K)."""
        outputs: dict[int, Tensor] = {}
        for index, (layer, sources) in enumerate(zip(self.model, self._sources, strict=True)):
            inputs = x if sources is None else [outputs[source] for source in sources]
            x = layer(inputs)
            if index in self._needed_later:
                outputs[index] = x
        return x


def _absolute(sources: int | list[int], index: int) -> list[int] | None:
    """Return the indices of the layers that layer `index` reads, None for the one before it."""
    if sources == -1:
        return None
    assert isinstance(sources, list), "layers of the YOLO family read the one before, or a list"
    return [index + source if source < 0 else source for source in sources]


def build(family: str, size: str) -> nn.Sequential:
    """Return the layers of a network for the 80 COCO classes, with random weights, in eval mode.

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
        # Given a name, ultralytics would prefer a file in the working directory to its own.
        files = sorted(Path(ultralytics.__file__).parent.glob(f"cfg/models/*/{family}.yaml"))
        if not files:
            raise SqError(
                f"ultralytics {ultralytics.__version__} has no {family}: python -m pip install "
                "--upgrade ultralytics"
            )
        architecture: Any = OmegaConf.to_container(OmegaConf.load(files[0]))
        net: Any = DetectionModel({**architecture, "scale": size}, verbose=False)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # it would overwrite the tensors that hooks see
    return net.model.eval()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Undo what importing ultralytics changes in the process, and keep it from writing or asking.

    It writes settings into the home directory, looks for the internet, logs to the standard output,
    replaces `torch.save` and `PIL.Image.open` (by one that wants to install packages), sets
    OMP_NUM_THREADS for child processes, and changes how tensors and arrays are printed.
    """
    environment, printoptions = dict(os.environ), np.get_printoptions()
    torch_save, image_open = torch.save, Image.open
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
            torch.save = torch_save
            Image.open = image_open
            torch.set_printoptions(profile="default")
            np.set_printoptions(**printoptions)


def check_side(image: int) -> None:
    """Raise an `SqError` unless `image`, the input's side in pixels, is a multiple of 32."""
    if image % STRIDES[-1]:
        low = max(image // STRIDES[-1], 1) * STRIDES[-1]
        raise SqError(
            f"model.image={image}: should be a multiple of {STRIDES[-1]}: take {low}, or "
            f"{low + STRIDES[-1]}"
        )


def cells(image: int, stride: int) -> Tensor:
    """Return (n, 2): column and row of each cell of an input with `image` pixels per side."""
    side = torch.arange(image // stride, dtype=torch.float32)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([columns, rows], 2).flatten(0, 1)


def prepare(image: Image.Image, resized: bool, *, size: int) -> Tensor:
    """Return `image` letterboxed to `size` pixels, whether it is `resized` already or not."""
    return letterbox(image, size)
