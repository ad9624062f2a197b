"""All learned quantizers: what they start from, what they leave, and how they are taken up where they were left."""

import copy

import grids
import pytest
import torch
from cli_helpers import compose
from learned_problems import START, problem, quantizer, residual
from sensitivity_problems import images, labels, tricky
from sensitivity_problems import problem as tricky_problem
from torch import nn

from sq.config.instantiate import build
from sq.errors import SqError
from sq.learning import optimizer_step
from sq.learning.student import Student
from sq.learning.target_cache import TargetCache
from sq.network import geometry
from sq.quantizer import eptq

METHODS = ["eptq", "adaround", "brecq", "qdrop"]
AT_ONCE = ["eptq", "asq_ptq"]  # all layers


def same(one, other):
    assert list(one.layers) == list(other.layers)
    for name, own in one.layers.items():
        assert torch.equal(own.codes, other.layers[name].codes)
        assert torch.equal(own.grid.scale, other.layers[name].grid.scale)
    for a, b in zip(one.net.state_dict().values(), other.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("init", ["rtn", "sensiquant", "sensiquant_plus"])
@pytest.mark.parametrize("name", METHODS)
def test_without_steps_the_codes_are_those_it_starts_from(name, init):
    given = problem(residual(), activation_bits=4)
    start = build(compose(f"quantizer={init}")[0]["quantizer"], "quantizer")(given)
    none = ["learn.iterations=0"] + ["then.iterations=0"] * (name == "brecq")
    same(quantizer(name, f"init={init}", *none)(given), start)


@pytest.mark.parametrize("kind", grids.LEVELS)
def test_levels_without_steps_stay_and_with_steps_are_learned(kind):
    given = problem(residual(), activation_bits=4, fit=grids.fit(kind))
    start = build(compose("quantizer=sensiquant")[0]["quantizer"], "quantizer")(given)
    same(quantizer("eptq", "init=sensiquant", "learn.iterations=0")(given), start)
    done = quantizer("eptq", "init=sensiquant", "learn.rates={rounding: 0.1, scale: 0.01}")(given)
    assert done.report["flipped"] > 0
    for name, layer in done.layers.items():
        before = start.layers[name]
        assert ((layer.codes - before.codes).abs() <= 1).all()  # to a neighbouring level
        assert ((layer.codes >= 0) & (layer.codes < layer.grid.levels)).all()
        assert torch.equal(layer.grid.table, before.grid.table)
        assert torch.equal(
            geometry.weight(done.net.get_submodule(name)), layer.grid.decode(layer.codes)
        )
        assert layer.report["scale_moved"] > 0


@pytest.mark.parametrize("name", METHODS)
def test_network_holds_what_the_codes_decode_to(name):
    net = residual()
    before = copy.deepcopy(net.state_dict())
    given = problem(net, activation_bits=4)
    done = quantizer(name, "learn.rates={rounding: 0.1, bias: 0.01, scale: 0.01, input: 0.01}")(
        given
    )
    assert all(torch.equal(before[own], t) for own, t in net.state_dict().items())
    for own, layer in done.layers.items():
        assert torch.equal(
            geometry.weight(done.net.get_submodule(own)), layer.grid.decode(layer.codes)
        )
        assert ((layer.codes >= 0) & (layer.codes < layer.grid.levels)).all()
        assert layer.report["scale_moved"] > 0
        assert layer.report["bias_moved"] > 0
    assert done.report["flipped"] > 0
    assert done.report["biases_moved"] == len(done.layers)
    assert done.report["curves"]


def test_network_comes_nearer_to_full_precision():
    words = [
        "init=rtn",
        "learn.iterations=30",
        "learn.batch=32",
        "learn.forward=hard",
        "learn.rates.rounding=0.02",
    ]
    rows = quantizer("eptq", *words)(problem(residual(), bits=2)).report["curves"]
    assert rows[-1]["error"] < 0.85 * rows[0]["error"]


@pytest.mark.parametrize("name", METHODS[1:])
def test_a_layer_comes_nearer_to_full_precision(name):
    torch.manual_seed(0)
    given = problem(nn.Sequential(nn.Conv2d(2, 4, 3)).eval(), bits=2)

    def error(iterations):
        words = ["learn.batch=32", f"learn.iterations={iterations}", "learn.rates.rounding=0.05"]
        return quantizer(name, *words)(given).layers["0"].report["relative_error"]

    assert error(60) < 0.98 * error(0)  # most of it is of weights beyond the grid


class _Stop(Exception):
    pass


@pytest.mark.parametrize("name", [*METHODS, "asq_ptq"])
def test_interrupted_and_resumed_is_uninterrupted_bit_by_bit(name, tmp_path, monkeypatch):
    net = residual()
    never = quantizer(name)(problem(net, activation_bits=4))
    given = problem(net, activation_bits=4, scratch=str(tmp_path))
    steps, step = [], optimizer_step.StageOptimizer.step

    def stopping(self, number, *rest):
        steps.append((self.part.name, number))
        # in the second part of those that have parts
        if len(steps) == 9 * (1 if name in AT_ONCE else 2):
            raise _Stop
        return step(self, number, *rest)

    monkeypatch.setattr(optimizer_step.StageOptimizer, "step", stopping)
    with pytest.raises(_Stop):
        quantizer(name)(given)
    left = list((tmp_path / "unfinished").iterdir())
    assert len(left) == 1
    resumed = steps[-1]
    steps.clear()
    monkeypatch.setattr(
        optimizer_step.StageOptimizer,
        "step",
        lambda self, number, *rest: (
            steps.append((self.part.name, number)),
            step(self, number, *rest),
        )[1],
    )
    done = quantizer(name)(given)
    assert steps[0] == (resumed[0], 5)  # after the last state that was written
    same(done, never)
    assert done.report["curves"] == never.report["curves"]
    before = 5 if name in AT_ONCE else 17  # a stage of 12 steps, and 5 of the next
    assert (
        done.report["steps_before_interruption"],
        never.report["steps_before_interruption"],
    ) == (before, 0)
    assert list((tmp_path / "unfinished").iterdir()) == []


def test_state_of_other_settings_is_not_taken_up(tmp_path, monkeypatch):
    given = problem(residual(), scratch=str(tmp_path))
    step = optimizer_step.StageOptimizer.step
    monkeypatch.setattr(
        optimizer_step.StageOptimizer,
        "step",
        lambda self, number, *rest: (
            (_ for _ in ()).throw(_Stop()) if number == 8 else step(self, number, *rest)
        ),
    )
    with pytest.raises(_Stop):
        quantizer("eptq")(given)
    monkeypatch.setattr(optimizer_step.StageOptimizer, "step", step)
    done = quantizer("eptq", "learn.weight=0.02")(given)
    same(done, quantizer("eptq", "learn.weight=0.02")(problem(residual())))
    assert len(list((tmp_path / "unfinished").iterdir())) == 1


@pytest.mark.parametrize("name", ["eptq", "adaround"])
def test_targets_made_anew_each_step_give_the_same(name):
    given = problem(residual(), activation_bits=4)
    kept, streamed = (quantizer(name, f"memory_gib={limit}")(given) for limit in ("1.0", "1e-9"))
    for own, layer in kept.layers.items():
        assert torch.equal(layer.codes, streamed.layers[own].codes)


def test_whole_network_is_learned_whatever_its_forward_does():
    given = tricky_problem(tricky(), images(16), labels(16), bits=4)
    given.bits.update({layer.name: 3 for layer in given.model.layers})
    given.activations.update(given.inputs.grids())
    done = quantizer("eptq")(given)
    assert list(done.layers) == [layer.name for layer in given.model.layers]
    assert torch.isfinite(done.net(given.batch.x)).all()
    assert done.report["scores"].keys() == done.layers.keys()


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x), x


