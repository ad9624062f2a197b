import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sq.model.letterbox import GREY, letterbox, undo

sides = st.integers(1, 1500)


def image(height, width, mode="RGB"):
    channels = (3,) if mode == "RGB" else ()
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    )


def where(x):
    # Box of what is not grey: left, top, right, bottom.
    rows, columns = (x != GREY).any(0).nonzero(as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@given(sides, sides, st.sampled_from([64, 320, 640, 33]))
def test_whole_image_goes_there_and_back(height, width, size):
    x = letterbox(Image.new("RGB", (width, height)), size)
    assert x.shape == (3, size, size)
    assert x.dtype == torch.float32
    back = undo(torch.tensor([where(x)], dtype=torch.float32), (height, width), size)
    assert back[0].tolist() == pytest.approx([0, 0, width, height], abs=1e-3 * max(height, width))


@given(sides, sides, st.tuples(*[st.floats(0, 1)] * 4), st.sampled_from([320, 640]))
def test_boxes_come_back_within_a_pixel(height, width, shares, size):
    # The plain formula, with unrounded sides and padding, is less than a pixel of the square away.
    (left, right), (top, bottom) = sorted(shares[:2]), sorted(shares[2:])
    box = torch.tensor([[left * width, top * height, right * width, bottom * height]])
    ratio = min(size / height, size / width)
    pad = torch.tensor([size - width * ratio, size - height * ratio]).repeat(2) / 2
    back = undo(box * ratio + pad, (height, width), size)
    # A side of less than a pixel is drawn as one.
    if min(height, width) * ratio >= 1:
        assert (back - box).abs().max() <= 1 / ratio + 1e-3


@given(sides, sides)
def test_longer_side_fills_the_square_and_the_rest_is_halved(height, width):
    left, top, right, bottom = where(letterbox(Image.new("RGB", (width, height)), 640))
    assert max(right - left, bottom - top) == 640
    assert 0 <= (640 - right) - left <= 1
    assert 0 <= (640 - bottom) - top <= 1
    assert min(right - left, bottom - top) == pytest.approx(
        max(640 * min(height, width) / max(height, width), 1), abs=1
    )


def test_boxes_beyond_the_image_are_clipped():
    boxes = torch.tensor([[-5.0, 0.0, 700.0, 640.0], [630.0, 630.0, 640.0, 640.0]])
    found = undo(boxes, (240, 320), 640)
    assert found.tolist() == [[0, 0, 320, 240], [315, 240, 320, 240]]
    assert undo(torch.empty(0, 4), (240, 320), 640).shape == (0, 4)


def test_box_of_a_detection_by_hand():
    # 320 x 160 in 640: twice as large, 160 rows of grey above.
    assert undo(torch.tensor([[20.0, 180.0, 40.0, 220.0]]), (160, 320), 640).tolist() == [
        [10, 10, 20, 30]
    ]


def test_image_of_the_right_size_is_not_changed():
    given = image(64, 48)
    x = letterbox(given, 64)
    assert torch.equal(
        (x[:, :, 8:56] * 255).round().byte(), torch.from_numpy(np.array(given)).permute(2, 0, 1)
    )
    assert (x[:, :, :8] == GREY).all()
    assert (x[:, :, 56:] == GREY).all()


@pytest.mark.parametrize("factor", [2, 3])
def test_scaled_up_is_bilinear(factor):
    given = image(20, 20)
    x = torch.from_numpy(np.array(given)).permute(2, 0, 1).float()[None] / 255
    wanted = torch.nn.functional.interpolate(
        x, scale_factor=factor, mode="bilinear", align_corners=False
    )[0]
    # pixels are whole numbers in between
    assert (letterbox(given, 20 * factor) - wanted).abs().max() < 1.1 / 255


def test_scaled_down_is_smoothed():
    # A checkerboard becomes grey, where picking single pixels gives black or white.
    board = np.indices((256, 256)).sum(0) % 2 * np.uint8(255)
    x = letterbox(Image.fromarray(board.astype(np.uint8)), 64)
    assert (x - 0.5).abs().max() < 0.05


def test_grey_image_is_read_as_colour():
    x = letterbox(image(64, 64, "L"), 64)
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])
