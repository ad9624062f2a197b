import pytest
from cli_helpers import compose

from sq.errors import one_line


def test_budget_decides_what_says_by():
    cpu, paper = (
        compose("quantizer=eptq", f"quantizer.budget={name}")[0]["quantizer"]
        for name in ("cpu", "paper")
    )
    assert (cpu["learn"]["iterations"], paper["learn"]["iterations"]) == (400, 80000)
    published = {"rounding": 0.01, "bias": 0.0001, "scale": 0.0001, "input": 0.00004}
    assert paper["learn"]["rates"] == published | {"adapter": 0.0}
    assert (paper["learn"]["batch"], paper["learn"]["forward"], paper["draws"]) == (32, "soft", 100)


def test_what_is_said_outweighs_the_budget():
    own = compose("quantizer=eptq", "quantizer.learn.iterations=7")[0]["quantizer"]
    assert own["learn"]["iterations"] == 7


def test_start_is_the_yaml_of_the_solver_named():
    config, _ = compose("quantizer=eptq", "quantizer.init=sensiquant_plus")
    assert config["quantizer"]["start"] == compose("quantizer=sensiquant_plus")[0]["quantizer"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "quantizer.init=sensiqant",
            "quantizer.init=sensiqant: no solver to start from; nearest: sensiquant",
        ),
        ("quantizer.init=brecq", "no solver to start from"),
        ("quantizer.budget=papr", "no such choice: papr; nearest: paper"),
    ],
)
def test_names_that_are_none(word, message):
    # OmegaConf wraps it, and the command line unwraps it
    with pytest.raises(Exception, match=message) as caught:
        compose("quantizer=eptq", word)
    assert message in one_line(caught.value)
