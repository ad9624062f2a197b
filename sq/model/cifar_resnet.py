"""cifar_resnet: the residual networks for 32x32 images of He et al. 2015, 20 to 110 layers deep.

The network has a 3x3 stem, three stages of n basic blocks with 16, 32 and 64 channels, and a linear
layer: 6 n + 2 layers with weights. Shortcuts have no weights ("option A"). Parameter names are
those of common checkpoints.
"""

from typing import Annotated, Literal

from annotated_types import Len
from torch import Tensor, nn
from torch.nn import functional as F

from sq.config.constraints import Expected, Positive
from sq.config.data_paths import find
from sq.model.state_dict import load_into
from sq.model.transforms import Normalise, span
from sq.network import geometry
from sq.types.problem import Model


class Block(nn.Module):
    """ReLU(shortcut(x) + body(x)), where the body is two 3x3 convolutions, each with BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Return `x` in the shape of the body's output: strided, and padded with zero channels."""
        if self.stride == 1 and self.pad == 0:
            return x
        before = self.pad // 2
        strided = x[:, :, :: self.stride, :: self.stride]
        return F.pad(strided, (0, 0, 0, 0, before, self.pad - before))


class CifarResNet(nn.Module):
    """The network with `depth` = 6 n + 2 layers, for 10 classes."""

    def __init__(self, depth: int):
        super().__init__()
        blocks = (depth - 2) // 6  # in each stage; a block has 2 convolutions
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, 32, 32) to logits (B, 10)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(y))).mean((2, 3)))


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)


def load(
    *,
    depth: Literal[20, 32, 44, 56, 110],
    weights: str,
    mean: Annotated[list[float], Len(3, 3)],
    std: Annotated[list[Positive], Len(3, 3)],
    expected: Expected,
) -> Model:
    """Load a trained network in eval mode.

    Parameters
    ----------
    depth : layers with weights
    weights : a .safetensors, .pth or .pt state dict; a relative path is looked for here, then in
        $SQ_DATA
    mean, std : of red, green, blue values from 0 to 1; the network takes (value - mean) / std
    expected : full-precision figures by image set, see `sq.evaluation.expected_accuracy`

    Raises
    ------
    SqError : the file is missing, damaged, more than tensors, of another network, or holds NaN

    Source
    ------
    He et al. 2015, Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2.
    """
    net = CifarResNet(int(depth)).eval()  # a config's 20.0 is 20
    checkpoint = load_into(net, find(weights, "model.weights"))
    layers, skipped = geometry.find(net)
    prepare = Normalise((32, 32), tuple(mean), tuple(std))
    return Model(
        net, layers, (3, 32, 32), checkpoint, prepare, skipped, expected or {}, span=span(mean, std)
    )