@pytest.mark.parametrize("name", METHODS)
def test_network_that_returns_no_tensor_is_told_what_is_supported(name):
    with pytest.raises(
        SqError, match="Two returns tuple: learned quantizers take networks that return one tensor"
    ):
        quantizer(name)(problem(Two().eval()))


@pytest.mark.parametrize("name", METHODS)
def test_grids_of_additions_are_refused(name):
    given = problem(residual(), activation_bits=4)
    given.activations["add.0.left"] = given.activations["0"]
    with pytest.raises(SqError, match=r"1 operands of additions.*activation\.observe\.adds=false"):
        quantizer(name)(given)


class Tokens(nn.Module):
    """Two layers that give the same numbers: a convolution, and a linear layer over the positions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 4, 1), nn.Linear(2, 4)
        self.second.load_state_dict(
            {n: t.flatten(1) if t.ndim > 1 else t for n, t in self.first.state_dict().items()}
        )

    def forward(self, x):
        return self.first(x).movedim(1, -1) + self.second(x.movedim(1, -1))


def test_errors_of_linear_layers_over_positions_count_as_those_of_convolutions():
    given = problem(Tokens().eval(), bits=2)
    names = ["first", "second"]
    ones = {name: torch.ones(32) for name in names}

    def error(name):
        student = Student(given, START, 1e-3)
        weights = ones | {other: torch.full((32,), 1e-20) for other in names if other != name}
        kept = TargetCache(
            lambda index: eptq.layer_outputs(given.model.net, names, given.batch.x[index]),
            32,
            32,
            1.0,
        )
        with torch.no_grad(), student.learned_weights(names, "fixed", None):
            return float(
                eptq._NetworkLoss(student, names, weights, kept)(torch.arange(32), None)[0]
            )

    assert error("first") > 0
    assert error("second") == pytest.approx(error("first"), rel=1e-5)


def _never(problem):
    raise AssertionError("a solver was started before all was checked")


def _started_never(name, *changes):
    made = quantizer(name, *changes)
    made.keywords["start"] = _never
    return made


def test_refusals_come_before_anything_is_solved():
    given = problem(residual(), activation_bits=4)
    for name in METHODS:
        with pytest.raises(SqError, match=r"32 calibration images.*quantizer\.learn\.batch=32"):
            _started_never(name, "learn.batch=33")(given)
        rates = "learn.rates={rounding: 0, bias: 0, scale: 0, input: 0.1}"
        with pytest.raises(SqError, match=r"quantizer\.learn: with keep=fixed share=1"):
            _started_never(name, rates, "learn.keep=fixed", "learn.share=1.0")(given)
    with pytest.raises(SqError, match=r"32 calibration images.*quantizer\.then\.batch=32"):
        _started_never("brecq", "then.batch=33")(given)
    given.activations["add.0.left"] = given.activations["0"]
    for name in METHODS:
        with pytest.raises(SqError, match="operands of additions"):
            _started_never(name)(given)
    # the last: called twice
    late = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sequential(*[nn.Conv2d(2, 2, 1)] * 2)).eval()
    with pytest.raises(SqError, match=r"1\.0 is called 2 times a pass"):
        _started_never("adaround")(problem(late))


class Windows(nn.Module):
    """The four quarters of an image go through a layer as if they were images; or all positions, images beside."""

    def __init__(self, mixed):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.mixed = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 4), mixed

    def forward(self, x):
        y = self.first(x)  # (B, 4, 6, 6)
        if self.mixed:
            # (36, B, 4): positions are first
            return self.second(y.permute(2, 3, 0, 1).flatten(0, 1)).mean(0)
        # (4 B, 9, 4)
        parts = (
            y.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 4, 5, 1).flatten(0, 2).flatten(1, 2)
        )
        return self.second(parts).unflatten(0, (len(x), -1)).mean((1, 2))


@pytest.mark.parametrize("limit", ["1.0", "1e-9"])
@pytest.mark.parametrize("name", METHODS)
def test_layers_that_run_on_parts_of_images(name, limit):
    given = problem(Windows(False).eval(), bits=2, activation_bits=4)
    words = [f"memory_gib={limit}", "learn.rates.rounding=0.1"] + ["loss=fisher"] * (
        name == "brecq"
    )
    done = quantizer(name, *words)(given)
    assert done.report["flipped"] > 0
    assert done.report["streamed"] in (
        limit != "1.0",
        [] if limit == "1.0" else ["first", "second"],
    )


@pytest.mark.parametrize("name", METHODS)
def test_layers_that_mix_images_are_refused(name):
    with pytest.raises(
        SqError, match=r"layer second returns \(36, 1, 4\) for one image and \(36, 2, 4\) for two"
    ):
        _started_never(name)(problem(Windows(True).eval()))


def test_loss_of_eptq_is_the_formula():
    given = problem(
        nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 2)
        ).eval()
    )
    scores = {"0": torch.rand(32) + 0.1, "3": torch.rand(32) + 0.5}
    student = Student(given, START, 1e-3)
    names, x, index = ["0", "3"], given.batch.x, torch.tensor([4, 1, 30])
    kept = TargetCache(
        lambda index: eptq.layer_outputs(given.model.net, names, x[index]), 32, 32, 1.0
    )
    with torch.no_grad(), student.learned_weights(names, "soft", None) as h:
        made, weights = eptq._NetworkLoss(student, names, scores, kept)(index, None)
        W, V = (student.roundings[name].weight(h[name]) for name in names)
    first, second = given.model.net[0], given.model.net[3]
    with torch.no_grad():
        a, z = (nn.functional.conv2d(x[index], own, first.bias) for own in (first.weight, W))
        b, y = (
            nn.functional.linear(t.relu().flatten(1), own, second.bias)
            for t, own in ((a, second.weight), (z, V))
        )
    w, v = scores["0"][index], scores["3"][index]
    most = max(w.mean(), v.mean())
    wanted = (w * (z - a).square().sum(1).mean((1, 2))).mean() + (
        v * (y - b).square().sum(1)
    ).mean()
    assert float(made) == pytest.approx(float(wanted / most), rel=1e-5)
    assert weights == pytest.approx({"0": float(w.mean() / most), "3": float(v.mean() / most)})


@pytest.mark.parametrize(
    ("net", "said"), [(residual(), False), (nn.Sequential(nn.Conv2d(2, 3, 3, bias=False)), True)]
)
def test_few_biases_to_learn_are_told_of(net, said, capsys):
    quantizer("eptq")(problem(net.eval()))
    assert ("0 of 1 layers have a bias to learn: fold=true" in capsys.readouterr().err) is said
