"""Benchmarks' settings and files: checked before anything is loaded, and what their headers say."""

import re
import subprocess
import sys

import pytest
import torch
from cli_helpers import CONF, EXPERIMENTS, ROOT
from omegaconf import OmegaConf

from sq.bench import __main__ as bench
from sq.bench import settings
from sq.config.instantiate import build
from sq.errors import SqError
from sq.records.experiments import header

FILES = sorted(EXPERIMENTS.glob("bench_*.yaml"))


def refused(*words, capsys):
    assert bench.main(list(words)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("sq: ")
    return line


def test_there_are_benchmarks():
    assert {"digits", "resnet50", "synthetic"} <= set(settings.known())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_benchmark_is_what_its_header_says(file):
    name = file.stem.removeprefix("bench_")
    parts = header(file)
    assert {"Question", "Run", "Cost", "Expect", "Source"} <= set(parts)
    assert parts["Question"].endswith("?")
    assert parts["Run"] == f"python -m sq.bench {name}"
    own = settings.load(name, [])
    assert own.name == file.stem
    try:
        layers = len(build(own.source, "source")(own.seed, torch.device("cpu")))
    except SqError as error:
        if "SQ_DATA" not in str(error):  # foreign weights are not everywhere
            raise
        layers = int(re.match(r"\d+", parts["Cost"])[0])
    counts = [layers, len(settings.methods(own)), len(own.bits), own.repeats]
    wanted = (
        rf"{counts[0]} layers? x {counts[1]} quantizers x {counts[2]} bit-widths "
        rf"x {counts[3]} repeats = (\d+) solves, "
    )
    found = re.match(wanted, parts["Cost"])
    assert found, parts["Cost"]
    assert int(found[1]) == counts[0] * counts[1] * counts[2] * counts[3]
    settings.choose("grid", own.grid, own.seed)


def test_labels_come_from_choice_and_overrides():
    own = settings.load(
        "digits",
        [
            'quantizers=[rtn,"sensiquant solve.order=static damp=0.1",{quantizer: obq,sample_rows: 4,above: 100}]'
        ],
    )
    rtn, sensiquant, obq = settings.methods(own)
    assert (rtn.label, sensiquant.label, obq.label) == (
        "rtn",
        "sensiquant order=static damp=0.1",
        "obq",
    )
    assert sensiquant.damp == 0.1
    assert sensiquant.solve["order"] == "static"
    assert (
        sensiquant.solve["rankings"]
        == OmegaConf.load(CONF / "quantizer" / "sensiquant.yaml").solve.rankings
    )
    assert [obq.rows(64, 100), obq.rows(64, 101), obq.rows(2, 101)] == [64, 4, 2]
    assert rtn.rows(64, 10_000) == 64


def test_peer_is_a_choice_but_not_one_of_all():
    from cli_helpers import compose

    config, choices = compose("quantizer=peer/brevitas_gptq")
    assert choices["quantizer"] == "peer/brevitas_gptq"
    assert config["quantizer"]["solve"]["_target_"] == "sq.solver.brevitas_gptq.solve"
    knobs = OmegaConf.load(ROOT / "conf" / "quantizer" / "peer" / "brevitas_gptq.yaml").solve
    assert list(knobs) == ["_target_", "_partial_", "order", "blocks"]
    assert not list((ROOT / "conf" / "quantizer").glob("*brevitas*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["resnet5"],
            r"resnet5: no such benchmark; nearest: resnet50.* \(all: .*digits.*synthetic",
        ),
        (["digits", "bitz=[3]"], r"bitz: no such setting; nearest: bits"),
        (
            ["digits", "source.batch=3"],
            r"source\.batch: no such setting; nearest: .*source\.batch_size",
        ),
        (["digits", "+extra=3"], r"extra: no such setting of a benchmark; choices: bits"),
        (["digits", "~bits"], r"no value for bits"),
        (["digits", "bits=[0]"], r"bits=\[0\]: should be greater than or equal to 1"),
        (["digits", "bits=[]"], r"bits=\[\]: at least one"),
        (["digits", "bits=[3,3]"], r"bits=\[3, 3\]: at least one, and none twice"),
        (["digits", "repeats=0"], r"repeats=0: should be greater"),
        (["digits", "name=other"], r"name=other: .* begins with bench_"),
        (["digits", "reference=gpt"], r"reference=gpt: not among the quantizers; nearest: .*gptq"),
        (["digits", "quantizers=[gptk]"], r"quantizer=gptk: no such choice; nearest: gptq"),
        (
            ["digits", 'quantizers=["gptq solve.ordr=act"]'],
            r"quantizer\.solve\.ordr: no such setting",
        ),
        (
            ["digits", 'quantizers=["gptq solve.order=up"]'],
            r"quantizer\.solve\.order=up: should be",
        ),
        (
            ["digits", "quantizers=[{quantizer: obq}]", "reference=gptq"],
            r"reference=gptq: not among",
        ),
        (
            ["digits", "quantizers=[{quantizer: obq,rows: 3}]"],
            r"quantizer, sample_rows, above \(all three\)",
        ),
        (
            ["digits", "quantizers=[{quantizer: obq,sample_rows: 1,above: 3}]"],
            r"sample_rows and above are",
        ),
        (["digits", "grid=unifrm"], r"grid=unifrm: no such choice; nearest: uniform"),
        (
            ["digits", "source.layers=[stem.9]"],
            r"source\.layers: digits_resnet has no stem\.9; nearest: stem\.0",
        ),
        (["digits", "source.model=digit_resnet"], r"model=digit_resnet: no such choice"),
        (
            ["resnet50", "source.network=resnet5o"],
            r"source\.network=resnet5o: not in timm; nearest: resnet50",
        ),
        (["resnet50", "source._target_=os.system"], r"only names under sq\. are imported"),
        (["synthetic", "source.inputs=1153"], r"source\.inputs=1153: not a multiple of .* 9"),
        (["synthetic", "source.maps.side=a"], r"source\.maps\.side=a: should be a valid integer"),
        (["synthetic", "device=gpu"], r"device=gpu: "),
        (["synthetic", "--report"], r"no record .*bench\.json: run the benchmark first"),
    ],
)
def test_what_makes_no_sense_is_one_line(words, message, tmp_path, capsys):
    assert re.search(message, refused(*words, f"results={tmp_path}", capsys=capsys))


def test_help_and_typos_need_no_torch():
    code = "import sys\nfrom sq.bench import __main__ as m\nm.main(['no'])\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_unknown_source_knob():
    own = settings.load("synthetic", ["+source.decay=1.0"])
    with pytest.raises(
        SqError, match=r"source\.decay: not a setting of sq\.bench\.sources\.synthetic"
    ):
        build(own.source, "source")
