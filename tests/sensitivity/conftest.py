import pytest
from sensitivity_problems import images, labels, problem, tricky


@pytest.fixture
def tricky_problem():
    return problem(tricky(), images(6), labels(6), bits=8)
