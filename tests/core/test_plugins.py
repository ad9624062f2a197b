"""Packages from outside: allowed by whoever runs sq, never by a config file, a record or an exported file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from cli_helpers import PATIENCE, ROOT, compose, environment, error_line

import sq
from sq import SqError
from sq.config.instantiate import build, check
from sq.core import plugins
from sq.records import record
from sq.runs import status
from sq.runs.incompatible_settings import detects, find
from sq.storage import store

PARTS = '''
import os  # a module that configs may not reach through this one
from subprocess import run  # nor this function

import torch
from PIL import Image
from torch import nn

from myplug.widths import WIDTH
from sq import SqError
from sq.types.images import Dataset, Images


class MyNet(nn.Module):
    def __init__(self, classes: int = 10):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3), nn.ReLU())
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Settings:
    pass


def solve(W, H, grid, *, shift: float):
    """Round down by `shift` of a step: codes that no solver of sq gives."""
    if shift > 1:
        raise SqError(f"quantizer.solve.shift={shift}: 1 at most")
    codes = grid.encode(W)
    return (codes - round(shift)).clamp(min=0)


def load(*, name: str, count: int) -> Dataset:
    def split(use, first):
        return Images([f"{use}/{i}" for i in range(count)], torch.arange(count) % 10, Noise(first))

    return Dataset(split("train", 0), split("test", count), 10, name)


class Noise:
    def __init__(self, first):
        self.first = first

    def __call__(self, place):
        random = torch.Generator().manual_seed(self.first + place)
        return Image.fromarray((torch.rand(16, 16, 3, generator=random) * 255).byte().numpy())
'''
DATASET = """
_target_: myplug.parts.load
_partial_: true
name: noise
count: 32
"""
QUANTIZER = """
_target_: sq.quantizer.layerwise.quantize
_partial_: true
damp: 0.01
solve:
  _target_: myplug.parts.solve
  _partial_: true
  shift: SHIFT
"""
TRAIN = """
import torch

from myplug.parts import MyNet

torch.manual_seed(0)
torch.save(MyNet().state_dict(), "net.pth")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a working folder with a plugin, a network trained with it, and choices of a user's own."""
    folder = tmp_path_factory.mktemp("plugin")
    package = folder / "myplug"
    for path, text in {
        package / "__init__.py": '__version__ = "0.3"\n',
        package / "parts.py": PARTS,
        package / "widths.py": "WIDTH = 8\n",
        package / "conf" / "dataset" / "noise.yaml": DATASET,
        folder / "myconf" / "quantizer" / "mine.yaml": QUANTIZER.replace("SHIFT", "1.0"),
        folder
        / "myconf"
        / "trusting.yaml": "defaults: [config, _self_]\nname: trusting\nplugins: [myplug]\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    processes.run(
        [sys.executable, "-c", TRAIN], cwd=folder, env=outside(folder), check=True, timeout=PATIENCE
    )
    return folder


