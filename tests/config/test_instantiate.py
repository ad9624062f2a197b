"""From config to code: only our own functions, every knob checked; and what modules and YAML files must hold to."""

import ast
import importlib
import inspect
import re
import types
import typing

import hydra
import pytest
from cli_helpers import CONF, ROOT, compose
from omegaconf import OmegaConf

from sq.config.instantiate import build, check
from sq.config.schema import FAMILIES
from sq.errors import SqError

KNOBS = {"images": 8, "seed": 0, "inputs": "reference"}
SUBSET = {"_target_": "sq.calibration.subset.draw", "_partial_": True, **KNOBS}
SOLVE = {"_target_": "sq.solver.gptq.solve", "_partial_": True, "order": "natural", "block": 64}
LAYERWISE = {
    "_target_": "sq.quantizer.layerwise.quantize",
    "_partial_": True,
    "damp": 0.01,
    "solve": SOLVE,
}
UNIFORM = compose()[0]["grid"]


def test_knobs_are_bound():
    assert build(SUBSET, "calibration").keywords == KNOBS


def test_function_that_is_built_does_the_work():
    from sq.dataset import digits
    from sq.model import digits_resnet

    data = digits.load(name="digits", every=3)
    assert (
        len(build(SUBSET, "calibration")(digits_resnet.load(weights=None, expected=None), data).ids)
        == 8
    )


def test_nested_function_is_bound_too():
    made = build(LAYERWISE, "quantizer")
    assert made.keywords["damp"] == 0.01
    assert made.keywords["solve"].keywords == {"order": "natural", "block": 64}


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"bits": []}, r"^sensitivity\.bits=\[\]: List should have at least 1 item"),
        ({"bits": [2, 3, 3]}, r"^sensitivity\.bits=\[2, 3, 3\]: should name each value once$"),
        ({"bits": [0]}, r"^sensitivity\.bits=\[0\]: should be greater"),
        (
            {"input_bits": [4, 4]},
            r"^sensitivity\.input_bits=\[4, 4\]: should name each value once$",
        ),
    ],
)
def test_widths_to_price_are_each_named_once(knobs, said):
    part = compose()[0]["sensitivity"]
    check(part | {"bits": [3], "input_bits": []}, "sensitivity")
    with pytest.raises(SqError, match=said):
        check(part | knobs, "sensitivity")


@pytest.mark.parametrize("partial", [{}, {"_partial_": False}])
def test_partial_is_not_the_users_to_forget(partial):
    part = {k: v for k, v in SUBSET.items() if k != "_partial_"} | partial
    assert callable(build(part, "calibration"))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "sqlite3.connect",
        "sq",
        "builtins.eval",
        "",
        None,
        3,
        "torch.load",
        " sq.x.y",
    ],
)
def test_only_names_under_sq_are_imported(target):
    with pytest.raises(SqError, match=r"quantizer\._target_=.*only names under sq\. are imported"):
        check({"_target_": target}, "quantizer")


@pytest.mark.parametrize(
    "target", ["sq.no_such.solve", "sq.quantizer.layerwise.no_such", "sq.quantizer.layerwise."]
)
def test_name_that_does_not_exist(target):
    with pytest.raises(SqError, match=rf"quantizer\._target_={re.escape(target)}: "):
        check({**LAYERWISE, "_target_": target}, "quantizer")


@pytest.mark.parametrize(
    "target", ["sq.quantizer.layerwise", "sq.runs.job.os", "sq.quantizer.layerwise.MAX_DAMPING"]
)
def test_name_that_is_no_function(target):
    with pytest.raises(SqError, match=r"quantizer\._target_="):
        check({**LAYERWISE, "_target_": target}, "quantizer")


def test_part_without_a_target():
    with pytest.raises(SqError, match=r"calibration\._target_=None"):
        check({"images": 8}, "calibration")


def test_missing_knob():
    part = {k: v for k, v in SUBSET.items() if k != "seed"}
    with pytest.raises(
        SqError, match=r"calibration: no value for seed, which sq\.calibration\.subset\.draw needs"
    ):
        check(part, "calibration")


def test_unknown_knob_and_the_nearest():
    with pytest.raises(SqError, match=r"calibration\.image: not a setting of .*; nearest: images"):
        check({**SUBSET, "image": 8}, "calibration")
    with pytest.raises(
        SqError, match=r"calibration\.zzz: not a setting of .*; choices: images, inputs, seed"
    ):
        check({**SUBSET, "zzz": 8}, "calibration")


