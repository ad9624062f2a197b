"""Networks that change their input, or tensors between layers, in place: results are those of the same written out."""

import ast
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from cli_helpers import CONF, ROOT, compose
from PIL import Image
from sensitivity_problems import problem
from torch import nn
from twin_networks import SHAPE, InPlaceBetweenLayers, OutOfPlaceBetweenLayers, images, twins

import sq
from sq.calibration import generated
from sq.config.instantiate import build
from sq.evaluation.evaluate import NetworkEvaluator
from sq.network.forward import forward
from sq.quantizer import layerwise, qat
from sq.solver import rtn
from sq.training.train import train
from sq.types.images import Images
from sq.types.problem import Model

ROUNDING = 384 * torch.finfo(torch.float32).eps  # of sums over 6 channels of 8 x 8 pixels
RECIPE = {
    "epochs": 2,
    "batch": 4,
    "rate": 0.05,
    "momentum": 0.9,
    "decay": 0.0,
    "crop": None,
    "move": 0,
}
RECIPE |= {"mirror": False, "temperature": 1.0}
FEW = ["quantizer.learn.iterations=2", "quantizer.learn.batch=8"]
LEARNED = {
    "adaround": FEW,
    "brecq": [*FEW, "quantizer.then.iterations=2", "quantizer.then.batch=8"],
    "qdrop": FEW,
    "eptq": FEW,
    "asq_ptq": FEW,
}
QUANTIZERS = ["rtn", "gptq", "obq", "sensiquant", "sensiquant_plus", *LEARNED]
ACTIVATIONS = ["none", "minmax", "mse", "kl", "percentile"]
CORRECTIONS = ["none", "bias", "batchnorm", "reestimate"]


class Prepared:
    """Reads images from where they stand in memory, which an image is the number of."""

    def __init__(self, x):
        self.x = x

    def __call__(self, image, resized):
        return self.x[image.getpixel((0, 0))]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_stay_as_they_are_and_the_copy_lies_in_memory_as_they_do(layout):
    seen = []

    class Overwrites(nn.Module):
        def forward(self, x):
            seen.append((x.stride(), x.clone()))
            return x.zero_()

    x = torch.randn(2, 3, 4, 5).to(memory_format=layout)
    before = x.clone()
    assert not forward(Overwrites(), x).any()
    assert torch.equal(x, before)
    assert seen[0][0] == x.stride()
    assert torch.equal(seen[0][1], x)


def test_gradients_pass_to_images():
    x = torch.ones(1, 2, requires_grad=True)
    forward(nn.ReLU(inplace=True), x).sum().backward()
    assert torch.equal(x.grad, torch.ones(1, 2))


def test_networks_are_run_by_this_function_alone():
    """A call of what is named so is a pass whose images are not protected."""

    def calls(file):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if name in ("net", "teacher", "reference") and node.args:
                    yield str(file.relative_to(ROOT))

    # The first is handed a function.
    apart = {"sq/runtime/out_of_memory.py", "sq/network/forward.py"}
    assert {name for file in Path(ROOT, "sq").rglob("*.py") for name in calls(file)} == apart


def quantized(net, words, quantizer):
    x = images()
    made = sq.quantize(net, x, *words, *LEARNED.get(quantizer, []), quantizer=quantizer, bits=4)
    assert torch.equal(x, images())  # the caller's
    with torch.no_grad():
        return made(images(seed=2))


def both(words, quantizer="rtn", pair=()):
    one, other = (quantized(net, words, quantizer) for net in twins(*pair))
    assert torch.equal(one, other)
    with torch.no_grad():
        exact = twins(*pair)[1](images(seed=2))
    return float((one - exact).square().sum() / exact.square().sum())


@pytest.mark.one_arithmetic("twins are compared with each other, whatever the order of their sums")
@pytest.mark.parametrize(
    ("activation", "correction"), [(one, other) for one in ACTIVATIONS for other in CORRECTIONS]
)
def test_activations_and_corrections(activation, correction):
    words = [f"activation={activation}", f"correction={correction}"]
    words += ["activation.bits=8"] if activation != "none" else []
    assert both(words) < 0.1


@pytest.mark.one_arithmetic("twins are compared with each other, whatever the order of their sums")
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_quantizers(quantizer):
    place = QUANTIZERS.index(quantizer)
    activation = "mse" if quantizer in LEARNED else ACTIVATIONS[place % 4 + 1]
    words = [f"activation={activation}", f"correction={CORRECTIONS[1 + place % 3]}"]
    assert both([*words, "activation.bits=8"], quantizer) < 0.1


