import pytest

from sq.core.wording import plural, quantity


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [
        (0, "run", "0 runs"),
        (1, "run", "1 run"),
        (2, "run", "2 runs"),
        (12_000, "run", "12,000 runs"),
        ([1], "process", "1 process"),
        ([1, 2], "process", "2 processes"),
        ({"a"}, "training image", "1 training image"),
        (2, "training image", "2 training images"),
        (2, "pass", "2 passes"),
        (-1, "bit", "-1 bits"),
    ],
)
def test_a_number_and_its_noun(number, noun, words):
    assert quantity(number, noun) == words


def test_plurals():
    assert [plural(noun) for noun in ("box", "batch", "query", "array", "layer")] == [
        "boxes",
        "batches",
        "queries",
        "arrays",
        "layers",
    ]
