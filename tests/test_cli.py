"""The command line: what a user sees for good and for bad input."""

import pickle
import re
import resource
import subprocess
import sys
import typing
from dataclasses import is_dataclass
from unittest.mock import patch

import pytest
import torch
from cli_helpers import (
    CONF,
    ROOT,
    WEIGHTS,
    call,
    compose,
    environment,
    error_line,
    run,
    settings,
    snapshot,
)
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file, save_file

from sq import cli
from sq.config import schema as settings_of
from sq.config.instantiate import check
from sq.config.schema import FAMILIES
from sq.errors import SqError
from sq.records import record
from sq.runs import job, messages

# Refused before torch is loaded: half a second each.
EARLY = {
    "setting of the solver a learned quantizer starts from": (
        ["quantizer=eptq", "quantizer.start.damp=0.05"],
        ["quantizer.start.damp", "the quantizer that quantizer.init names"],
    ),
    "unknown choice": (["quantizer=sensiqant"], ["quantizer=sensiqant", "nearest: sensiquant"]),
    "unknown model": (["model=digits_resnt"], ["model=digits_resnt", "nearest: digits_resnet"]),
    "bits=0": (["bits=0"], ["bits=0", "1 to 16"]),
    "bits=33": (["bits=33"], ["bits=33", "1 to 16"]),
    "bits=-4": (["bits=-4"], ["bits=-4", "1 to 16"]),
    "bits=nan": (["bits=nan"], ["bits=nan", "finite"]),
    "bits=abc": (["bits=abc"], ["bits=abc"]),
    "1 bit, symmetric": (
        ["bits=1", "grid.symmetric=true"],
        ["bits=1", "grid.symmetric=true", "2 bits"],
    ),
    "misspelt knob": (
        ["quantizer=sensiquant", "quantizer.solve.ordr=static"],
        ["quantizer.solve.ordr", "nearest: quantizer.solve.order"],
    ),
    "setting of the default, not of the choice": (
        ["quantizer=gptq", "quantizer.solve.rankings=2"],
        ["quantizer.solve.rankings: no such setting; ", "quantizer.solve.block"],
    ),
    "setting of the chosen model": (
        ["model=timm", "model.dataa.crop_pct=1"],
        ["nearest: model.data"],
    ),
    "misspelt group": (["quantiser=obq"], ["quantiser", "nearest: quantizer"]),
    "misspelt setting": (["bit=3"], ["bit:", "nearest: bits"]),
    "added setting": (["+typo=1"], ["typo"]),
    "seed not whole": (["seed=1.5"], ["seed=1.5"]),
    "no threads": (["threads=0"], ["threads=0", "at least 1"]),
    "no batch": (["batch_size=0"], ["batch_size=0", "at least 1"]),
    "name is a path": (["name=a/b"], ["name='a/b'"]),
    "given twice": (["bits=3", "bits=4"], ["bits is given twice (bits=3 and bits=4): keep one"]),
    "no such device": (["device=gpu"], ["device=gpu", "auto, cpu, cuda"]),
    "not an override": (["nonsense"], ["nonsense", "NAME=VALUE"]),
    "bits=null": (["bits=null"], ["bits=null: should be a number; it may not be null"]),
    "choice is null": (["grid=null"], ["grid=null", "choices: apot, lcq"]),
    "several choices": (["grid=[pot,apot]"], ["grid=[pot,apot]", "choices: apot, lcq"]),
    "unknown launcher": (
        ["hydra/launcher=lokal"],
        ["hydra/launcher=lokal: no such choice; nearest: local"],
    ),
    "unknown option": (["bits=3", "--nothing"], ["--nothing: no such option"]),
    "several values, no -m": (["bits=3,4"], ["bits=3,4", "add -m"]),
    "unknown function": (["bits=foo(3)"], ["bits=foo(3)", "Unknown function 'foo'"]),
    "value with a space": (["bits=3 4"], ["bits=3 4: should be a number"]),
    "results in /proc": (["results=/proc/nowhere"], ["/proc/nowhere", "results="]),
}
LATE = {
    "damp is no number": (["quantizer.damp=much"], ["quantizer.damp=much", "number"]),
    "damp is NaN": (["quantizer.damp=nan"], ["quantizer.damp=nan", "finite"]),
    "damp out of range": (["quantizer.damp=-1"], ["quantizer.damp=-1", "from 0 to 1"]),
    "unknown order": (
        ["quantizer=sensiquant", "quantizer.solve.order=statc"],
        ["quantizer.solve.order=statc", "nearest: static"],
    ),
    "added knob": (["+quantizer.dampp=1"], ["quantizer.dampp", "nearest: damp"]),
    "no images": (["calibration.images=0"], ["calibration.images=0", "1201"]),
    "too many images": (["calibration.images=100000"], ["calibration.images=100000", "1201"]),
    "no such weights": (
        ["model.weights=/nowhere.safetensors"],
        ["/nowhere.safetensors", "model.weights"],
    ),
    "3.5 bits, uniform": (["bits=3.5"], ["bits=3.5", "allocation=uniform"]),
    "foreign code": (
        ["quantizer._target_=os.system"],
        ["quantizer._target_=os.system", "only names under sq."],
    ),
    "foreign solver": (
        ["quantizer.solve._target_=os.system"],
        ["quantizer.solve._target_=os.system", "only names under sq."],
    ),
    "no such function": (
        ["quantizer._target_=sq.quantizer.layerwise.quantise"],
        ["quantizer._target_=", "quantise"],
    ),
}


