"""From an image to what a network takes: the network's own data config, read by timm.

`expected` figures hold only for the transform that goes with the weights, so it belongs to the
model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Len
from PIL import Image
from torch import Tensor

from sq.config.constraints import Count, Positive, Share
from sq.config.instantiate import check_type
from sq.errors import SqError
from sq.runtime import torch_setup
from sq.types.problem import Span

# Settings of `Evaluation` and what they may be: timm itself takes a mistyped crop_mode, or a
# crop_pct of 0, for its default.
KINDS: dict[str, Any] = {
    "input_size": Annotated[list[Count], Len(3, 3)],
    "interpolation": Literal["bilinear", "bicubic", "nearest", "box", "hamming", "lanczos"],
    "crop_pct": Share,
    "crop_mode": Literal["center", "squash", "border"],
    "mean": Annotated[list[float], Len(3, 3)],
    "std": Annotated[list[Positive], Len(3, 3)],
}


def check(data: Mapping[str, Any]) -> None:
    """Raise an `SqError` unless `data`, as a config gives it, holds settings of `Evaluation` only, all well-formed."""
    for name, value in data.items():
        if name not in KINDS:
            raise SqError(
                f"model.data.{name}: not a setting of the transform; choices: {', '.join(KINDS)}"
            )
        check_type(KINDS[name], value, f"model.data.{name}")
    if data.get("input_size", [3])[0] != 3:
        raise SqError(
            f"model.data.input_size={data['input_size']}: (channels, height, width), of 3 channels"
        )


def span(mean: Sequence[float], std: Sequence[float]) -> Span:
    """Return black and white, (value - mean) / std of 0 and 1, of red, green and blue."""
    low, high = (
        tuple((value - m) / s for m, s in zip(mean, std, strict=True)) for value in (0.0, 1.0)
    )
    return low, high


@dataclass(frozen=True)
class Normalise:
    """Images of exactly `size` (height, width), from 0..1 to (value - mean) / std of red, green and blue."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image, resized: bool) -> Tensor:
        """Return (3, H, W) float32."""
        if image.size != self.size[::-1] or image.mode != "RGB":
            raise SqError(
                f"the image is {image.width}x{image.height} {image.mode}, the network takes "
                f"{self.size[1]}x{self.size[0]} RGB: choose a dataset of its kind"
            )
        torch_setup.import_torchvision()
        from torchvision.transforms.functional import normalize, to_tensor

        return normalize(to_tensor(image), list(self.mean), list(self.std))


class Evaluation:
    """Resize, centre crop and normalise as `settings`, in timm's terms (input_size, crop_pct, mean, ...), ask for."""

    def __init__(self, settings: Mapping[str, Any]):
        torch_setup.import_torchvision()
        from timm.data import create_transform

        self.size = tuple(settings["input_size"])[-2:]
        self.resize, *self.rest = create_transform(**settings, is_training=False).transforms
        if not type(self.resize).__name__.startswith("Resize"):
            raise SqError(
                f"the evaluation transform begins with {self.resize}, not a resize: correct model.data"
            )

    def __call__(self, image: Image.Image, resized: bool) -> Tensor:
        """Return (3, H, W) float32; a `resized` image is cropped only, its offset rounded down."""
        if image.mode != "RGB":
            raise SqError(
                f"the image is {image.mode}, the network takes RGB: choose a dataset of its kind"
            )
        x: Any = self._centre(image) if resized else self.resize(image)
        for step in self.rest:
            x = step(x)
        return x

    def _centre(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        left, top = (image.width - width) // 2, (image.height - height) // 2
        if left < 0 or top < 0:
            raise SqError(
                f"the image is {image.width}x{image.height}, the network takes {width}x{height} of it: "
                "set dataset.resized=false"
            )
        return image.crop((left, top, left + width, top + height))
