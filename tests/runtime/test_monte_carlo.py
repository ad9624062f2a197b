import pytest
import torch

from sq.runtime import monte_carlo


def normal(mean, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda number: (
        mean + spread * torch.randn(len(mean), generator=generator, dtype=torch.float64)
    )


def test_standard_error_is_what_the_mean_deviates_by():
    mean = torch.full((2000,), 3.0, dtype=torch.float64)
    found, error, made = monte_carlo.average(normal(mean, 2.0), 25, 1e-9)
    assert made == 25
    # 24/22 of Student's t
    assert float(((found - mean) / error).square().mean()) == pytest.approx(1, rel=0.15)
    assert float(error.mean()) == pytest.approx(2 / 5, rel=0.05)


def test_it_stops_as_soon_as_every_error_is_small():
    mean = torch.tensor([10.0, 20.0], dtype=torch.float64)
    found, error, made = monte_carlo.average(normal(mean, 1.0), 1000, 0.02)
    assert monte_carlo.MIN_DRAWS < made < 100
    assert (error <= 0.02 * found).all()


def test_estimates_stop_on_their_own():
    first, second = normal(torch.tensor([10.0]), 0.1), normal(torch.tensor([10.0]), 5.0, 1)
    asked = []

    def draw(number, places):
        asked.append(places)
        return [float((first, second)[place](number)) for place in places]

    mean, error, made = monte_carlo.average_each(draw, 2, 40, 0.05)
    assert made[0] == monte_carlo.MIN_DRAWS < made[1]
    assert asked[monte_carlo.MIN_DRAWS :] == [[1]] * (made[1] - monte_carlo.MIN_DRAWS)
    assert mean[0] == pytest.approx(10, abs=4 * error[0])


def test_signs_are_plus_and_minus_one_alike_everywhere():
    drawn = monte_carlo.signs(
        torch.empty(1000, dtype=torch.float64), torch.Generator().manual_seed(0)
    )
    assert set(drawn.tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 0.1
    assert drawn.dtype == torch.float64


def test_generators_of_different_numbers_differ():
    tuples = [
        (seed, number, place)
        for seed in (0, 1, 2**40)
        for number in (0, 1, 100)
        for place in (0, 1, 2**30)
    ]
    drawn = [
        tuple(torch.randn(4, generator=monte_carlo.generator(*numbers)).tolist())
        for numbers in tuples
    ]
    assert len(set(drawn)) == len(tuples)
    assert drawn == [
        tuple(torch.randn(4, generator=monte_carlo.generator(*numbers)).tolist())
        for numbers in tuples
    ]