def with_earlier_record(folder):
    earlier = folder / "results" / "runs" / "0123456789abcdef.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text('{"record": 1, "status": "done"}\n')
    return snapshot(folder / "results")


def left(folder, before):
    """Return the new records in `folder`, after checking that those of `before` are untouched."""
    after = snapshot(folder / "results")
    assert {name: after[name] for name in before} == before
    return [record.read(folder / "results" / name) for name in after if name not in before]


@pytest.mark.parametrize("case", EARLY)
def test_bad_input_is_one_line_and_leaves_nothing(case, tmp_path):
    words, expected = EARLY[case]
    before = with_earlier_record(tmp_path)
    line = error_line(run(tmp_path, *words))
    assert all(part in line for part in expected), line
    assert left(tmp_path, before) == []


@pytest.mark.parametrize("case", LATE)
def test_bad_input_found_later_is_one_line(case, tmp_path):
    words, expected = LATE[case]
    before = with_earlier_record(tmp_path)
    line = error_line(call(tmp_path, *words))
    assert all(part in line for part in expected), line
    for made in left(tmp_path, before):
        assert made["status"] == "failed"
        assert f"sq: {made['error']}" == line


def test_bad_input_in_a_process_of_its_own(tmp_path):
    before = with_earlier_record(tmp_path)
    line = error_line(run(tmp_path, "calibration.images=0"))
    assert "calibration.images=0" in line
    left(tmp_path, before)


def nullable(part):
    """Return the names of the settings of `part` that may be null, by their types."""
    hints = typing.get_type_hints(part)
    own = {
        name
        for name, hint in hints.items()
        if hint is typing.Any or type(None) in typing.get_args(hint)
    }
    inner = {
        f"{name}.{n}" for name, hint in hints.items() if is_dataclass(hint) for n in nullable(hint)
    }
    return own | inner


def test_null_is_refused_in_one_line_for_every_setting_that_may_not_be():
    names = {name for name in messages._names()[""] if name.partition(".")[0] not in FAMILIES}
    every = names - nullable(settings_of.Config)
    assert {"bits", "fold", "name", "sweep.retry"} <= every
    for name in sorted(every):
        with pytest.raises((HydraException, OmegaConfBaseException)) as refused:
            compose(f"{name}=null")
        said = messages.explain(refused.value)
        assert re.fullmatch(
            rf"{name}=null: should be (a number|a whole number|true or false|text|a list|a mapping); .* null",
            said,
        )


