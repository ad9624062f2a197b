"""Networks in one file: what is read back is what was measured, from the file alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from cli_helpers import ROOT, call, records
from safetensors.torch import load as tensors_of

import sq
from sq.activation import insertion
from sq.errors import SqError
from sq.export import container
from sq.network import residual_adds
from sq.records import record

RUNS = {
    "codes of 4 bits": ["bits=4"],
    "mixed bits": ["allocation=ilp", "bits=3.5", "sensitivity.bits=[2,3,4,8]"],
    "levels": ["bits=3", "grid=post"],
    "inputs and operands of additions": [
        "activation=mse",
        "activation.bits=4",
        "activation.observe.adds=true",
    ],
    "folded, ends apart": [
        "fold=true",
        "ends=8bit",
        "bits=3",
        "grid.symmetric=true",
        "activation=minmax",
    ],
    "ends in full precision": ["ends=keep", "bits=2", "correction=bias"],
    "adaptive steps": [
        "quantizer=asq_ptq",
        "quantizer.learn.iterations=2",
        "quantizer.learn.batch=8",
        "activation=mse",
    ],
    "trained": [
        "quantizer=asq",
        "quantizer.images=64",
        "quantizer.train.epochs=1",
        "activation=mse",
        "grid=apot",
    ],
}


def exported(folder, *words):
    """Run with `export=packed`; return the record and the file."""
    done = call(folder, "export=packed", *words)
    assert done.returncode == 0, done.stderr
    (made,) = records(folder)
    return made, folder / "outputs" / made["export"]["file"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return the record and the file of a run of two bits."""
    return exported(tmp_path_factory.mktemp("plain"), "bits=2")


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_what_is_read_back_is_what_was_measured(words, tmp_path):
    made, file = exported(tmp_path, *words)
    own = made["export"]
    assert own["bytes"] == file.stat().st_size
    assert own["figures"]["top1"] == made["results"]["top1"]
    assert own["bytes"] == pytest.approx(made["results"]["bytes"], rel=0.03)
    net = sq.load(file)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    fed = insertion.attached(net) | residual_adds.attached(net)
    assert bool(fed) == any("activation=" in word for word in words)
    layers = [(layer["name"], layer["bits"]) for layer in made["layers"]]
    assert layers
    for name, bits in layers:
        values = net.get_submodule(name).weight.detach().flatten(1)
        most = 2**bits + (1 if "grid=post" in words else 0)
        assert max(len(channel.unique()) for channel in values) <= most, name


def test_the_key_and_config_of_the_run_are_in_it(plain):
    made, file = plain
    layout, _ = container.read(file)
    assert layout["key"] == made["key"] == file.name.partition(".")[0]
    assert layout["config"] == {
        n: v for n, v in made["config"].items() if n not in record.BOOKKEEPING
    }
    assert str(file.parents[2]) not in json.dumps(layout), "no path of this machine"


def test_runs_without_export_keep_their_keys(tmp_path):
    done = call(tmp_path, "bits=3")
    assert done.returncode == 0
    (plain,) = records(tmp_path)
    assert "export" not in plain
    assert plain["key"] == record.key({n: v for n, v in plain["config"].items() if n != "export"})
    call(tmp_path, "bits=3", "export=packed")
    assert len(records(tmp_path)) == 2


FAR = """
import sys
import torch
import sq

net = sq.load(sys.argv[1])
x = torch.rand(4, *map(int, sys.argv[2].split(",")), generator=torch.Generator().manual_seed(1))
torch.save(net(x), sys.argv[3])
"""


def test_it_is_read_where_there_is_no_checkpoint(tmp_path, needs_data):
    data = str(Path(os.environ["SQ_DATA"]).resolve())
    words = [
        "model=resnet20",
        "dataset=cifar10",
        "dataset.every=50",
        "bits=4",
        "correction=batchnorm",
    ]
    made, file = exported(
        tmp_path, *[word for word in words if not word.startswith("dataset.every")]
    )
    assert data not in file.read_bytes().decode("latin1")
    kept = {name: value for name, value in os.environ.items() if name != "SQ_DATA"} | {
        "PYTHONPATH": str(ROOT)
    }
    out = tmp_path / "out.pt"
    processes.run(
        [sys.executable, "-c", FAR, str(file), "3,32,32", str(out)],
        env=kept,
        cwd=tmp_path,
        check=True,
    )
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(torch.load(out), sq.load(file)(x), atol=1e-5)
    stored = Path(data) / "weights" / "cifar10_resnet20.pth"
    floats = sum(
        t.numel() * t.element_size() for t in torch.load(stored, weights_only=True).values()
    )
    assert made["export"]["bytes"] <= 0.14 * floats


