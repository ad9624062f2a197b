"""One step: what it may not do to scales, and passes of less precision."""

import pytest
import torch
from learned_problems import START, problem, residual, settings
from test_reconstruction import session, toy, whole

from sq.config.instantiate import check
from sq.errors import SqError
from sq.learning import reconstruction
from sq.learning.student import Student


@pytest.mark.parametrize("rates", [{"scale": 0.5}, {"input": 0.5}])
def test_factors_of_scales_stay_above_zero_and_a_line_says_so(rates, capsys):
    own = session(toy(), activation_bits=3)
    part = whole(own)

    def error(index, generator):  # the smaller the factors, the better
        sigmas = [p for name, p in own.student.values.named_parameters() if name.endswith("sigma")]
        return torch.stack([p.sum() for p in sigmas]).sum(), part.error(index, generator)[1]

    settings("learn", iterations=12, batch=8, rates=rates)(
        own, reconstruction.Part("network", part.layers, error)
    )
    assert (
        "network: scale factors of 2 layers ended at their lower limit 0.001"
        in capsys.readouterr().err
    )
    for layer in own.student.roundings.values():
        assert (layer.grid().scale > 0).all()
    for given in own.student.inputs.values():
        assert (given.grid().scale > 0).all()


def test_usual_rates_are_not_told_of(capsys):
    own = session(toy())
    settings("learn", iterations=3, batch=8, rates={"scale": 0.01})(own, whole(own))
    assert "scale factors" not in capsys.readouterr().err


@pytest.mark.parametrize("beta", [[20.0], [20.0, -2.0], [20.0, 0.0], [20.0, 2.0, 1.0], 20.0])
def test_exponents_are_two_positive_numbers(beta):
    part = {
        "_target_": "sq.learning.reconstruction.learn",
        "_partial_": True,
        **settings("learn").keywords,
    }
    check(part, "quantizer.learn")
    with pytest.raises(SqError, match=r"^quantizer\.learn\.beta"):
        check(part | {"beta": beta}, "quantizer.learn")


def test_passes_of_less_precision_learn_with_losses_of_full():
    seen = []
    given = problem(residual(), bits=2, activation_bits=4)
    student = Student(given, START, 1e-3)
    student.precision = "bfloat16"
    layer = student.net[0]
    handle = layer.register_forward_hook(lambda module, args, y: seen.append(y.dtype))
    with student.quantized_inputs(), student.learned_weights([*student.roundings], "soft", None):
        student.compute(student.net, given.batch.x)
    handle.remove()
    assert seen == [torch.bfloat16]
    for keep in ("none", "linear", "bernoulli"):
        own = session(residual(), activation_bits=4)
        part = whole(own)
        wanted = given.model.net(given.batch.x).detach()

        def error(index, generator, own=own, part=part, wanted=wanted):
            from sq.learning.reconstruction_loss import squares

            y = own.student.compute(own.student.net, own.student.problem.batch.x)
            loss = squares(y, wanted, torch.ones(len(wanted)), 3)
            assert loss.dtype == torch.float32
            return loss, dict.fromkeys(part.layers, 1.0)

        rates = {"rounding": 0.02, "bias": 0.003, "scale": 0.003, "input": 0.003}
        knobs = {"iterations": 30, "batch": 32, "rates": rates, "forward": "hard", "keep": keep}
        with own.student.quantized_inputs():
            settings("learn", **knobs, precision="bfloat16")(
                own, reconstruction.Part("network", part.layers, error)
            )
        rows = own.resume.rows
        if keep == "none":
            assert rows[-1]["error"] < 0.85 * rows[0]["error"]
        assert all(p.dtype == torch.float32 for p in own.student.values.parameters())
