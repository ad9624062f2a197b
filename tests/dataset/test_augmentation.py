import torch

from sq.dataset import augmentation


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=50):
    return torch.randn(count, 2, 5, 6, generator=generator(1))


BLACK = torch.tensor([-9.0, -8.0])


def shifted(x, down, right):
    """One image (C, H, W), moved so that its pixel (down, right), from -2 to 2, comes first."""
    out = BLACK.view(2, 1, 1).expand(2, 5, 6).clone()
    for row in range(5):
        for column in range(6):
            if 0 <= row + down < 5 and 0 <= column + right < 6:
                out[:, row, column] = x[:, row + down, column + right]
    return out


def test_each_image_is_moved_by_whole_pixels_with_black_coming_in():
    x = images()
    moved = augmentation.move(x, 2, BLACK, generator())
    seen = set()
    for before, after in zip(x, moved, strict=True):
        found = [
            (d, r)
            for d in range(-2, 3)
            for r in range(-2, 3)
            if torch.equal(shifted(before, d, r), after)
        ]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) > 12, "they go many ways"
    assert {d for d, _ in seen} == {r for _, r in seen} == {-2, -1, 0, 1, 2}


def test_not_moved_at_all():
    assert torch.equal(augmentation.move(images(), 0, BLACK, generator()), images())


def test_about_half_are_mirrored():
    x = images(200)
    turned = augmentation.mirror(x, generator())
    same = [torch.equal(a, b) for a, b in zip(x, turned, strict=True)]
    assert 70 < sum(same) < 130
    assert all(s or torch.equal(a.flip(2), b) for s, a, b in zip(same, x, turned, strict=True))


def test_the_same_draws_are_the_same_images():
    for draw in (
        lambda g: augmentation.move(images(), 2, BLACK, g),
        lambda g: augmentation.mirror(images(), g),
    ):
        assert torch.equal(draw(generator(3)), draw(generator(3)))
        assert not torch.equal(draw(generator(3)), draw(generator(4)))
