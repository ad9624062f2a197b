"""Tables of latency: read as they stand, and whatever is wrong with them is named."""

import pytest

from sq.allocation import latency_table as latency
from sq.errors import SqError


@pytest.fixture
def written(tmp_path):
    def write(text):
        file = tmp_path / "table.csv"
        file.write_text(text)
        return str(file)

    return write


def test_columns_in_any_order_and_more_of_them(written):
    table = latency.read(
        written("\ufeffms, layer,input_bits,bits,note\n0.5,a.b,32,4,x\n\n1e-3,a.b,8,4,\n")
    )
    assert table.ms == {("a.b", 4, 32): 0.5, ("a.b", 4, 8): 0.001}


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(
        SqError, match=r"latency_table=.*none\.csv: No such file.*layer,bits,input_bits,ms"
    ):
        latency.read(str(tmp_path / "none.csv"))


@pytest.mark.parametrize("text", ["", "layer,bits,ms\na,4,1\n"])
def test_columns_that_are_not_there(written, text):
    with pytest.raises(
        SqError, match=r"no column .*input_bits.*; its columns should be layer,bits,input_bits,ms"
    ):
        latency.read(written(text))


@pytest.mark.parametrize(
    "line", ["a,4,32,fast", "a,4.5,32,1", "a,4,32,nan", "a,4,32,-1", ",4,32,1", "a,4"]
)
def test_lines_that_are_none(written, line):
    with pytest.raises(
        SqError, match=r"line 3: .*should be a layer, its bits, its inputs' bits, and milliseconds"
    ):
        latency.read(written(f"layer,bits,input_bits,ms\na,2,32,1\n{line}\n"))


def test_line_that_comes_twice(written):
    with pytest.raises(SqError, match=r"line 3: a at 4 and 32 bits has a line before"):
        latency.read(written("layer,bits,input_bits,ms\na,4,32,1\na,4,32,2\n"))


def test_file_that_is_no_text(tmp_path):
    file = tmp_path / "table.csv"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SqError, match=r"table\.csv: .*decode"):
        latency.read(str(file))
