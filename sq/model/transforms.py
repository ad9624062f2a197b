"""Transforms from an image to the input of a network, by timm from the network's data config.

Expected figures hold only for the transform of the weights, so it belongs to the model.
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

# Settings of `EvaluationTransform` and their types. timm itself would use its default for a
# mistyped crop_mode, or a crop_pct of 0.
SETTING_TYPES: dict[str, Any] = {
    "input_size": Annotated[list[Count], Len(3, 3)],
    "interpolation": Literal["bilinear", "bicubic", "nearest", "box", "hamming", "lanczos"],
    "crop_pct": Share,
    "crop_mode": Literal["center", "squash", "border"],
    "mean": Annotated[list[float], Len(3, 3)],
    "std": Annotated[list[Positive], Len(3, 3)],
}


def check(data: Mapping[str, Any]) -> None:
    """Raise an `SqError` unless `data` has only valid settings of `EvaluationTransform`."""
    for name, value in data.items():
        if name not in SETTING_TYPES:
            raise SqError(
                f"model.data.{name}: not a setting of the transform; choices: "
                f"{', '.join(SETTING_TYPES)}"
            )
        check_type(SETTING_TYPES[name], value, f"model.data.{name}")
    if data.get("input_size", [3])[0] != 3:
        raise SqError(
            f"model.data.input_size={data['input_size']}: (channels, height, width), of 3 channels"
        )


def span(mean: Sequence[float], std: Sequence[float]) -> Span:
    """Return black and white, (value - mean) / std of 0 and 1, for red, green and blue."""
    black: list[float] = []
    white: list[float] = []
    for channel_mean, channel_std in zip(mean, std, strict=True):
        black.append((0.0 - channel_mean) / channel_std)
        white.append((1.0 - channel_mean) / channel_std)
    return tuple(black), tuple(white)


@dataclass(frozen=True)
class Normalise:
    """(value - mean) / std of red, green and blue in 0..1, for images of `size` (height, width)."""

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


class EvaluationTransform:
    """Resize, centre crop and normalise, by timm's settings (input_size, crop_pct, ...)."""

    def __init__(self, settings: Mapping[str, Any]):
        torch_setup.import_torchvision()
        from timm.data import create_transform

        self.size = tuple(settings["input_size"])[-2:]
        self.resize, *self.rest = create_transform(**settings, is_training=False).transforms
        if not type(self.resize).__name__.startswith("Resize"):
            raise SqError(
                f"the evaluation transform begins with {self.resize}, not a resize: correct "
                "model.data"
            )

    def __call__(self, image: Image.Image, resized: bool) -> Tensor:
        """Return (3, H, W) float32; a `resized` image is only cropped, its offset rounded down."""
        if image.mode != "RGB":
            raise SqError(
                f"the image is {image.mode}, the network takes RGB: choose a dataset of its kind"
            )
        x: Any = self._centre_crop(image) if resized else self.resize(image)
        for step in self.rest:
            x = step(x)
        return x

    def _centre_crop(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        left, top = (image.width - width) // 2, (image.height - height) // 2
        if left < 0 or top < 0:
            raise SqError(
                f"the image is {image.width}x{image.height}, the network takes {width}x{height} of "
                "it: set dataset.resized=false"
            )
        return image.crop((left, top, left + width, top + height))
