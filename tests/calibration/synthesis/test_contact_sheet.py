"""The contact sheet."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sq.calibration.synthesis import contact_sheet
from sq.types.images import Calibration
from sq.types.problem import Model


def picture(x, span):
    model = Model(torch.nn.Identity(), [], tuple(x.shape[1:]), "", None, span=span)
    png = contact_sheet.draw(
        model, Calibration(x, torch.zeros(len(x)), [str(i) for i in range(len(x))])
    )
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("count", "size", "rows", "columns", "side"),
    [
        (1, 8, 1, 1, 96),
        (5, 8, 2, 3, 96),
        (64, 32, 8, 8, 96),
        (200, 32, 8, 8, 96),
        (3, 224, 2, 2, 224),
        (2, 64, 1, 2, 64),
    ],
)
def test_images_in_rows_at_a_size_that_can_be_seen(count, size, rows, columns, side):
    found = picture(torch.zeros(count, 3, size, size), ((0.0,), (1.0,)))
    assert found.shape == (rows * (side + 4) + 4, columns * (side + 4) + 4, 3)


def test_colours_and_places_are_those_of_the_images():
    levels = torch.tensor([[-1.0, 2.0, 5.0], [1.0, 4.0, 5.0], [0.0, 3.0, 7.0]])
    x = levels.view(3, 3, 1, 1).expand(3, 3, 96, 96)
    found = picture(x, ((-1.0, 2.0, 5.0), (1.0, 4.0, 9.0)))
    assert found[50, 50].tolist() == [0, 0, 0]
    assert found[50, 150].tolist() == [255, 255, 0]
    assert found[150, 50].tolist() == [128, 128, 128]
    assert found[150, 150].tolist() == [255, 255, 255]  # there is no fourth


def test_pixels_are_enlarged_as_they_are():
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = picture(x, ((0.0,), (1.0,)))[4:-4, 4:-4]
    assert (found == found[:, :, :1]).all()
    assert np.array_equal(found[6::12, 6::12, 0], (x[0, 0] * 255).round().numpy().astype(np.uint8))
    assert all(
        np.array_equal(found[i::12, j::12], found[::12, ::12]) for i in (3, 11) for j in (3, 11)
    )
