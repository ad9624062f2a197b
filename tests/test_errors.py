"""Errors in one line."""

from sq.errors import SqError, one_line


def test_an_error_of_others_is_one_line_with_its_type():
    assert one_line(ValueError("first \x1b[96mstep\x1b[0m\n  second")) == "ValueError: first step second"
    assert one_line(SqError("said\nso")) == "said so"
    assert one_line(KeyError()) == "KeyError: no message"
