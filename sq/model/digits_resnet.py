"""digits_resnet: a small residual network for 8x8 digits with every kind of layer sq quantizes.

It has dense 3x3 and 1x1, grouped, depthwise and linear layers, strides, BatchNorm and residual
additions, like large networks, but runs in seconds. Trained weights are part of the package;
``python examples/train_digits.py`` trains them again.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sq.config.constraints import Expected
from sq.errors import SqError
from sq.model.state_dict import load_into
from sq.network import geometry
from sq.types.problem import Model

WEIGHTS = Path(__file__).with_name("digits_resnet.safetensors")


class ConvBatchNorm(nn.Sequential):
    """A convolution and its BatchNorm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """ReLU(shortcut(x) + body(x)), with ReLU between the layers of the body."""

    def __init__(self, *body: ConvBatchNorm, shortcut: ConvBatchNorm | None = None):
        super().__init__()
        self.body = nn.ModuleList(body)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        y = x
        for index, layer in enumerate(self.body):
            if index > 0:
                y = F.relu(y)
            y = layer(y)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(y + shortcut)


class Separable(nn.Sequential):
    """`pairs` of depthwise 3x3 and pointwise 1x1 convolutions, ReLU after each, no shortcut.

    Few inputs per output and no shortcut around them make MobileNets hard to quantize.
    """

    def __init__(self, width: int, pairs: int):
        super().__init__()
        for _ in range(pairs):
            self.append(ConvBatchNorm(width, width, 3, groups=width))
            self.append(ConvBatchNorm(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        for layer in self:
            x = F.relu(layer(x))
        return x


class DigitsResNet(nn.Module):
    """A basic and a grouped bottleneck block, separable units, and two wide basic blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBatchNorm(1, 32, 3)
        self.blocks = nn.Sequential(
            Residual(ConvBatchNorm(32, 32, 3), ConvBatchNorm(32, 32, 3)),
            Residual(
                ConvBatchNorm(32, 64, 1),
                ConvBatchNorm(64, 64, 3, 2, groups=4),
                ConvBatchNorm(64, 64, 1),
                shortcut=ConvBatchNorm(32, 64, 1, 2),
            ),
            Separable(64, pairs=4),
            Residual(
                ConvBatchNorm(64, 96, 3),
                ConvBatchNorm(96, 96, 3),
                shortcut=ConvBatchNorm(64, 96, 1),
            ),
            Residual(
                ConvBatchNorm(96, 96, 3, 2),
                ConvBatchNorm(96, 96, 3),
                shortcut=ConvBatchNorm(96, 96, 1, 2),
            ),
        )
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1, 8, 8) to logits (B, 10)."""
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def prepare(image: Image.Image, resized: bool) -> Tensor:
    """Return an 8x8 grey image of levels 0 to 16 as (1, 8, 8), -1 to 1."""
    if image.size != (8, 8) or image.mode != "L":
        raise SqError(
            f"the image is {image.width}x{image.height} {image.mode}, digits_resnet takes 8x8 "
            "grey: choose dataset=digits, or another model"
        )
    return torch.from_numpy(np.asarray(image, np.float32) / 8 - 1).unsqueeze(0)


def load(*, weights: str | None, expected: Expected) -> Model:
    """Load the trained network in eval mode.

    Parameters
    ----------
    weights : a .safetensors, .pth or .pt file; None takes the one in the package
    expected : full-precision figures by image set, see `sq.evaluation.expected_accuracy`

    Raises
    ------
    SqError : the file is missing, damaged, not of this network, or holds NaN
    """
    net = DigitsResNet().eval()
    checkpoint = load_into(net, Path(weights) if weights else WEIGHTS)
    layers, skipped = geometry.find(net)
    return Model(
        net, layers, (1, 8, 8), checkpoint, prepare, skipped, expected or {}, span=((-1.0,), (1.0,))
    )