@pytest.mark.parametrize("value", ["8", 8.0, True, None, [8], "many", {"a": 1}])
def test_wrong_type_is_refused_not_converted(value):
    with pytest.raises(SqError, match=r"calibration\.images=.*should be a valid integer"):
        check({**SUBSET, "images": value}, "calibration")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", None])
def test_numbers_must_be_finite_numbers(value):
    with pytest.raises(SqError, match=r"grid\.norm="):
        check({**UNIFORM, "norm": value}, "grid")


def test_whole_number_serves_where_any_number_does():
    check({**UNIFORM, "norm": 2}, "grid")


def test_unknown_choice_and_the_nearest():
    with pytest.raises(
        SqError, match=r"grid\.range=mes: should be 'minmax', 'mse' or 'hmse'; nearest: mse"
    ):
        check({**UNIFORM, "range": "mes"}, "grid")


@pytest.mark.parametrize("bits", [["4"], [4.5], 4, [None], None])
def test_lists_are_checked_inside(bits):
    part = {"_target_": "sq.sensitivity.output_error.score", "bits": bits, "input_bits": []}
    with pytest.raises(SqError, match=r"sensitivity\.bits="):
        check(part, "sensitivity")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "natrual"}, r"quantizer\.solve\.order=natrual: .*nearest: natural"),
        (
            {"blok": 1},
            r"quantizer\.solve\.blok: not a setting of sq\.solver\.gptq\.solve; nearest: block",
        ),
        ({"block": "all"}, r"quantizer\.solve\.block=all"),
        (
            {"_target_": "os.system"},
            r"quantizer\.solve\._target_=os\.system: only names under sq\.",
        ),
    ],
)
def test_nested_function_is_checked_too(change, message):
    with pytest.raises(SqError, match=message):
        check({**LAYERWISE, "solve": {**SOLVE, **change}}, "quantizer")


@pytest.mark.parametrize("solve", [None, "gptq", {}, {"order": "natural"}])
def test_function_is_wanted_where_a_knob_is_one(solve):
    with pytest.raises(SqError, match=r"quantizer\.solve"):
        check({**LAYERWISE, "solve": solve}, "quantizer")


# What every choice must hold to.

CHOICES = sorted((file.parent.name, file.stem) for file in CONF.glob("*/*.yaml"))


def targets(part):
    """Yield `part` and every part nested in it that names a function."""
    if isinstance(part, dict):
        if "_target_" in part:
            yield part
        for value in part.values():
            yield from targets(value)


def function_of(part):
    module, _, name = part["_target_"].rpartition(".")
    return importlib.import_module(module), getattr(importlib.import_module(module), name)


def test_families_are_folders_of_conf_and_of_sq_and_of_the_default():
    assert {family for family, _ in CHOICES} == set(FAMILIES)
    assert all((ROOT / "sq" / family / "__init__.py").is_file() for family in FAMILIES)
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    assert {name for line in defaults if not isinstance(line, str) for name in line} >= set(
        FAMILIES
    )


