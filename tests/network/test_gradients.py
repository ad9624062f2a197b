"""Networks that cannot be differentiated, or take gradients themselves."""

import pytest
import torch
from torch import nn
from twin_networks import InPlaceBetweenLayers, Layers, images, twins

import sq
from sq.errors import SqError
from sq.network.gradients import explained

LEARN = ["quantizer.learn.iterations=1", "quantizer.learn.batch=4"]


class Detached(Layers):
    def forward(self, x):
        return self.head(self.last(self.body(self.stem(x))).mean((2, 3))).detach()


class Energy(Layers):
    """Feeds on the gradient of an energy."""

    def __init__(self, turned_on):
        super().__init__()
        self.turned_on = turned_on

    def forward(self, x):
        with torch.set_grad_enabled(self.turned_on or torch.is_grad_enabled()):
            x = x.detach().requires_grad_()
            y = torch.autograd.grad((x**3).sum(), x)[0]
            return self.head(self.last(self.body(self.stem(y))).mean((2, 3)))


def quantize(net, *words, quantizer="rtn"):
    return sq.quantize(net, images(), *words, quantizer=quantizer, bits=8)


@pytest.mark.parametrize(
    ("net", "words", "quantizer", "cause"),
    [
        (
            InPlaceBetweenLayers,
            ["sensitivity=label_free", "allocation=ilp"],
            "rtn",
            "it changes in place",
        ),
        (InPlaceBetweenLayers, LEARN, "eptq", "it changes in place"),
    ],
)
def test_the_cause_is_said_in_one_line(net, words, quantizer, cause):
    own = twins(net, net)[0]
    with pytest.raises(
        SqError, match=f"^{net.__name__} cannot be differentiated: {cause}.* choose"
    ) as caught:
        quantize(own, *words, quantizer=quantizer)
    assert len(str(caught.value).splitlines()) == 1


def test_outputs_that_are_detached_are_quantized_where_no_gradient_is_needed():
    net = Detached().eval()
    with torch.no_grad():
        wanted = net(images())
        assert float((quantize(net)(images()) - wanted).square().sum()) < 1e-3 * float(
            wanted.square().sum()
        )


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="something else"), explained(nn.Identity()):
        raise RuntimeError("something else")


@pytest.mark.parametrize("quantizer", ["rtn", "sensiquant"])
def test_networks_that_turn_gradients_on(quantizer):
    net = Energy(True).eval()
    made = quantize(
        net, "activation=mse", "activation.bits=8", "correction=bias", quantizer=quantizer
    )
    wanted = net(images()).detach()
    assert float((made(images()) - wanted).square().sum().detach()) < 1e-3 * float(
        wanted.square().sum()
    )


def test_networks_that_need_gradients_on_are_told_how():
    with pytest.raises(
        SqError, match=r"^Energy takes gradients in its forward, .* `with torch\.enable_grad\(\):`"
    ):
        quantize(Energy(False))


@pytest.mark.one_arithmetic("calls are compared with each other, whatever the order of their sums")
@pytest.mark.parametrize("words", [[], ["sensitivity=label_free", "allocation=ilp"]])
def test_the_callers_modes_make_no_difference(words):
    wanted = quantize(twins()[1], *words).state_dict()
    with torch.inference_mode():
        net, x = twins()[1], images()
        made = sq.quantize(net, x, *words, quantizer="rtn", bits=8).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in made.items())
    with torch.autocast("cpu", torch.bfloat16):
        made = quantize(twins()[1], *words).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in made.items())
    made = sq.quantize(
        twins()[1], images().requires_grad_(), *words, quantizer="rtn", bits=8
    ).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in made.items())