@pytest.mark.parametrize(
    "file", sorted(CONF.glob("*/*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}"
)
def test_null_is_refused_in_one_line_by_every_choice(file):
    family = file.parent.name
    if family == "hydra":
        pytest.skip("settings of launchers are checked where those start")
    composed, _ = compose(f"{family}={file.stem}")
    part = composed[family]
    refused = []
    for name in sorted(part.keys() - {"_target_", "_partial_"}):
        try:
            check({**part, name: None}, family)
        except SqError as error:
            refused.append((name, str(error)))
    assert all(said.startswith(f"{family}.{name}=null: ") for name, said in refused)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("null", "bits=null: should be a number; it may not be null"),
        ("abc", "mine.yaml: bits=abc: should be a number"),
    ],
)
def test_wrong_value_in_a_file_is_one_line(value, said, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"defaults: [config, _self_]\nname: mine\nbits: {value}\n")
    assert error_line(call(tmp_path, "-cd", str(tmp_path), "-cn", "mine")) == f"sq: {said}"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_option_of_a_sweep_at_any_place(place, tmp_path):
    words = ["bits=3,4", "quantizer=rtn,gptq"]
    words.insert(place, "-m")
    with patch.object(job, "_run", side_effect=AssertionError("it was run")):
        done = call(tmp_path, *words, "sweep.dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "4 runs, 0 done, 4 to do" in done.stderr
    assert [
        done.stdout.count(f"bits={bits} quantizer={q}") for bits in (3, 4) for q in ("rtn", "gptq")
    ] == [1] * 4


def test_settings_that_only_the_swept_choices_have(tmp_path):
    with patch.object(job, "_run", side_effect=AssertionError("it was run")):
        done = call(
            tmp_path,
            "sensitivity=fisher,trace",
            "sensitivity.images=64",
            "sweep.dry_run=true",
            sweep=True,
        )
    assert done.returncode == 0, done.stderr
    assert "2 runs, 0 done, 2 to do" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(tmp_path):
    line = error_line(call(tmp_path, "device=cuda"))
    assert "device=cuda" in line
    assert "allowed: auto, cpu" in line


def broken_weights(kind, file):
    tensors = load_file(WEIGHTS)
    if kind == "cut in half":
        file.write_bytes(WEIGHTS.read_bytes()[: WEIGHTS.stat().st_size // 2])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "of another network":
        save_file({"conv1.weight": torch.zeros(3, 3)}, file)
    elif kind == "of other shapes":
        save_file({**tensors, "head.weight": torch.zeros(5, 96)}, file)
    else:
        tensors["head.weight"][0, 0] = float("nan")
        save_file(tensors, file)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cut in half", "not a whole safetensors file"),
        ("empty", "not a whole safetensors file"),
        ("of another network", "another network"),
        ("of other shapes", "head.weight (5, 96)"),
        ("with NaN", "NaN or infinity in head.weight"),
    ],
)
def test_broken_weights(kind, expected, tmp_path):
    file = tmp_path / "weights.safetensors"
    broken_weights(kind, file)
    line = error_line(call(tmp_path, f"model.weights={file}"))
    assert str(file) in line
    assert expected in line


def test_weights_that_are_a_folder(tmp_path):
    assert str(tmp_path) in error_line(call(tmp_path, f"model.weights={tmp_path}"))


def test_damaged_record_stops_the_run_and_stays(tmp_path):
    config, _ = compose(*settings(tmp_path))
    file = record.path(config)
    file.parent.mkdir(parents=True)
    file.write_text('{"record": 1, "key": "0123", "status": "do')
    before = snapshot(tmp_path / "results")
    line = error_line(run(tmp_path))
    assert str(file) in line
    assert "delete it" in line
    assert left(tmp_path, before) == []


@pytest.mark.parametrize("below", ["", "/below"])
def test_results_folder_that_is_a_file(below, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    line = error_line(run(tmp_path, f"results={file}{below}"))
    assert str(file) in line
    assert "results=" in line, "says which setting to correct"
    assert file.read_text() == "precious"


def test_outputs_folder_that_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    line = error_line(run(tmp_path, f"outputs={file}"))
    assert str(file) in line
    assert file.read_text() == "precious"


def test_traceback_when_asked_for(tmp_path):
    done = run(tmp_path, "bits=0", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "bits=0: allowed are 1 to 16" in done.stderr


def test_interrupt_is_one_line_and_leaves_no_record(tmp_path):
    with patch.object(job, "_run", side_effect=KeyboardInterrupt):
        done = call(tmp_path)
    assert done.returncode == 130
    assert error_line(done).startswith("sq: interrupted")
    assert snapshot(tmp_path / "results") == {}


def test_a_launcher_can_send_the_task_to_another_process():
    assert pickle.loads(pickle.dumps(cli.task)) is cli.task


def test_help_is_quick_and_lists_every_choice(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(tmp_path, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of the CPU: those of the clock tell what else the machine does.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 6
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(f"{family}: " in done.stdout for family in FAMILIES)
    assert "rtn" in done.stdout
    assert "sq sweep quantizer=" in done.stdout


def test_setting_of_some_choices_of_a_sweep_names_one_without_it(tmp_path):
    line = error_line(call(tmp_path, "quantizer=gptq,rtn", "quantizer.solve.order=act", sweep=True))
    assert line.startswith("sq: quantizer.solve.order: no such setting of quantizer=rtn; nearest: ")


def test_setting_misspelt_for_all_choices_of_a_sweep(tmp_path):
    line = error_line(call(tmp_path, "quantizer=gptq,rtn", "quantizer.solve.ordr=act", sweep=True))
    assert line.startswith(
        "sq: quantizer.solve.ordr: no such setting; nearest: quantizer.solve.order"
    )


def test_setting_of_an_experiments_choice(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults:\n  - config\n  - override model: timm\n  - _self_\nname: mine\n"
    )
    words, file = cli._overrides_and_config(["-cd", str(tmp_path), "-cn", "mine", "model.nam=3"])
    line = messages.explain(
        ConfigCompositionException("Could not override 'model.nam'."), words, file
    )
    assert line.startswith("model.nam: no such setting; nearest: ")
    assert "model.name" in line


def python(folder, code, *words):
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=environment(folder, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_composing_does_not_load_torch(tmp_path):
    code = "import sys; from sq import cli; from sq.runs import messages; print(len(messages._names()), "
    code += "'torch' in sys.modules, 'pandas' in sys.modules)"
    done = python(tmp_path, code)
    assert done.stdout.split()[1:] == ["False", "False"], done.stderr


def test_one_run_prints_its_table_and_a_finished_one_does_not_load_torch(tmp_path):
    first = call(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "rtn" in first.stdout
    assert "top-1 %" in first.stdout
    before = snapshot(tmp_path / "results")
    code = "import sys; from sq.cli import main; main(); print('torch' in sys.modules)"
    again = python(tmp_path, code, *settings(tmp_path))
    assert again.stdout == first.stdout + "False\n", again.stderr
    assert again.stderr == ""
    assert left(tmp_path, before) == []
    assert len(before) == 1


def test_dry_run_of_one_run_runs_nothing(tmp_path):
    with patch.object(job, "_run", side_effect=AssertionError("it was run")):
        done = call(tmp_path, "sweep.dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "1 run, 0 done, 1 to do" in done.stderr
    assert "│ run │" in done.stdout
    assert snapshot(tmp_path / "results") == {}
    assert "bits=0: allowed" in error_line(call(tmp_path, "sweep.dry_run=true", "bits=0"))


@pytest.mark.parametrize("word", ["sweep.retry=all", "sweep.shard=1/2", "sweep.max_runs=3"])
def test_settings_of_a_sweep_are_refused_without_one(word, tmp_path):
    assert (
        error_line(call(tmp_path, word)) == f"sq: {word}: applies to sweeps only: add -m or drop it"
    )
    assert snapshot(tmp_path / "results") == {}