def forged(file, change, other):
    """Write the `file` as `other`, with something changed in its layout, so that its hash is right."""
    layout, tensors = container.read(file)
    change(layout)
    container.write(other, layout, tensors)


def rename(layout):
    layout["state"][0]["name"] = "elsewhere"


def shrink(layout):
    layout["weights"][0]["codes"]["shape"] = [1, 1, 1]


def misname(layout):
    layout["weights"][0]["layer"] = "no.such"


def point(layout):
    layout["config"]["model"]["_target_"] = "os.system"


def call_another(layout):
    layout["config"]["model"]["_target_"] = "sq.runtime.torch_setup.import_torch"


def nest(layout):
    layout["config"]["model"] |= {
        "arguments": {"a": {"_target_": "pathlib.Path.touch", "_args_": ["touched"]}}
    }


def look_up(layout):
    layout["config"]["model"]["weights"] = (
        "${oc.create:{_target_: pathlib.Path.touch, _args_: [touched]}}"
    )


def grow(layout):
    layout["weights"][0]["codes"] |= {"shape": [2**30, 2**30, 1], "bits": 0}


def thin(layout):
    layout["weights"][0]["codes"]["bits"] = 0


def widen(layout):
    layout["inputs"].append(
        {"name": "head", "grid": {"grid": "adaptive", "channels": 10**9, "axis": 1, "learned": []}}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"parameters differ: elsewhere, .*export it again"),
        (shrink, r"does not fit the network it names"),
        (misname, r"does not fit the network it names .*has no attribute"),
        (point, r"model\._target_=os\.system: only names under sq\. are imported"),
        (call_another, r"sq\.runtime\.torch_setup\.import_torch is no model of sq"),
        (nest, r"a setting _target_ of the network"),
        (look_up, r"a setting of the network that is to be looked up"),
        (grow, r"is of another size"),
        (thin, r"codes of 0 bits"),
        (widen, r"an adapter has fewer numbers than channels"),
        (lambda layout: layout.pop("weights"), r"does not fit the network it names"),
        (
            lambda layout: layout["inputs"].append({"name": "head", "grid": {"grid": "levels"}}),
            r"does not fit",
        ),
    ],
)
def test_a_file_of_another_network_is_refused(change, message, plain, tmp_path):
    other = tmp_path / plain[1].name
    forged(plain[1], change, other)
    with pytest.raises(SqError, match=message) as caught:
        sq.load(other)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("touched").exists()


FUZZ = """
import copy, json, random, resource, sys
from pathlib import Path
import sq
from sq.export import container
from sq.errors import SqError

file, other = Path(sys.argv[1]), Path(sys.argv[2])
layout, tensors = container.read(file)
draw = random.Random(0)
VALUES = [None, -1, 0, 1, 2**31, 2**62, 1.5, "", "x", [], {}, [2**40], [-1, -1], True]
sq.load(file)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def places(value, path=()):
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


every = [path for path in places(layout) if path and path[0] != "config"]
refused = 0
for _ in range(int(sys.argv[3])):
    made = copy.deepcopy(layout)
    *way, last = draw.choice(every)
    own = made
    for key in way:
        own = own[key]
    own[last] = draw.choice(VALUES)
    container.write(other, made, tensors)
    try:
        sq.load(other)
    except SqError as error:
        assert len(str(error).splitlines()) == 1, error
        refused += 1
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(json.dumps([refused, grown]))
"""


def test_layouts_that_were_made_up_are_refused_in_one_line_and_little_memory(tmp_path):
    _, file = exported(tmp_path, "activation=mse")
    words = [sys.executable, "-c", FUZZ, str(file), str(tmp_path / "other"), "60"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, grown = json.loads(done.stdout.splitlines()[-1])
    assert refused > 40
    assert grown < 2**30


def test_a_file_that_computes_something_else_is_not_left(tmp_path, monkeypatch):
    write = container.write

    def wrong(file, layout, tensors):
        write(file, layout, tensors | {"codes": tensors["codes"] ^ 1})

    monkeypatch.setattr(container, "write", wrong)
    done = call(tmp_path, "export=packed")
    assert done.returncode == 1
    assert "was not read back from" in done.stderr
    assert list((tmp_path / "outputs" / "runs").glob("*safetensors*")) == []
    (made,) = records(tmp_path)
    assert made["status"] == "failed"


def test_codes_are_stored_in_their_bits_and_never_as_floats(plain):
    made, file = plain
    weights = sum(layer["weights"] for layer in made["layers"])
    stored = tensors_of(file.read_bytes())
    assert len(stored["codes"]) < weights * 2 / 8 * 1.02
    rest = made["results"]["bytes_full"] // 4 - weights
    channels = len(stored["numbers"]) - rest
    assert 0 < channels < weights / 20, "scales"
