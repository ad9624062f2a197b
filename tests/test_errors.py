"""Errors in one line."""

import pickle

from sq.errors import SqError, one_line


def test_an_error_of_others_is_one_line_with_its_type():
    assert (
        one_line(ValueError("first \x1b[96mstep\x1b[0m\n  second"))
        == "ValueError: first step second"
    )
    assert one_line(SqError("said\nso")) == "said so"
    assert one_line(KeyError()) == "KeyError: no message"


def test_a_call_is_told_what_it_has():
    assert (
        str(SqError("raise calibration.images", call="give more images"))
        == "raise calibration.images"
    )
    assert SqError("raise calibration.images", call="give more images").call == "give more images"
    assert SqError("lower bits").call == "lower bits"
    # by a worker
    sent = pickle.loads(pickle.dumps(SqError("raise calibration.images", call="give more images")))
    assert (str(sent), sent.call) == ("raise calibration.images", "give more images")