def outside(folder: Path, *more: Path, **env: str) -> dict[str, str]:
    """Return an environment in which sq is found, and nothing else but `more`."""
    kept = {**environment(folder, **env), "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *more)))}
    return {name: value for name, value in kept.items() if name != plugins.VARIABLE or name in env}


NETWORK = ("model=checkpoint", "model.constructor=myplug.parts.MyNet", "model.weights=net.pth")
IMAGES = (
    "model.data.input_size=[3,16,16]",
    "model.data.crop_pct=1.0",
    "dataset=noise",
    "calibration.images=16",
)
CHEAP = ("tracker=none", "threads=1", "correction=none", "sensitivity.bits=[4]")
MINE = ("quantizer=mine", "-cd", "myconf")


def call(cwd: Path, results: Path, *words: str, path: tuple[Path, ...] = (), **env: str):
    places = [f"results={results / 'results'}", f"outputs={results / 'outputs'}"]
    first = [
        i
        for i, word in enumerate(words)
        if word[0] == "-" or (i and words[i - 1] in ("-cd", "-cn"))
    ]
    # as argparse wants it
    order = [words[i] for i in first] + [word for i, word in enumerate(words) if i not in first]
    order += [*CHEAP, *places]
    return processes.run(
        [sys.executable, str(ROOT / "run.py"), *order],
        cwd=cwd,
        env=outside(results, *path, **env),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def only(results: Path) -> dict:
    (made,) = record.read_all(results / "results" / "runs")
    return made


# Ways to allow it.


@pytest.fixture(scope="module")
def first(folder, tmp_path_factory):
    """Run network, solver and dataset of the plugin, allowed on the command line; return where the results are."""
    results = tmp_path_factory.mktemp("results")
    done = call(folder, results, *NETWORK, *IMAGES, *MINE, "plugins=[myplug]", "export=packed")
    assert done.returncode == 0, done.stderr
    return results


def test_network_solver_and_dataset_of_a_plugin(first):
    made = only(first)
    assert made["choices"]["dataset"] == "noise"
    assert made["choices"]["quantizer"] == "mine"
    assert made["config"]["plugins"] == ["myplug"]
    assert [layer["name"] for layer in made["layers"]] == ["body.0", "body.2", "head"]
    # Its codes are one below the nearest: a step of the grid wrong, where rounding is half a step
    # wrong at most.
    assert made["results"]["relative_error"] > 0.01
    told = made["provenance"]["plugins"]
    assert told.keys() == {"myplug"}
    assert told["myplug"]["version"] == "0.3"
    assert len(told["myplug"]["source"]) == 16


def test_example_of_the_readme(tmp_path):
    text = (
        (ROOT / "README.md").read_text().partition("## Your own network")[2].partition("\n## ")[0]
    )
    code, solver, dataset, commands = re.findall(
        r"^```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    names = re.findall(r"`(myconf/\S+)`", text)
    for name, content in zip(("mynet.py", *names), (code, solver, dataset), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    for line in commands.splitlines():
        words = line.replace("python run.py", f"python {ROOT / 'run.py'}").replace(
            "python", sys.executable, 1
        )
        words += " tracker=none threads=1" if "run.py" in words else ""
        done = subprocess.run(
            words,
            shell=True,
            cwd=tmp_path,
            env=outside(tmp_path),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
    made = only(tmp_path)
    assert made["choices"]["quantizer"] == "mine"
    assert made["provenance"]["plugins"].keys() == {"mynet"}


def test_environment_allows_it_and_it_is_the_same_run(folder, first, tmp_path):
    done = call(folder, tmp_path, *NETWORK, *IMAGES, *MINE, "export=packed", SQ_PLUGINS="myplug")
    assert done.returncode == 0, done.stderr
    again, before = only(tmp_path), only(first)
    assert again["key"] == before["key"], "which plugins are allowed says nothing about a run"
    assert again["results"]["relative_error"] == before["results"]["relative_error"]


def test_entry_point_allows_it_in_every_folder(folder, first, tmp_path):
    installed = tmp_path / "installed"
    info = installed / "myplug-0.4.dist-info"
    info.mkdir(parents=True)
    (installed / "myplug").symlink_to(folder / "myplug")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: myplug\nVersion: 0.4\n")
    (info / "RECORD").write_text("myplug/__init__.py,,\n")
    (info / "top_level.txt").write_text("myplug\n")
    (info / "entry_points.txt").write_text("[sq.plugins]\nmine = myplug\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    weights = (*NETWORK[:2], f"model.weights={folder / 'net.pth'}")
    words = (*weights, *IMAGES, "quantizer=rtn")
    done = call(elsewhere, tmp_path, *words, path=(installed,))
    assert done.returncode == 0, done.stderr
    assert only(tmp_path)["provenance"]["plugins"]["myplug"]["version"] == "0.4"


def test_processes_of_a_launcher_allow_it_too(folder, tmp_path):
    words = (
        *NETWORK,
        *IMAGES,
        *MINE,
        "plugins=[myplug]",
        "hydra/launcher=local",
        "hydra.launcher.processes=2",
    )
    done = call(folder, tmp_path, "-m", *words, "bits=3,4")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs done, 0 failed" in done.stderr


def test_task_of_a_cluster_that_hands_no_environment_on_allows_it(folder, monkeypatch):
    from sq.runs.launchers.slurm import Task

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_named", [])
    monkeypatch.setenv(plugins.VARIABLE, "")
    with plugins.allowing(["myplug"]):
        task = Task()
    assert not plugins.is_allowed("myplug.parts.solve")
    task([])
    assert plugins.is_allowed("myplug.parts.solve")


def test_choices_of_a_plugin_are_listed(folder, tmp_path):
    done = call(folder, tmp_path, "plugins=[myplug]", "--help")
    assert (
        "dataset: cifar10, coco, coco_sample, digits, image_folder, imagenet, imagenet_sample, noise"
        in done.stdout
    )
    line = error_line(call(folder, tmp_path, "plugins=[myplug]", "dataset=nois"))
    assert "dataset=nois: no such choice; nearest: noise" in line


def test_solver_of_a_users_own_folder_is_one_to_start_from(folder, tmp_path):
    words = ("-cd", "myconf", "--cfg=job", "--resolve", "quantizer=eptq", "quantizer.init=mine")
    done = call(folder, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "_target_: myplug.parts.solve" in done.stdout


# Ways that do not.


REFUSED = r"only names under sq. are imported, and of packages you allow"
HOW = "if you trust myplug, add plugins=[myplug] or set SQ_PLUGINS=myplug"


def test_record_of_a_plugin_read_again_without_it(folder, first):
    # The run is done: its record is shown, and nothing of the plugin is imported for that.
    words = (*NETWORK, *IMAGES, "dataset=digits", *MINE, "export=packed")
    words = tuple(word for word in words if word != "dataset=noise")
    made = only(first)
    assert "myplug" in made["config"]["plugins"]
    line = error_line(call(folder, first, *words))
    assert REFUSED in line
    assert HOW in line
    assert record.read_all(first / "results" / "runs") == [made]


def test_report_on_records_of_a_plugin_needs_it_not(folder, first, tmp_path):
    command = [sys.executable, "-m", "sq.report", "runs", "--results", str(first / "results")]
    done = processes.run(
        command,
        cwd=tmp_path,
        env=outside(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "mine" in (first / "results" / "runs" / "table.md").read_text()


def test_packed_file_imports_nothing_that_the_caller_does_not_allow(folder, first, monkeypatch):
    (file,) = (first / "outputs" / "runs").glob("*.sq.safetensors")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_named", [])
    for _ in range(2):
        with pytest.raises(
            SqError, match=rf"{file.name}: model\.constructor=myplug\.parts\.MyNet: {REFUSED}"
        ):
            sq.load(file)
        assert "myplug" not in sys.modules
    try:
        net = sq.load(file, plugins=["myplug"])
        assert type(net).__name__ == "MyNet"
        assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
        with pytest.raises(SqError, match=REFUSED):
            sq.load(file)  # what one call allows, the next does not
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "myplug"]:
            del sys.modules[name]


INJECTED = {
    "its own setting": "plugins: [myplug]",
    "overrides as if of the command": "hydra: {overrides: {task: ['plugins=[myplug]']}}",
    "the environment of the run": "hydra: {job: {env_set: {SQ_PLUGINS: myplug}}}",
}


@pytest.mark.parametrize("case", INJECTED)
def test_config_file_allows_nothing(case, folder, tmp_path):
    (tmp_path / "theirs.yaml").write_text(
        f"defaults: [config, _self_]\nname: theirs\n{INJECTED[case]}\n"
    )
    options = (
        "-cd",
        str(tmp_path),
        "-cn",
        "theirs",
        "model=checkpoint",
        "model.constructor=myplug.parts.MyNet",
    )
    line = error_line(call(folder, tmp_path, *options))
    assert REFUSED in line
    assert HOW in line
    if case == "its own setting":
        assert "plugins=[myplug] stands in a config file" in line
    assert not list(tmp_path.rglob("*.json"))


# What Hydra itself would import or call before sq sees the config.
OF_HYDRA = {
    "callback": "{callbacks: {theirs: {_target_: theirs.Call}}}",
    "callback within one of Hydra's": "{callbacks: {own: {_target_: hydra.experimental.callbacks.LogJobReturnCallback,"
    " deep: [{_target_: theirs.Call}]}}}",
    "callback of sq that allows packages": "{callbacks: {own: {_target_: sq.core.plugins.allow, packages: [theirs]}}}",
    "callbacks that are looked up": "{callbacks: '${quantizer.theirs}'}",
    "callback that is looked up": "{callbacks: {own: '${quantizer.theirs.own}'}}",
    "handler": "{hydra_logging: {root: {level: INFO}, handlers: {theirs: {(): theirs.Call}}}}",
    "class of a handler": "{hydra_logging: {root: {level: INFO}, handlers: {theirs: {class: theirs.Call}}}}",
    "stream of a handler": "{hydra_logging: {root: {level: INFO}, handlers: {theirs: {class: logging.StreamHandler,"
    " stream: 'ext://theirs.Call'}}}}",
    "looked up for a handler": "{hydra_logging: {root: {level: INFO}, handlers: {theirs: {class: logging.StreamHandler,"
    " stream: '${name}'}}}}",
    "search path": "{searchpath: ['pkg://theirs']}",
}


@pytest.mark.parametrize("case", OF_HYDRA)
def test_config_file_has_hydra_call_nothing(case, tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from pathlib import Path\nPath('called').touch()\nCall = print\n"
    )
    (tmp_path / "theirs.yaml").write_text(
        f"defaults: [config, _self_]\nname: ext://theirs.Call\n"
        "quantizer: {theirs: {own: {_target_: theirs.Call}}}\n"
        f"hydra: {OF_HYDRA[case]}\n"
    )
    options = ("-cd", str(tmp_path), "-cn", "theirs", "sweep.dry_run=true")
    done = call(tmp_path, tmp_path, *options, path=(tmp_path,))
    assert "plugins=[" in error_line(done)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("name", ["PATH", "PYTHONPATH", "LD_PRELOAD", "GIT_EXEC_PATH"])
def test_config_file_chooses_no_programs(name, tmp_path):
    text = f"defaults: [config, _self_]\nhydra: {{job: {{env_set: {{{name}: {tmp_path}, PYTHONHASHSEED: '0'}}}}}}\n"
    (tmp_path / "theirs.yaml").write_text(text)
    line = error_line(
        call(tmp_path, tmp_path, "-cd", str(tmp_path), "-cn", "theirs", "sweep.dry_run=true")
    )
    assert f"hydra.job.env_set.{name}: a config may not choose which programs run" in line


def test_what_the_user_allows_or_hydra_has_is_no_foreign_code(tmp_path):
    (tmp_path / "theirs.py").write_text(
        "from hydra.experimental.callback import Callback\nclass Call(Callback): pass\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "defaults: [config, override hydra/job_logging: default, override hydra/hydra_logging: default, _self_]\n"
        "hydra: {callbacks: {mine: {_target_: theirs.Call}}, searchpath: ['pkg://theirs', 'file://more']}\n"
    )
    done = call(
        tmp_path,
        tmp_path,
        "-cd",
        str(tmp_path),
        "-cn",
        "mine",
        "plugins=[theirs]",
        "sweep.dry_run=true",
    )
    assert done.returncode == 0, done.stderr


def test_sweep_of_a_config_file_allows_nothing(folder, tmp_path):
    params = "hydra: {sweeper: {params: {plugins: '[myplug]', bits: '3,4'}}, mode: MULTIRUN}"
    (tmp_path / "theirs.yaml").write_text(f"defaults: [config, _self_]\nname: theirs\n{params}\n")
    line = error_line(call(folder, tmp_path, "-cd", str(tmp_path), "-cn", "theirs"))
    assert (
        "nothing was run; 2 of 2 runs make no sense: plugins=[myplug] stands in a config file"
        in line
    )


def test_config_file_may_name_what_the_command_allows(folder, tmp_path):
    words = ("-cd", "myconf", "-cn", "trusting", "sweep.dry_run=true")
    assert "stands in a config file" in error_line(call(folder, tmp_path, *words))
    done = call(folder, tmp_path, *words, SQ_PLUGINS="myplug")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def allowed(folder, monkeypatch):
    """Allow the plugin in this process, and forget it afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_named", ["myplug"])
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "myplug"]:
        del sys.modules[name]


SOLVE = {"_target_": "myplug.parts.solve", "_partial_": True, "shift": 0.5}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", REFUSED),
        ("subprocess.run", REFUSED),
        ("torch.load", "if you trust torch, add plugins="),
        ("myplug.parts.os.system", "No module named 'myplug.parts.os'"),
        (
            "myplug.parts.run",
            "of subprocess, not a function or class of sq or of a package you allow",
        ),
        ("myplug.parts.nn", "not a function or class of sq or of a package you allow"),
        ("myplug.parts.MyNet", "not a function"),
        ("myplug.parts.solv", "has no attribute 'solv'"),
        ("myplug.no_such.solve", "No module named 'myplug.no_such'"),
        ("myplugin.parts.solve", "if you trust myplugin, add"),
    ],
)
def test_only_a_plugins_own_functions_are_named(allowed, target, message):
    check(SOLVE, "quantizer.solve")
    with pytest.raises(SqError, match=r"quantizer\.solve\._target_=") as caught:
        check({**SOLVE, "_target_": target}, "quantizer.solve")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": "much"}, r"quantizer\.solve\.shift=much: should be a valid number"),
        (
            {"shif": 1.0},
            r"quantizer\.solve\.shif: not a setting of myplug\.parts\.solve; nearest: shift",
        ),
        (
            {"shift": [{"_target_": "os.system"}]},
            r"quantizer\.solve\.shift\.0\._target_: a function is not wanted",
        ),
    ],
)
def test_knobs_of_a_plugin_are_checked_as_those_of_sq(allowed, change, message):
    with pytest.raises(SqError, match=message):
        check({**SOLVE, **change}, "quantizer.solve")
    with pytest.raises(SqError, match="no value for shift"):
        check({"_target_": "myplug.parts.solve"}, "quantizer.solve")


def test_function_hidden_in_a_setting_is_never_called():
    arguments = {"x": {"_target_": "os.system", "command": "exit"}}
    part = compose("model=checkpoint")[0]["model"] | {"arguments": arguments}
    with pytest.raises(
        SqError, match=r"model\.arguments\.x\._target_: a function is not wanted here"
    ):
        build(part, "model")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise RuntimeError('no\\nsuch GPU')",
            r"importing broken fails \(RuntimeError: no such GPU\)",
        ),
        (
            "def solve(W, H, grid, *, knob): return W",
            r"quantizer\.solve\.knob: broken\.solve does not say of what type",
        ),
        (
            "def solve(W, H, grid, *, knob: 'Tensr'): return W",
            "a type of its parameters cannot be read",
        ),
        ("def solve(: pass", r"importing broken fails \(SyntaxError"),
    ],
)
def test_fault_of_a_plugin_is_one_line(code, message, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_named", ["broken"])
    try:
        with pytest.raises(SqError, match=message) as caught:
            check({"_target_": "broken.solve", "knob": 1}, "quantizer.solve")
        assert "\n" not in str(caught.value)
    finally:
        sys.modules.pop("broken", None)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("os", "os is of Python's standard library"),
        ("os.path", "os.path is of Python's standard library"),
        ("builtins", "builtins is of Python's standard library"),
        ("sq", "sq is sq's own"),
        ("no_such_package", "there is no package no_such_package here"),
        ("no_such.package", "no_such.package cannot be found"),
        ("my-net", "'my-net' is no name of a package"),
        ("mynet.py", "mynet.py cannot be found"),
        ("", "'' is no name of a package"),
    ],
)
def test_package_that_cannot_be_allowed(package, message, monkeypatch, tmp_path):
    (tmp_path / "mynet.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_named", [])
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    with pytest.raises(SqError, match=r"^plugins: ") as caught:
        plugins.allow([package])
    assert message in str(caught.value)
    assert plugins.VARIABLE not in os.environ
    assert plugins._named == []
    if package:
        monkeypatch.setattr(plugins, "_named", [package])
        with pytest.raises(SqError, match=r"^SQ_PLUGINS: "):
            plugins.allowed()


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("plugins=[mynet]", ["mynet"]),
        ("+plugins=[mynet, other.sub]", ["mynet", "other.sub"]),
        ("++plugins=['mynet']", ["mynet"]),
        ("plugins=[]", []),
        ("bits=3", []),
        ("pluginsx=[mynet]", []),
    ],
)
def test_names_on_the_command_line(word, wanted):
    assert plugins.named(["bits=4", word]) == wanted


@pytest.mark.parametrize(
    "word",
    ["plugins=mynet", "plugins=[a],[b]", "plugins=a,b", "plugins=[1]", "plugins=", "plugins=["],
)
def test_anything_but_a_list_of_names_is_refused(word):
    with pytest.raises(SqError, match=r"should be a list of names of packages, plugins=\[mynet\]"):
        plugins.named([word])


def test_names_in_the_environment_are_separated_by_commas(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text("")
    code = "from sq.core import plugins; print(*plugins.allowed())"
    command = [sys.executable, "-c", code]
    done = processes.run(
        command,
        cwd=tmp_path,
        env=outside(tmp_path, SQ_PLUGINS=" one, two,,"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"one", "two"} <= {*done.stdout.split()}


def test_yaml_of_a_plugin_with_the_name_of_one_of_sqs_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "clash" / "conf" / "quantizer" / "rtn.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_named", ["clash"])
    with pytest.raises(SqError, match=r"rtn\.yaml: sq has quantizer/rtn already; rename the file"):
        plugins.folders()


# What a plugin's code is part of.


def test_kept_results_go_by_the_code_of_a_plugin(tmp_path, monkeypatch):
    package = tmp_path / "coded"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text("from torch import nn\n\nclass Net(nn.Module):\n    pass\n")
    (package / "helper.py").write_text("SIZE = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_named", [])
    without = store.code_hash()
    monkeypatch.setattr(plugins, "_named", ["coded"])
    kind = plugins.find("coded.net.Net", "model.constructor")
    before = store.code_hash(), store.source(kind), plugins.digest("coded")
    assert before[0] != without
    (package / "helper.py").write_text("SIZE = 2\n")  # which the file of the class does not show
    for cached in (plugins.digest, store.source):
        cached.cache_clear()
    after = store.code_hash(), store.source(kind), plugins.digest("coded")
    assert all(old != new for old, new in zip(before, after, strict=True))
    del sys.modules["coded"], sys.modules["coded.net"]


def test_plugins_are_no_part_of_a_key():
    config = compose()[0]
    assert config["plugins"] == []
    assert record.key(config | {"plugins": ["mynet"]}) == record.key(config)
    without = {name: value for name, value in config.items() if name != "plugins"}
    assert record.key(without) == record.key(config)


def test_model_of_a_plugin_is_of_the_kind_of_the_other_choices():
    config, choices = compose("dataset=coco", "metric=coco_map", "quantizer=rtn")
    mine = config | {"model": {"_target_": "mynet.load"}}
    assert detects(mine)
    assert not any("is for detection" in line for line in find(mine, choices))
    mixed = mine | {"metric": compose()[0]["metric"]}
    assert any("is for detection" in line for line in find(mixed, choices | {"model": "mine"}))
    assert not detects(compose()[0] | {"model": {"_target_": "mynet.load"}})


def test_every_setting_of_one_package_is_told_in_one_line():
    config, choices = compose()
    config = json.loads(json.dumps(config))
    config["model"]["_target_"] = "mynet.load"
    config["quantizer"]["solve"]["_target_"] = "mynet.solve"
    config["grid"]["_target_"] = "os.system"
    mine = [line for line in find(config, choices) if "mynet" in line.partition(":")[0]]
    assert len(mine) == 1
    assert mine[0].startswith(
        "model._target_=mynet.load, quantizer.solve._target_=mynet.solve: only names under sq."
    )
    assert any(
        line.startswith("grid._target_=os.system: only names under sq.")
        for line in find(config, choices)
    )


def test_choice_of_a_plugin_in_an_experiment_is_composed_by_status(allowed, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults: [config, {override dataset: noise}, _self_]\nname: mine\n"
    )
    (job,) = status.jobs_of("mine", tmp_path / "results", tmp_path)
    assert job.config["dataset"]["_target_"] == "myplug.parts.load"


def test_solver_of_a_plugin_is_one_to_start_from(allowed):
    folder = allowed / "myplug" / "conf" / "quantizer"
    folder.mkdir()
    (folder / "down.yaml").write_text(QUANTIZER.replace("SHIFT", "0.75"))
    try:
        config, _ = compose("quantizer=eptq", "quantizer.init=down")
        assert config["quantizer"]["start"]["solve"]["shift"] == 0.75
    finally:
        (folder / "down.yaml").unlink()
        folder.rmdir()
