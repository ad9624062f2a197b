import pytest
import torch

from sq.learning import schedules


def test_beta_meets_its_ends_and_waits_for_the_warm_up():
    at = [schedules.beta(t, 20.0, 2.0, 0.2) for t in (0.0, 0.2, 0.6, 1.0)]
    assert at == pytest.approx([20.0, 20.0, 11.0, 2.0])
    assert schedules.beta(1.0, 20.0, 2.0, 1.0) == 20.0  # nothing but warm-up


@pytest.mark.parametrize("how", ["linear", "cosine", "log", "bernoulli"])
def test_full_precision_goes_from_all_to_none(how):
    at = [schedules.full_precision_share(how, t / 10, 0.3) for t in range(11)]
    assert at[0] == pytest.approx(1.0)
    assert at[-1] == pytest.approx(0.0, abs=1e-12)
    assert at == sorted(at, reverse=True)
    assert 0.1 < at[5] < 0.9


def test_forms_between_the_ends():
    assert schedules.full_precision_share("cosine", 1 / 3, 0.0) == pytest.approx(3**0.5 / 2)
    assert schedules.full_precision_share("log", 0.5, 0.0) == pytest.approx(
        0.259637, rel=1e-5
    )  # -log10(0.55)


def test_fixed_and_none():
    assert [schedules.full_precision_share("fixed", t, 0.3) for t in (0.0, 0.5, 1.0)] == [0.3] * 3
    assert [schedules.full_precision_share("none", t, 0.3) for t in (0.0, 0.5, 1.0)] == [0.0] * 3


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 16, 9, 9)])
def test_drawn_elements_have_the_share_and_follow_from_the_seed(shape):
    x = torch.zeros(shape)
    x = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x

    def draw(seed):
        return schedules.mix("fixed", 0.0, 0.25, torch.Generator().manual_seed(seed)).quantized(x)

    m = draw(0)
    assert m.shape == x.shape
    assert set(m.unique().tolist()) == {0.0, 1.0}
    assert float(m.mean()) == pytest.approx(0.75, abs=4 * (0.1875 / x.numel()) ** 0.5)
    assert torch.equal(m, draw(0))
    assert not torch.equal(m, draw(1))


@pytest.mark.parametrize(("share", "m"), [(0.0, 1.0), (1.0, 0.0)])
def test_all_or_nothing_is_not_drawn(share, m):
    assert schedules.mix("fixed", 0.5, share, torch.Generator()).quantized(torch.zeros(3)) == m


def test_one_number_for_all_elements():
    assert schedules.mix("linear", 0.25, 0.0, torch.Generator()).quantized(torch.zeros(3)) == 0.25
