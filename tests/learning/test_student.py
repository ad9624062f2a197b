"""What a student leaves is what it learned: its own pass, bit by bit."""

import copy

import pytest
import torch
from learned_problems import START, problem, residual


def learned(activation_bits):
    """A student whose values are far from where they began, and its images."""
    from sq.learning.student import Student

    given = problem(residual(), activation_bits=activation_bits)
    student = Student(given, START, 1e-3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for own in student.values.parameters():
            own.mul_(1 + 0.3 * torch.rand(own.shape, generator=generator))
        for layer in student.roundings.values():
            layer.alpha.copy_(torch.randn(layer.alpha.shape, generator=generator))
    return student, given.batch.x


@pytest.mark.parametrize("activation_bits", [None, 4])
def test_finished_network_is_the_students_own_pass(activation_bits):
    student, x = learned(activation_bits)
    before = copy.deepcopy(student.net)
    with (
        torch.no_grad(),
        student.quantized_inputs(),
        student.learned_weights([*student.roundings], "fixed", None),
    ):
        wanted = student.net(x)
    done = student.finish(dict.fromkeys(student.roundings, 0.0), 0.0)
    # A student's weights are laid out channels-last; in another layout, convolutions add up in
    # another order.
    done.net.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(done.net(x), wanted)
        assert not torch.allclose(before(x), wanted, rtol=0.01)