@pytest.mark.one_arithmetic("twins are compared with each other, whatever the order of their sums")
@pytest.mark.parametrize("quantizer", ["sensiquant", "eptq"])
def test_folded_networks(quantizer):
    assert both(["fold=true", "activation=mse", "activation.bits=8"], quantizer) < 0.1


@pytest.mark.one_arithmetic("twins are compared with each other, whatever the order of their sums")
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_layers_whose_inputs_and_outputs_are_overwritten_later(correction):
    pair = (InPlaceBetweenLayers, OutOfPlaceBetweenLayers)
    assert (
        both(
            ["activation=mse", "activation.bits=8", f"correction={correction}"], "sensiquant", pair
        )
        < 0.1
    )


def problems(pair=(), count=8):
    """Return the problem of each twin on the same images, with labels."""
    for net in twins(*pair):
        x = images(count)
        yield problem(net, x, torch.arange(count) % 4, bits=8)
        assert torch.equal(x, images(count))


@pytest.mark.parametrize(
    "name", sorted(file.stem for file in (CONF / "sensitivity").glob("*.yaml"))
)
def test_sensitivities(name):
    part = compose(f"sensitivity={name}")[0]["sensitivity"]
    widths = {"bits": [3], "input_bits": [] if name in ("weight_mse", "mask_kl") else [4]}
    knobs = {k: ({"draws": 2, "images": 8} | widths).get(k, value) for k, value in part.items()}
    one, other = (build(knobs, "sensitivity")(own) for own in problems())
    for ours, theirs in ((one.weights, other.weights), (one.inputs, other.inputs)):
        for layer, row in theirs.items():
            # To the bit, but for gradients of single images: vmap sums them in the order of another
            # layout.
            assert ours[layer] == (pytest.approx(row, rel=ROUNDING) if name == "fisher" else row)


@pytest.mark.parametrize("pair", [(), (InPlaceBetweenLayers, OutOfPlaceBetweenLayers)])
def test_layers_solved_for_quantized_inputs(pair):
    def solved(own):
        own = replace(
            own, bits={layer.name: 3 for layer in own.model.layers}, activations=own.inputs.grids()
        )
        own = replace(own, batch=replace(own.batch, inputs="quantized"))
        return layerwise.quantize(own, solve=rtn.solve, damp=0.01)

    one, other = map(solved, problems(pair))
    assert one.digest() == other.digest()
    assert [a.report["relative_error"] for a in one.layers.values()] == [
        b.report["relative_error"] for b in other.layers.values()
    ]


@pytest.mark.parametrize("distill", [0.0, 0.5])
def test_training(distill):
    def trained(own):
        split = Images(
            [f"train/{i}" for i in range(8)], own.batch.y, lambda i: Image.new("L", (1, 1), i)
        )
        own = replace(
            own, bits={layer.name: 4 for layer in own.model.layers}, activations=own.inputs.grids()
        )
        own = replace(own, train=split, model=replace(own.model, prepare=Prepared(own.batch.x)))
        return qat.quantize(
            own,
            adaptive=False,
            images=None,
            checkpoint_every=9,
            seed=0,
            train=partial(train, **RECIPE | {"distill": distill}),
        )

    one, other = map(trained, problems())
    assert one.digest() == other.digest()
    assert one.report["curves"] == other.report["curves"]


def test_evaluation():
    split = Images(
        [f"test/{i}" for i in range(6)], torch.zeros(6), lambda i: Image.new("L", (1, 1), i)
    )
    one, other = twins()
    x = images(6)
    model = Model(one, [], SHAPE, "", Prepared(x))
    measuring = NetworkEvaluator(
        model, lambda model, seen: list(seen), split, 4, torch.device("cpu")
    )
    for _ in range(2):
        for (got, batch), (wanted, _) in zip(
            measuring.measure(one), measuring.measure(other), strict=True
        ):
            assert torch.equal(got, wanted)
            assert torch.equal(batch.x, images(6)[[int(name[5:]) for name in batch.ids]])


def test_losses_of_generated_images():
    def drawn(net):
        x, y = images(4).requires_grad_(), torch.arange(4)
        method = generated.Labelled(net, confidence=0.9, tv=0.5, l2=0.1, bn_weight=0.1)
        loss = method.loss(x, y)  # total variation and squares are of the images as they were
        gradient = torch.autograd.grad(loss, x)[0]
        with torch.no_grad():
            return float(loss), gradient, method.figures(x, y), method.accepted(x, y)

    (one, by_one, *rest), (other, by_other, *others) = map(drawn, twins())
    assert one == other
    assert float((by_one - by_other).norm()) < ROUNDING * float(by_other.norm())
    assert rest[0] == others[0]
    assert torch.equal(rest[1], others[1])
