"""One part after the other: the methods in terms of each other, and parts that cannot be."""

import pytest
import torch
from cli_helpers import compose
from learned_problems import problem, quantizer, residual
from sensitivity_problems import images, labels, tricky
from sensitivity_problems import problem as tricky_problem

from sq.config.instantiate import build
from sq.errors import SqError
from sq.quantizer import blockwise

JOINT = [
    "learn.keep=fixed",
    "learn.share=0.0",
    "learn.rates.input=0.001",
    "learn.rates.rounding=0.05",
]


def codes(done):
    return torch.cat([layer.codes.flatten() for layer in done.layers.values()])


def weights(done):
    return torch.cat([own.flatten() for own in done.net.state_dict().values()])


def test_brecq_with_blocks_of_one_layer_is_adaround():
    given = problem(residual(), bits=2, activation_bits=4)
    names = [layer.name for layer in given.model.layers]
    brecq = _without_then(
        quantizer("brecq", f"named={names}", "learn.keep=none", "learn.share=0.0")
    )(given)
    adaround = quantizer("adaround")(given)
    assert torch.equal(weights(brecq), weights(adaround))
    assert adaround.report["flipped"] > 0
    assert brecq.report["units"] == names


def _without_then(made):
    made.keywords["then"] = None
    return made


def test_qdrop_without_drop_is_brecq():
    given = problem(residual(), bits=2, activation_bits=4)
    brecq = _without_then(quantizer("brecq", *JOINT))(given)
    qdrop = quantizer("qdrop", "drop=0.0", "learn.rates.input=0.001", "learn.rates.rounding=0.05")(
        given
    )
    assert torch.equal(weights(brecq), weights(qdrop))
    dropped = quantizer("qdrop", "learn.rates.input=0.001", "learn.rates.rounding=0.05")(given)
    assert not torch.equal(weights(dropped), weights(qdrop))


def test_blocks_are_found_and_learned_whole():
    done = quantizer("brecq")(problem(residual()))
    assert done.report["units"] == ["0", "2", "3", "5"]
    assert {row["part"] for row in done.report["curves"]} == {"0", "2", "3", "5"}


def test_fisher_weights_change_what_is_learned():
    given = problem(residual(), bits=2)
    plain, weighed = (
        quantizer("brecq", f"loss={loss}", "learn.rates.rounding=0.1")(given)
        for loss in ("mse", "fisher")
    )
    assert not torch.equal(codes(plain), codes(weighed))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["2"], "they miss 0, 3.first, 3.second"),
        (["0", "2", "3", "5", "2.first"], "layer 2.first is in several of them"),
        (["nothing"], "'nothing' is no module"),
    ],
)
def test_block_list_that_misses_or_repeats_layers(named, message):
    with pytest.raises(SqError, match=message):
        quantizer("brecq", f"named={named}")(problem(residual()))


def test_layer_that_is_called_twice_cannot_be_learned_alone():
    given = tricky_problem(tricky(), images(16), labels(16))
    given.bits.update({layer.name: 3 for layer in given.model.layers})
    with pytest.raises(SqError, match=r"again is called 2 times a pass.*choose quantizer=eptq"):
        quantizer("adaround")(given)


def test_names_of_blocks_are_refused_where_layers_are_learned_alone():
    with pytest.raises(
        SqError, match=r"quantizer\.named=\['nothing'\]: .*leave it out, or choose quantizer=brecq"
    ):
        quantizer("adaround", "named=[nothing]")(problem(residual()))


@pytest.mark.parametrize(("drop", "kept"), [("0.0", 2), ("0.5", 3)])
def test_inputs_of_full_precision_are_kept_only_where_some_are_dropped_in(drop, kept, monkeypatch):
    made, call = [], blockwise._PartTargets.__call__
    monkeypatch.setattr(
        blockwise._PartTargets,
        "__call__",
        lambda self, index: made.append(call(self, index)) or made[-1],
    )
    quantizer("qdrop", f"drop={drop}")(problem(residual(), activation_bits=4))
    assert {len(tensors) for tensors in made} == {kept}


def test_blocks_that_the_model_lists_are_taken():
    config, _ = compose("quantizer=brecq", "+model.blocks=[stem,body]")
    assert config["quantizer"]["named"] == ["stem", "body"]
    assert "blocks" not in build(config["model"], "model").keywords
    with pytest.raises(SqError, match=r"quantizer\.blocks: not a setting"):
        build(config["quantizer"] | {"blocks": []}, "quantizer")
    with pytest.raises(SqError, match=r"quantizer\.named=stem"):
        build(compose("quantizer=brecq", "+model.blocks=stem")[0]["quantizer"], "quantizer")