@pytest.mark.parametrize(("family", "option"), CHOICES, ids=lambda word: word)
def test_choice_builds_and_holds_to_the_contract(family, option):
    config, choices = compose(f"{family}={option}")
    assert choices[family] == option
    assert callable(build(config[family], family))
    parts = list(targets(config[family]))
    assert parts[0] is config[family]
    for part in parts:
        assert part["_target_"].startswith("sq.")
        assert part["_partial_"] is True
        module, function = function_of(part)
        knobs = [
            p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        assert {k.name for k in knobs} == set(part) - {"_target_", "_partial_"}
        assert [k.name for k in knobs if k.default is not k.empty] == [], (
            "defaults belong in the YAML file"
        )
        assert [k.name for k in knobs if k.annotation is k.empty] == []
        assert inspect.getdoc(module)
        assert inspect.getdoc(function)
    assert parts[0]["_target_"].startswith(f"sq.{family}.")


@pytest.mark.parametrize(("family", "option"), CHOICES, ids=lambda word: word)
def test_settings_whose_keys_are_the_users_take_any_key(family, option):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        part = hydra.compose("config", overrides=[f"{family}={option}"])[family]
    _, function = function_of(part)
    hints = typing.get_type_hints(function)
    union = (typing.Union, types.UnionType)
    kinds = {
        name: typing.get_args(kind) if typing.get_origin(kind) in union else [kind]
        for name, kind in hints.items()
    }
    free = [
        name
        for name in part
        if any(typing.get_origin(kind) is dict for kind in kinds.get(name, []))
    ]
    closed = [name for name in free if OmegaConf.is_struct(part[name])]
    assert closed == [], f"add /any_keys@{closed} to the defaults list of its YAML"
    assert OmegaConf.is_struct(part)


@pytest.mark.parametrize(
    "file", sorted(CONF.glob("*/*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}"
)
def test_knobs_stand_in_the_order_of_the_signature(file):
    for part in targets(OmegaConf.to_container(OmegaConf.load(file), resolve=False)):
        _, function = function_of(part)
        order = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        ]
        apart = ("_target_", "_partial_", "defaults")
        given = [name for name in part if name not in apart and not isinstance(part[name], dict)]
        assert given == [name for name in order if name in given]


QUANTIZERS = [
    OmegaConf.to_container(OmegaConf.load(file)) for file in (CONF / "quantizer").rglob("*.yaml")
]
NAMED = {part["_target_"] for quantizer in QUANTIZERS for part in targets(quantizer)}
SOLVERS = sorted(name.split(".")[2] for name in NAMED if name.startswith("sq.solver."))


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_names_its_source(name):
    module = importlib.import_module(f"sq.solver.{name}")
    assert list(inspect.signature(module.solve).parameters)[:3] == ["W", "H", "grid"]
    if name != "rtn":
        assert re.search(r"^Source\n-+\n\S", inspect.getdoc(module.solve), re.MULTILINE)


# What modules may do.

MODULES = sorted((ROOT / "sq").rglob("*.py"))


def name_of(file):
    words = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def imports(file):
    """Return the dotted name of every module, or name in a module, that `file` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    ("package", "home"),
    [
        ("wandb", "sq/tracker/wandb_client.py"),
        (
            "timm",
            (
                "sq/model",
                "sq/bench/sources.py",
                "sq/bench/coverage.py",
                "sq/model/transforms.py",
                "sq/dataset/image_folder.py",
            ),
        ),
        ("brevitas", "sq/solver/brevitas_gptq.py"),
        ("model_compression_toolkit", "sq/quantizer/mct_gptq.py"),
        ("ultralytics", ("sq/model", "sq/model/yolo.py", "sq/model/ultralytics_hub.py")),
        ("pycocotools", "sq/evaluation/detection/coco_eval.py"),
        ("faster_coco_eval", "sq/evaluation/detection/coco_eval.py"),
        ("onnx", ("sq/export", "sq/latency")),
        (
            "onnxruntime",
            ("sq/latency/onnxruntime.py", "sq/export/onnx_export.py", "sq/export/onnx_session.py"),
        ),
        ("onnxscript", "sq/export/onnx_export.py"),
    ],
)
def test_optional_packages_are_imported_in_their_one_place(package, home):
    users = {
        str(f.relative_to(ROOT))
        for f in MODULES
        if any(n.split(".")[0] == package for n in imports(f))
    }
    assert all(user.startswith(home) for user in users)


def test_nothing_is_printed_but_through_the_console():
    def prints(file):
        calls = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
        ]
        return any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)

    assert not {f for f in MODULES if prints(f)}


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_files_are_short(file):
    assert len(file.read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    ("family", "choice", "knob", "value"),
    [
        ("quantizer", "gptq", "solve.block", 0),
        ("quantizer", "gptq", "solve.block", -1),
        ("quantizer", "sensiquant", "solve.rankings", 0),
        ("quantizer", "sensiquant", "solve.clusters", 0),
        ("quantizer", "obq", "solve.memory_gib", 0.0),
        ("grid", "uniform", "norm", -1.0),
        ("grid", "uniform", "steps", 0),
        ("grid", "uniform", "shrink", 0.0),
        ("grid", "uniform", "shrink", 2.0),
        ("grid", "uniform", "hessian.images", 0),
        ("grid", "uniform", "hessian.draws", 1),
        ("grid", "uniform", "hessian.tolerance", 0.0),
        ("grid", "uniform", "hessian.seed", -1),
        ("correction", "batchnorm", "batch_size", 0),
        ("correction", "reestimate", "batch_size", 1),
    ],
)
def test_knobs_out_of_range_are_refused_by_name(family, choice, knob, value):
    part = OmegaConf.create(compose(f"{family}={choice}")[0][family])
    OmegaConf.update(part, knob, value)
    with pytest.raises(SqError, match=rf"{family}\.{re.escape(knob)}={value}: should be"):
        build(OmegaConf.to_container(part), family)
