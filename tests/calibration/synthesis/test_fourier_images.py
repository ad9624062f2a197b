"""What images are made on."""

from dataclasses import replace

import pytest
import torch

from sq.calibration.synthesis.fourier_images import Bounded, FourierImages, augmented
from sq.types.problem import Model

MODEL = Model(
    torch.nn.Linear(1, 1), [], (3, 32, 32), "", None, span=((-1.0, 0.0, 2.0), (1.0, 4.0, 3.0))
)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def canvas(images=64, model=MODEL, **knobs):
    return FourierImages(
        model, images, random(), **{"slope": 1.0, "grey": 0.5, "contrast": 0.1} | knobs
    )


def shares(x):
    """Return images in units of black to white."""
    low, high = (torch.tensor(own).view(-1, 1, 1) for own in MODEL.span)
    return (x.detach() - low) / (high - low)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("contrast", [0.05, 0.1])
def test_begins_around_the_middle_with_the_contrast_asked_for(slope, contrast):
    x = shares(canvas(256, slope=slope, contrast=contrast).images())
    assert x.mean() == pytest.approx(0.5, abs=0.01)
    assert float(x.std()) == pytest.approx(contrast, rel=0.05)


@pytest.mark.parametrize("grey", [0.0, 0.5, 0.9, 1.0])
def test_channels_are_correlated(grey):
    x = shares(canvas(256, grey=grey, slope=0.0).images()).transpose(0, 1).flatten(1)
    assert torch.corrcoef(x)[0, 1:].tolist() == pytest.approx([grey, grey], abs=0.01)


@pytest.mark.parametrize("slope", [0.0, 1.0, 1.5])
def test_spectrum_falls_with_the_slope(slope):
    x = shares(canvas(256, slope=slope).images())
    # of vertical waves that fit 1 to 16 times
    power = torch.fft.fft2(x).abs().square().mean((0, 1))[0, 1:17]
    waves = torch.arange(1, 17).log()
    fitted = torch.linalg.lstsq(
        torch.stack([waves, torch.ones(16)], 1), power.log()[:, None]
    ).solution[0]
    assert float(fitted) == pytest.approx(-2 * slope, abs=0.1)


def test_white_noise_is_every_pixel_for_itself():
    own = canvas(1, slope=0.0, grey=0.0)
    (gradient,) = torch.autograd.grad(own.images()[0, 1, 5, 7], own.waves[1:])
    gradient[0, 1, 5, 7] -= 4.0 * 0.1  # span times contrast
    assert gradient.abs().max() < 1e-6


def test_values_stay_within_the_span():
    x = canvas(8, contrast=5.0).images()
    low, high = x.detach().amin((0, 2, 3)), x.detach().amax((0, 2, 3))
    assert low.tolist() == list(MODEL.span[0])
    assert high.tolist() == list(MODEL.span[1])


def test_gradients_lead_back_inside_and_no_further_out():
    values = torch.tensor([-1.0, -1.0, 0.5, 0.5, 2.0, 2.0], requires_grad=True)
    weights = torch.tensor([3.0, -3.0, 3.0, -3.0, 3.0, -3.0])  # a step goes against them
    (gradient,) = torch.autograd.grad((weights * Bounded.apply(values)).sum(), values)
    assert Bounded.apply(values).tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert gradient.tolist() == [0.0, -3.0, 3.0, -3.0, 3.0, 0.0]


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 7, 10), (3, 9, 5)])
def test_any_size(size):
    x = canvas(2, replace(MODEL, input=size, span=((0.0,), (1.0,)))).images()
    assert x.shape == (2, *size)
    assert torch.isfinite(x).all()


def test_moves_are_rolls_within_reach():
    x = torch.arange(2 * 3 * 10 * 20.0).view(2, 3, 10, 20)
    seen = set()
    generator = random()
    for _ in range(300):
        y = augmented(x, generator, jitter=0.1, flips=0.0)
        down, right = divmod(int((y[0, 0] == x[0, 0, 0, 0]).flatten().nonzero()), 20)
        assert torch.equal(y, x.roll((down, right), (2, 3)))
        seen.add((down, right))
    assert seen == {(down % 10, right % 20) for down in (-1, 0, 1) for right in (-2, -1, 0, 1, 2)}


def test_mirrors_as_often_as_asked():
    x = torch.arange(12.0).view(1, 1, 3, 4)
    generator = random()
    mirrored = sum(
        torch.equal(augmented(x, generator, jitter=0.0, flips=0.25), x.flip(3)) for _ in range(400)
    )
    assert mirrored == pytest.approx(100, abs=30)
    assert torch.equal(augmented(x, generator, jitter=0.0, flips=0.0), x)
