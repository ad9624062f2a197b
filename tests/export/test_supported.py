"""The table of what each format holds: every cell is tried."""

import pytest
import supported
import torch
from supported import FILE, FORMATS, GRIDS, INPUTS, LAYERS

from sq.errors import SqError

TEXT = FILE.read_text()


def tables():
    """Return the committed tables by heading: cells by the first word of a line."""
    found = {}
    for part in TEXT.split("\n## ")[1:]:
        heading, _, body = part.partition("\n\n")
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in body.splitlines()
            if "|" in line
        ]
        found[heading] = {row[0]: row[1:] for row in rows if set(row[0]) != {"-"}}
    return found


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_are_held_as_the_table_says(layer, format):
    assert tables()[f"Weights, `export={format}`"][layer] == supported.weights_row(layer, format)


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_are_held_as_the_table_says(kind):
    assert tables()["What layers are fed"][kind] == supported.inputs_row(kind)


def test_the_table_lists_what_is_tried():
    for format in FORMATS:
        own = tables()[f"Weights, `export={format}`"]
        assert own.pop("layer") == [*GRIDS]
        assert [*own] == [*LAYERS]
    own = tables()["What layers are fed"]
    assert [*own] == ["grid", *INPUTS]


def test_widths_in_words():
    assert supported.widths(lambda bits: bits in (1, 3, 4, 5, 16)) == "1, 3-5, 16"
    assert supported.widths(lambda bits: bits != 6) == "1-5, 7-16"
    assert supported.widths(lambda bits: False) == "no"


def test_a_format_that_computes_something_else_is_found_out(monkeypatch):
    take = supported.Reader.take_grid
    monkeypatch.setattr(
        supported.Reader,
        "take_grid",
        lambda own, words: take(own, words).scaled(torch.tensor(1.01)),
    )
    with pytest.raises(AssertionError, match="exact"):
        supported.weights_row("1x1", "packed")


def test_a_refusal_that_names_no_way_out_is_no_cell(monkeypatch):
    monkeypatch.setattr(supported.onnx_export.Frame, "quantized", lambda *own: refuse())
    with pytest.raises(SqError, match="cannot hold it"):
        supported.weights_row("1x1", "onnx")


def refuse():
    raise SqError("ONNX cannot hold it")
