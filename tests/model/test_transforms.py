"""From an image to what a network takes; timm's own transforms are tested with its models."""

import numpy as np
import pytest
import torch
from PIL import Image

from sq.errors import SqError
from sq.model.transforms import Normalise

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 2.0, 4.0)


def test_values_are_normalised_by_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    x = Normalise((4, 6), MEAN, STD)(Image.fromarray(pixels), False)
    assert x.shape == (3, 4, 6)
    assert x.dtype == torch.float32
    wanted = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(x.permute(1, 2, 0).numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (6, 4)), ("RGB", (4, 6)), ("RGB", (7, 4)), ("RGBA", (6, 4))]
)
def test_image_of_another_kind_is_refused(mode, size):
    with pytest.raises(
        SqError,
        match=rf"is {size[0]}x{size[1]} {mode}, the network takes 6x4 RGB: choose a dataset",
    ):
        Normalise((4, 6), MEAN, STD)(Image.new(mode, size), False)
