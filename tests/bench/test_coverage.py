"""The table of which weights are quantized: what it is made from, and what stands in the committed one."""

import csv
import re
import statistics
from pathlib import Path

import pytest

from sq.bench import coverage
from sq.network.weight_coverage import percent

COMMITTED = Path(__file__).parents[2] / "results" / "coverage"
SMALL = {
    "lcnet_050": "100.00",
    "repghostnet_050": "100.00",
    "test_vit": None,
    "tf_efficientnet_cc_b0_4e": "19.36",
    "levit_128s": None,
}


@pytest.fixture(scope="module")
def committed():
    return list(csv.DictReader((COMMITTED / "table.csv").read_text().splitlines()))


def test_at_least_forty_families_of_timm_and_torchvisions_kinds():
    families = {own.family for own in coverage.NETWORKS if own.library == "timm"}
    assert len(families) >= 40
    others = {own.name for own in coverage.NETWORKS if own.library == "torchvision"}
    for kind in (
        "resnet",
        "deeplabv3",
        "fcn",
        "lraspp",
        "retinanet",
        "fasterrcnn",
        "ssdlite",
        "fcos",
    ):
        assert any(name.startswith(kind) for name in others), kind


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_are_found_as_the_table_has_them(name, committed):
    known = {own.name: own for own in coverage.NETWORKS}
    row = coverage.measure(known.get(name) or coverage.Network("ViT", name, 160))
    cells = dict(zip(coverage.HEAD, coverage.cells(row), strict=True))
    assert row.unaccounted == 0
    assert row.coverage.share + sum(own.share for own in row.coverage.left_out) == pytest.approx(1)
    if SMALL[name]:
        assert cells["quantized %"] == SMALL[name]
    for line in committed:
        if line["network"] == name and line["library"] == "timm":
            assert line == cells


def test_committed_table_keeps_the_bounds(committed):
    assert [(line["library"], line["network"]) for line in committed] == [
        (own.library, own.name) for own in coverage.NETWORKS
    ]
    shares = [float(line["quantized %"]) for line in committed]
    assert statistics.median(shares) == 100
    for line, share in zip(committed, shares, strict=True):
        assert line["unaccounted"] == "0"
        if share < 100 * coverage.MIN_SHARE:
            largest = line["left out, by reason"].split("; ")[0]
            assert re.fullmatch(r"[\d.]+ % (.*)", largest)[1] in coverage.ARITHMETIC, line[
                "network"
            ]


def test_markdown_holds_the_lines_of_the_csv(committed):
    text = (COMMITTED / "table.md").read_text()
    for line in committed:
        assert "| " + " | ".join(line.values()) + " |" in text
    below = [
        line["network"]
        for line in committed
        if float(line["quantized %"]) < 100 * coverage.MIN_SHARE
    ]
    summary = text.partition("\n")[0]
    assert summary.startswith(
        f"{len(committed)} networks: median {percent(1.0)} of the weights quantized"
    )
    assert all(name in summary for name in below)
