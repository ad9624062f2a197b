import pytest
import torch
from test_table import record

from sq.evaluation import paired_tests
from sq.report import pairs, table

IMAGES = 40


def answered(quantizer, right, seed=0, ids="i", **config):
    made = record(quantizer, seed=seed, top1=100 * right / IMAGES, **config)
    made["key"] += ids + str(config)
    answers = paired_tests.packed(torch.arange(IMAGES) < right)
    return made | {"evaluation": {"images": IMAGES, "ids": ids, "right": answers}}


def shown(records):
    found = pairs.table(table.rows(records), records)
    return None if found is None else found.to_dict("records")


def test_the_better_stands_first_with_the_interval_of_the_difference():
    (line,) = shown([answered("rtn", 20), answered("obq", 36)])
    gain, low, high = paired_tests.gain(
        [paired_tests.packed(torch.arange(IMAGES) < 36)],
        [paired_tests.packed(torch.arange(IMAGES) < 20)],
        IMAGES,
    )
    assert gain == pytest.approx(0.4)
    assert (line["method"], line["over"], line["gain"], line["seeds"]) == (
        "obq",
        "rtn",
        "40.00",
        "1",
    )
    assert line["95 %"] == f"[{100 * low:.2f}, {100 * high:.2f}]"


def test_only_seeds_that_both_have_count():
    (line,) = shown([answered("rtn", 20), answered("rtn", 10, seed=1), answered("obq", 36)])
    assert (line["gain"], line["seeds"]) == ("40.00", "1")
    assert shown([answered("rtn", 20, seed=1), answered("obq", 36)]) is None


def test_the_better_on_those_seeds_stands_first():
    (line,) = shown(
        [
            answered("rtn", 38),
            answered("obq", 36),
            answered("obq", 40, seed=1),
            answered("obq", 40, seed=2),
        ]
    )
    assert (line["method"], line["over"], line["gain"]) == ("rtn", "obq", "5.00")
    low, high = (float(end) for end in line["95 %"].strip("[]").split(","))
    assert low < 5 < high


@pytest.mark.parametrize(
    "other",
    [
        answered("obq", 36, ids="others"),  # other images
        answered("obq", 36, bits=3.0),  # another setting
        record("obq"),  # from before answers were kept
    ],
)
def test_what_cannot_be_compared_is_not(other):
    assert shown([answered("rtn", 20), other]) is None


def test_every_two_of_a_setting_are_compared():
    names = ("rtn", "gptq", "obq", "sensiquant")
    lines = shown(
        [answered(name, 10 + i, bits=bits) for i, name in enumerate(names) for bits in (3.0, 4.0)]
    )
    assert len(lines) == 2 * 6
    assert {(line["method"], line["over"]) for line in lines if line["bits"] == "4"} == {
        (a, b) for i, a in enumerate(reversed(names)) for b in list(reversed(names))[i + 1 :]
    }
