"""What a record says of a quantized network, counted by hand."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from sq.evaluation import summarize
from sq.hessian import layer_statistics
from sq.network import first_last, geometry, tracing
from sq.quantizer import layerwise
from sq.solver import rtn
from sq.types.images import Calibration, Dataset, Images
from sq.types.problem import Model, Problem


@dataclass(frozen=True)
class Measured:
    figures: dict

    def against(self, full):
        return {"drop": full.figures["top1"] - self.figures["top1"]}


class Levels:
    """A grid of layer inputs, as far as a summary looks at it."""

    levels = 256


def made(fit, policy, activations=()):
    torch.manual_seed(0)
    # Weights 3x1x9, 4x3 and 2x4; 16, 16 and 1 positions; 3 and 2 biases; a BatchNorm of 4 x 3
    # numbers and a counter.
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
    )
    net.append(nn.Flatten()).append(nn.Linear(4, 2)).eval()
    x = torch.randn(5, 1, 4, 4)
    batch = Calibration(x, torch.zeros(5).long(), [str(i) for i in range(5)])
    whole = tracing.trace(Model(net, geometry.find(net)[0], (1, 4, 4), "c" * 64, None), x[:1])
    model = first_last.without_kept_layers(whole, policy)
    found = layer_statistics.collect(model, batch, batch_size=5, positions=1.0, seed=0)
    bits = {layer.name: 3 for layer in model.layers} | first_last.fixed_bits(whole, policy)
    problem = Problem(model, batch, found, fit, bits, {name: Levels() for name in activations})
    quantized = layerwise.quantize(replace(problem, activations={}), solve=rtn.solve, damp=0.01)
    return summarize.summarise(whole, problem, quantized), quantized


NUMBERS = 27 + 3 + 12 + 12 + 8 + 2  # in 32 bits; the BatchNorm's counter is no parameter
MACS = {"0": 27 * 16, "2": 12 * 16, "5": 8}


def by_name(found, what):
    return {layer["name"]: layer[what] for layer in found["layers"]}


def grid_bytes(quantized):
    return sum(4 * layer.grid.parameters() for layer in quantized.layers.values())


def test_all_layers_alike(fit):
    found, quantized = made(fit, "all")
    figures = found["results"]
    assert by_name(found, "macs") == MACS
    assert by_name(found, "bits") == {"0": 3, "2": 3, "5": 3}
    assert by_name(found, "activation_bits") == {"0": 32, "2": 32, "5": 32}
    assert figures["bits"] == 3
    assert figures["bytes_full"] == 4 * NUMBERS
    # codes: 81, 36 and 24 bits, each layer's in whole bytes
    assert figures["bytes"] == 11 + 5 + 3 + grid_bytes(quantized) + 4 * (NUMBERS - 47)
    assert figures["bops"] == sum(MACS.values()) * 3 * 32
    assert figures["bops_full"] == sum(MACS.values()) * 32 * 32
    assert figures["codes"] == quantized.digest()
    assert found["kept_layers"] == found["skipped_layers"] == []
    assert found["checkpoint"] == "c" * 64


def test_first_and_last_layers_at_8_bits_and_inputs_too(fit):
    found, quantized = made(fit, "8bit", activations=("0", "2"))
    figures = found["results"]
    assert by_name(found, "bits") == {"0": 8, "2": 3, "5": 8}
    assert by_name(found, "activation_bits") == {"0": 8, "2": 8, "5": 32}
    assert figures["bits"] == pytest.approx((27 * 8 + 12 * 3 + 8 * 8) / 47)
    assert figures["bytes"] == 27 + 5 + 8 + grid_bytes(quantized) + 4 * (NUMBERS - 47)
    assert figures["bops"] == MACS["0"] * 8 * 8 + MACS["2"] * 3 * 8 + MACS["5"] * 8 * 32


def test_layers_left_in_full_precision_count_as_such(fit):
    found, quantized = made(fit, "keep")
    figures = found["results"]
    assert [layer["name"] for layer in found["layers"]] == [*quantized.layers] == ["2"]
    assert found["kept_layers"] == ["0", "5"]
    assert figures["bits"] == 3
    assert figures["bytes"] == 5 + grid_bytes(quantized) + 4 * (NUMBERS - 12)
    assert figures["bops"] == MACS["2"] * 3 * 32 + (MACS["0"] + MACS["5"]) * 32 * 32
    assert figures["bops_full"] == sum(MACS.values()) * 32 * 32


def test_figures_of_both_networks_stand_side_by_side():
    found = summarize.compare(
        Measured({"top1": 70.0, "top5": 90.0}), Measured({"top1": 71.5, "top5": 91.0})
    )
    assert found == {
        "headline": "top1",
        "top1": 70,
        "top5": 90,
        "top1_full": 71.5,
        "top5_full": 91,
        "drop": 1.5,
    }


def split(count):
    return Images([f"test/{i}" for i in range(count)], torch.zeros(count).long(), None)


def test_images_that_could_not_be_read_are_named_and_not_counted():
    draw = partial(Calibration, torch.zeros(0), torch.zeros(0))
    batch = draw(["b", "a"], left_out=("c",))
    dataset = Dataset(split(0), split(4), 10, "mine")
    found = summarize.images(dataset, batch, ["test/2"], "a0")
    assert found["image_set"] == "mine"
    assert (found["calibration"]["images"], found["calibration"]["left_out"]) == (2, ["c"])
    assert found["calibration_ids"] == ["a", "b"]
    assert (found["evaluation"]["images"], found["evaluation"]["left_out"]) == (3, ["test/2"])
    again = summarize.images(dataset, draw(["a", "b"]), [], None)
    assert again["calibration"]["ids"] == found["calibration"]["ids"], (
        "in whichever order they were drawn"
    )
    assert again["evaluation"]["ids"] != found["evaluation"]["ids"]
    assert found["evaluation"]["right"] == "a0"
    assert "right" not in again["evaluation"]
    assert (
        summarize.images(dataset, draw(["a", "d"]), [], None)["calibration"]["ids"]
        != found["calibration"]["ids"]
    )


def test_what_trials_measured_stays_theirs_and_ranks_are_results():
    results = {"top1_full": 99.0}
    found = summarize.trials(
        results, {"spearman": 0.9, "kendall_low": 0.5, "top1_full": 98.0, "front": []}
    )
    assert results == {"top1_full": 99.0, "spearman": 0.9, "kendall_low": 0.5}
    assert found == {"trials": {"top1_full": 98.0, "front": []}}
    assert summarize.trials(results, {}) == {}
