import pytest
from torch import nn

from sq.allocation import uniform
from sq.errors import SqError
from sq.network import geometry
from sq.types.costs import Budget, Cost


@pytest.fixture
def found():
    return geometry.find(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))[0]


def test_every_layer_gets_the_budget(found):
    assert uniform.allocate(Cost({}), found, Budget(3.0)).weights == {"0": 3, "1": 3}


def test_a_mean_is_refused(found):
    with pytest.raises(SqError, match=r"bits=3.5.*whole"):
        uniform.allocate(Cost({}), found, Budget(3.5))


def test_settled_layers_keep_their_bits(found):
    assert uniform.allocate(Cost({}), found, Budget(3.0, {"1": 8})).weights == {"0": 3, "1": 8}
