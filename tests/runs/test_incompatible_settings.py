"""What the config alone shows to be impossible is said before anything is loaded."""

import pytest
from cli_helpers import call, compose, error_line, snapshot

from sq.runs import incompatible_settings

PRICED = "sensitivity.input_bits=[4]"
DETECTOR = ["model=yolov5n", "dataset=coco_sample"]
SENSIBLE = [
    [],
    DETECTOR,
    ["allocation=pareto", "trials=front"],
    ["calibration=bn_matched", "sensitivity=interaction"],
    ["calibration=bn_matched", "sensitivity=measured", "sensitivity.loss=kl"],
    ["calibration=bn_matched", *DETECTOR],
    ["calibration=generated", "sensitivity=fisher", PRICED, "activation=mse", "allocation=ilp"],
    ["calibration.inputs=quantized"],
    ["quantizer=lsq"],
    ["quantizer=asq", "activation=mse"],
    ["quantizer=asq_ptq", "activation=minmax"],
    ["quantizer=brecq"],
    ["allocation=ilp", "allocation.average_bits=null", "allocation.bops=1e9"],
]
SENSELESS = [
    (["trials=front"], "set allocation=pareto"),
    (["trials=random", "calibration.inputs=quantized"], "calibration.inputs=reference"),
    (["trials=random", *DETECTOR], "set trials=none"),
    (["calibration=generated", *DETECTOR], "set calibration=bn_matched"),
    *[
        (["calibration=bn_matched", f"sensitivity={name}"], "have no labels")
        for name in ("fisher", "trace", "noise", "grad_l1", "measured")
    ],
    (
        ["calibration=bn_matched", "sensitivity=interaction", "sensitivity.variant=share"],
        "have no labels",
    ),
    ([PRICED], "set activation=mse"),
    ([PRICED, "activation=mse", "sensitivity=weight_mse"], "weights alone"),
    ([PRICED, "activation=mse", "sensitivity=mask_kl"], "weights alone"),
    (["allocation=ilp", "allocation.inputs=weights"], "or inputs=free"),
    (["allocation=ilp", "allocation.average_input_bits=5"], "bits of inputs have no sensitivity"),
    (["allocation=ilp", "allocation.latency=5"], "should name a CSV file"),
    (["allocation=ilp", "allocation.latency_table=none.csv"], "none.csv: No such file"),
    (["allocation=ilp", "allocation.average_bits=null"], "nothing bounds the bits"),
    (["model=resnet50", "dataset=coco"], "choose all of one kind"),
    (["quantizer=lsq", *DETECTOR], "train classifiers on labels"),
    (["quantizer=asq"], "set activation=mse, or choose a quantizer without adapters"),
    (["quantizer=asq_ptq"], "without adapters"),
    (["quantizer=brecq", "quantizer.then.rates.adapter=0.01"], "without adapters"),
    *(
        (["grid=" + name, f"bits={bits}"], "levels for 2 to 8 bits")
        for name, bits in (("post", 1), ("lcq", 9))
    ),
]


@pytest.mark.parametrize("words", SENSIBLE)
def test_what_makes_sense_passes(words):
    assert incompatible_settings.find(*compose(*words)) == []


@pytest.mark.parametrize(("words", "said"), SENSELESS)
def test_each_contradiction_is_named_alone(words, said):
    (line,) = incompatible_settings.find(*compose(*words))
    assert said in line


@pytest.mark.parametrize("sweep", [False, True])
def test_nothing_is_begun(tmp_path, sweep):
    done = call(tmp_path, "trials=front", "bits=3,4" if sweep else "bits=3", sweep=sweep)
    assert "set allocation=pareto" in error_line(done)
    assert snapshot(tmp_path / "results") == {}


def test_a_table_with_a_bad_line_is_named(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("layer,bits,input_bits,ms\na,4,32,fast\n")
    words = ["allocation=ilp", f"allocation.latency_table={file}"]
    (line,) = incompatible_settings.find(*compose(*words))
    assert "line 2" in line
