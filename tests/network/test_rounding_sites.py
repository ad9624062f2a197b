import pytest
import torch
from cli_helpers import CONF
from sensitivity_problems import images, labels, problem, tricky

from sq.errors import SqError
from sq.network import rounding_sites
from sq.network.rounding_sites import Sites
from sq.network.weight_swap import original_weight, swapped_weights
from sq.types.problem import Problem


@pytest.fixture
def own():
    return problem(tricky(), images(4), labels(4), bits=8)


def test_nearest_is_the_grid_fitted_to_the_layers_own_weight(own):
    made = Sites(own, "weights", [3])
    layer = next(s for s in own.model.layers if s.name == "blocks.0.second")
    W = layer.module.weight.detach().reshape(2, 2, -1)
    wanted = own.fit(W, 3).nearest(W).view_as(layer.module.weight)
    with swapped_weights(
        own.model, {layer.name: torch.zeros_like(wanted)}
    ):  # not to what it has been lent
        assert torch.equal(made.nearest(layer, 3, original_weight(layer)), wanted)
    assert torch.equal(
        made.error(layer, 3, original_weight(layer)), wanted - layer.module.weight.detach()
    )


def test_rounded_weights_are_laid_out_as_the_weight_is(own):
    own.model.net.to(memory_format=torch.channels_last)
    layer = own.model.layers[0]
    made = Sites(own, "weights", [3]).nearest(layer, 3, original_weight(layer))
    assert made.stride() == layer.module.weight.stride()
    assert not made.is_contiguous()


def test_grids_are_fitted_once(own):
    calls = []
    made = Sites(
        own.__class__(own.model, own.batch, own.statistics, lambda W, b: calls.append(b)),
        "weights",
        [2, 3],
    )
    for _ in range(2):
        for layer, bits in made.choices():
            made.grid(layer, bits)
    assert sorted(calls) == sorted([2, 3] * len(own.model.layers))


def test_settled_layers_have_their_bits_alone(own):
    own = Problem(**{**vars(own), "fixed": {"stem": 8}})
    made = Sites(own, "weights", [2, 3])
    rest = len(made.layers) - 1
    assert [(layer.name, bits) for layer, bits in made.choices()][:3] == [
        ("stem", 8),
        (made.layers[1].name, 2),
        (made.layers[1].name, 3),
    ]
    assert made.rows(list(range(2 * rest + 1)))["stem"] == {8: 0}
    table = torch.arange(2.0 * (rest + 1)).view(-1, 2)
    assert made.by_choice(table).tolist() == [0.5, *range(2, 2 * rest + 2)]
    assert made.repeat(table[:, 0]).tolist()[:4] == [0, 2, 2, 4]
    stem, other = own.model.net.stem, own.model.net.again
    with rounding_sites.all_rounded(made, 2):
        assert torch.equal(stem.weight, made.nearest(made.layers[0], 8, stem._parameters["weight"]))
        assert other.weight.unique().numel() <= 4 * len(other.weight)


def test_inputs_without_grids_cannot_be_scored():
    with pytest.raises(SqError, match=r"input_bits=\[4, 8\].*activation=none.*set activation=mse"):
        rounding_sites.score_sites(
            problem(tricky(), images(2), labels(2)), [2], [4, 8], lambda own: {}
        )


def test_metrics_of_weights_refuse_inputs():
    with pytest.raises(
        SqError, match=r"sensitivity=mask_kl scores weights alone: set sensitivity.input_bits=\[\]"
    ):
        rounding_sites.refuse_inputs("mask_kl", [4])
    rounding_sites.refuse_inputs("mask_kl", [])


def test_metrics_that_score_inputs_are_all_named():
    with pytest.raises(SqError) as caught:
        rounding_sites.refuse_inputs("mask_kl", [4])
    every = {file.stem for file in (CONF / "sensitivity").glob("*.yaml")} - {
        "mask_kl",
        "weight_mse",
    }
    assert all(name in str(caught.value) for name in every)
