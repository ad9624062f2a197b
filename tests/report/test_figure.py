"""Figures: told apart without colour, with bars for seeds, and honest about what they leave out."""

import itertools

import pytest
from matplotlib.container import ErrorbarContainer
from report_pages import RESULTS
from test_table import record

from sq.records import record as records
from sq.report import figure, style, table


def lines(axes):
    return {c.get_label(): c for c in axes.containers if isinstance(c, ErrorbarContainer)}


@pytest.fixture
def closed():
    yield
    style.pyplot().close("all")


def test_looks_differ_in_black_and_white():
    looks = [style.line_style(i) for i in range(style.MAX_LINES)]
    grey = {(own["marker"], own["markerfacecolor"] == "white") for own in looks}
    assert len(grey) == style.MAX_LINES
    for one, two in itertools.pairwise(looks):
        assert one["linestyle"] != two["linestyle"]


def luminance(colour):
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2


def test_no_colour_is_lost_on_white_paper():
    for colour in style.COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) > 2, colour


@pytest.mark.usefixtures("closed")
def test_real_experiment_has_a_row_for_each_network_and_bars_for_seeds():
    rows = table.rows(records.read_all(RESULTS / "cifar10"))
    made = figure.methods(rows)
    panels = [axes for axes in made.axes if axes.axison]
    assert len(panels) == 2 * 4  # networks x (32, 8, 4 bits of inputs, error against time)
    methods = {"gptq", "obq", "rtn", "sensiquant", "sensiquant_plus"}
    for axes in panels:
        own = lines(axes)
        assert set(own) == methods
        looks = {
            (o[0].get_marker(), o[0].get_markerfacecolor(), o[0].get_linestyle())
            for o in own.values()
        }
        assert len(looks) == len(methods)
    first = lines(panels[0])
    assert sum(bool(own.has_yerr) for own in first.values()) >= 4
    gptq = [
        row
        for row in rows
        if row["labels"] | {"bits": 0}
        == {"method": "gptq", "bits": 0, "act. bits": 32, "model": "resnet20"}
    ]
    line = first["gptq"][0]
    drawn = {
        round(float(x)): float(y) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert drawn == pytest.approx({row["labels"]["bits"]: sum(row["score"]) / 3 for row in gptq})
    names = [text.get_text() for text in made.legends[0].get_texts()]
    assert names == [*sorted(methods), "full precision"]


@pytest.mark.usefixtures("closed")
def test_what_is_left_out_is_said():
    many = []
    for rankings in range(20):
        own = record("sensiquant", top1=90.0 + rankings / 10)
        own["config"]["quantizer"]["solve"]["rankings"] = rankings
        many.append(own)
    made = figure.methods(table.rows(many))
    assert made.get_suptitle() == "16 of 20 lines shown; all: index.html"
    assert len(lines(made.axes[0])) == 16
    assert figure.methods(table.rows(many[:3])).get_suptitle() == ""


@pytest.mark.usefixtures("closed")
def test_pictures_are_the_same_each_time(tmp_path):
    rows = table.rows(records.read_all(RESULTS / "quickstart"))
    first, second = (style.save(figure.methods(rows), tmp_path / name) for name in ("a", "b"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert b"Date" not in first[1].read_bytes()


def row(**labels):
    own = {
        "score": [90.0, 91.0],
        "drop": [2.0, 1.0],
        "relative_error": [0.1, 0.2],
        "solve_seconds": [1.0, 2.0],
    }
    named = {
        name.replace("_", " ").replace("act bits", "act. bits"): value
        for name, value in labels.items()
    }
    return {"labels": {"method": "rtn", "bits": 4.0, **named}, "headline": "top1", "runs": 2, **own}


@pytest.mark.parametrize(
    ("rows", "along"),
    [
        ([row(bits=4.0), row(bits=3.0)], "bits"),
        ([row()], "bits"),
        ([row(bits=b, images=i) for b in (4.0, 3.0) for i in (1, 2, 3)], "bits"),
        ([row(images=i, damp=d) for i in (16, 64, 256) for d in (0.1, 1.0)], "images"),
        ([row(act_bits=b, range=r) for b in (8, 4) for r in ("mse", "kl")], "act. bits"),
        ([row(flag=f, range=r) for f in (True, False) for r in ("mse", "kl")], "bits"),
        ([row(images=i) for i in (16, None)], "bits"),
    ],
)
def test_what_accuracy_stands_against(rows, along):
    assert figure.varied(rows) == along


def drawn(rows):
    made = figure.methods(rows)
    style.pyplot().close(made)
    return made


def test_a_number_that_varies_widely_is_logarithmic_with_every_value_named():
    made = drawn([row(method=m, images=i) for m in ("rtn", "obq") for i in (16, 64, 256)])
    accuracy, tradeoff = made.axes
    assert (accuracy.get_xlabel(), accuracy.get_xscale()) == ("images", "log")
    assert [tick.get_text() for tick in accuracy.get_xticklabels()] == ["16", "64", "256"]
    assert {text.get_text() for text in tradeoff.texts} == {"16", "64", "256"}
    assert [text.get_text() for text in made.legends[0].get_texts()] == [
        "rtn",
        "obq",
        "full precision",
    ]


def test_activation_bits_are_panels_unless_they_are_all_that_varies():
    both = [row(bits=b, act_bits=a) for b in (4.0, 3.0) for a in (8, 4)]
    assert [axes.get_xlabel() for axes in drawn(both).axes[:-1]] == ["weight bits", "weight bits"]
    alone = drawn([row(range=r, act_bits=a) for r in ("mse", "kl") for a in (8, 4)])
    assert [axes.get_xlabel() for axes in alone.axes[:-1]] == ["act. bits"]


@pytest.mark.usefixtures("closed")
def test_layouts_that_differ_in_their_last_digits_are_one(tmp_path):
    drawn = figure.methods(table.rows(records.read_all(RESULTS / "quickstart")))
    style.save(drawn, tmp_path / "a")
    for axes in drawn.axes:
        places = axes.get_position(original=True).get_points().flatten()
        assert places == pytest.approx(places.round(style.POSITION_DIGITS), abs=1e-12)


def test_what_differs_from_network_to_network_only_names_no_line():
    rows = []
    for model, images in (("a", 8), ("b", 16)):
        for name in ("rtn", "obq"):
            made = record(name, calibration={"images": images, "seed": 0})
            made["choices"]["model"] = model
            made["key"] += model
            rows.append(made)
    drawn = figure.methods(table.rows(rows))
    lines = [{bar.get_label() for bar in axes.containers} for axes in drawn.axes[::2]]
    assert lines == [{"rtn", "obq"}, {"rtn", "obq"}]
    style.pyplot().close(drawn)
