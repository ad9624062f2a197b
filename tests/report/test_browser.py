"""The pages in a real browser: headless Chromium opens the files, sorts, filters, clicks, and complains of nothing."""

import os
import shutil

import pytest
from report_pages import NASTY, copied, with_failures

from sq.records import record
from sq.report import __main__ as report

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
NONE = "\N{EN DASH}"
MISSING = "no chromium and chromedriver: apt-get install chromium chromium-driver"


@pytest.fixture(scope="module")
def browser():
    if not BROWSER or not DRIVER:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def results(tmp_path_factory, browser):
    """Experiments of real records: one with failures, one of two networks, one that failed, one not reported yet."""
    folder = tmp_path_factory.mktemp("results")
    failed = with_failures(folder / "spare", 2)
    broken = (folder / "spare" / "quickstart").rename(folder / "broken")
    for file in broken.glob("*.json"):
        if file.stem not in failed:
            file.unlink()
    with_failures(folder)
    for name in ("cifar10", "rankings"):
        copied(folder, name)
    for name in ("quickstart", "cifar10", "broken"):
        report.build(name, folder)
    return folder


@pytest.fixture
def show(browser, results):
    """Open a page; at the end nothing may have been complained of."""

    def opened(name, state=""):
        browser.get("about:blank")  # an address that differs in its state alone is not loaded again
        browser.get(f"{(results / name / 'index.html').as_uri()}{state}")
        assert browser.execute_script("return document.documentElement.dataset.ready") == "yes", (
            complaints(browser)
        )
        return browser

    browser.get_log("browser")
    yield opened
    assert complaints(browser) == []


def complaints(browser):
    return [
        line["message"]
        for line in browser.get_log("browser")
        if line["level"] in ("SEVERE", "WARNING")
    ]


def find(browser, css):
    return browser.find_elements("css selector", css)


def click(browser, css, text=None):
    """Click the first element that `css` selects and, if given, whose text is `text`."""
    found = [node for node in find(browser, css) if text is None or node.text.strip() == text]
    assert found, (css, text)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found[0])
    found[0].click()


def column(browser, host, title):
    """Return the texts of a column in the rows in view."""
    heads = [head.text for head in find(browser, f"{host} thead th")]
    place = heads.index(title) + 1
    script = "return [...document.querySelectorAll(arguments[0])].map((cell) => cell.textContent)"
    return browser.execute_script(script, f"{host} tbody td:nth-child({place})")


def choose(browser, css, value):
    from selenium.webdriver.support.ui import Select

    Select(find(browser, css)[0]).select_by_value(value)


def first(cell):
    return float(cell.split()[0].replace("\N{MINUS SIGN}", "-"))


def test_a_complaint_is_noticed(browser):
    browser.get("data:text/html,<script>console.error('oh'); throw new Error('no')</script>")
    assert len(complaints(browser)) == 2


def test_table_sorts_by_numbers_both_ways_and_back(show):
    browser = show("quickstart")
    before = column(browser, "#summary-host", "solve s")
    for direction, sign in (("ascending", 1), ("descending", -1)):
        click(browser, "#summary-host th button", "solve s")
        cells = column(browser, "#summary-host", "solve s")
        assert cells[-1] == NONE  # full precision has none, and stays last
        assert [first(c) for c in cells[:-1]] == sorted(
            [first(c) for c in cells[:-1]], key=lambda s: sign * s
        )
        assert sorted(cells) == sorted(before)
        assert [h.get_attribute("aria-sort") for h in find(browser, "#summary-host th")].count(
            direction
        ) == 1
    click(browser, "#summary-host th button", "solve s")
    assert column(browser, "#summary-host", "solve s") == before


def test_sorting_works_from_the_keyboard_and_stays_in_the_address(show):
    browser = show("quickstart")
    head = next(node for node in find(browser, "#runs-host th button") if node.text == "top-1 %")
    head.send_keys("\n")
    cells = column(browser, "#runs-host", "top-1 %")
    known = [first(cell) for cell in cells if cell != NONE]
    assert known == sorted(known)
    assert len(set(known)) > 3
    assert "r.sort=top-1" in browser.current_url
    again = show("quickstart", browser.current_url[browser.current_url.index("#") :])
    assert column(again, "#runs-host", "top-1 %") == cells


def test_filters_by_choice_and_by_words(show):
    browser = show("cifar10")
    choose(browser, "#summary-host select[aria-label='Filter by method']", "obq")
    assert set(column(browser, "#summary-host", "method")) == {"obq"}
    choose(browser, "#summary-host select[aria-label='Filter by model']", "resnet32")
    assert set(column(browser, "#summary-host", "model")) == {"resnet32"}
    # 4, 3, 2 bits, and inputs in 8 and 4 bits
    assert len(column(browser, "#summary-host", "method")) == 5
    find(browser, "#summary-host input[type=search]")[0].send_keys("nothing like it")
    assert column(browser, "#summary-host", "method") == ["No row fits the filters."]
    assert find(browser, "#summary-host .told")[0].text == "0 of 52 rows"
    click(browser, "#summary-host .controls button", "Clear")
    find(browser, "#summary-host input[type=search]")[0].send_keys("RTN resnet20")
    assert set(column(browser, "#summary-host", "method")) == {"rtn"}


def test_pages_of_a_long_table_turn(show):
    browser = show("cifar10")
    seen = column(browser, "#runs-host", "run")
    assert len(seen) == 25
    for _ in range(5):
        click(browser, "#runs-host .pager button", "Next")
        seen += column(browser, "#runs-host", "run")
    assert len(set(seen)) == 150
    assert not find(browser, "#runs-host .pager button")[1].is_enabled()


def test_layers_of_a_run_open(show, results):
    browser = show("quickstart")
    choose(browser, "#runs-host select[aria-label='Filter by status']", "done")
    key = find(browser, "#runs-host button.key")[0].text
    (own,) = [r for r in record.read_all(results / "quickstart") if r["key"].startswith(key)]
    click(browser, "#runs-host button.key", key)
    assert find(browser, "dialog#run")[0].get_attribute("open") is not None
    assert column(browser, "#layer-table", "layer") == [layer["name"] for layer in own["layers"]]
    errors = [first(cell) for cell in column(browser, "#layer-table", "rel. error")]
    assert errors == pytest.approx([layer["relative_error"] for layer in own["layers"]], rel=6e-3)
    bars = find(browser, "dialog .layer-chart:first-of-type rect.bar")
    assert len(bars) == len(own["layers"])
    heights = [float(bar.get_attribute("height")) for bar in bars]
    assert heights.index(max(heights)) == errors.index(max(errors))
    click(browser, "#layer-table th button", "rel. error")
    assert [first(cell) for cell in column(browser, "#layer-table", "rel. error")] == sorted(errors)
    click(browser, "dialog .close")
    assert find(browser, "dialog#run")[0].get_attribute("open") is None
    opened = show("quickstart", f"#run={own['key']}")
    assert find(opened, "dialog#run")[0].get_attribute("open") is not None


def test_two_configs_are_compared(show, results):
    browser = show("quickstart")
    known = {
        (r["choices"]["quantizer"], r["config"]["bits"]): r
        for r in record.read_all(results / "quickstart")
    }
    one, two = known["gptq", 4], known["gptq", 3]
    for name, own in (("A", one), ("B", two)):
        field = find(browser, f"input[aria-label='Key of run {name}']")[0]
        field.clear()
        field.send_keys(own["key"][:10], "\n")
    rows = find(browser, "details[data-part='Settings'] tbody tr")
    told = {
        row.find_element("tag name", "th").text: [c.text for c in find(row, "td")] for row in rows
    }
    assert told.pop("bits") == ["4", "3"]
    seeds = (
        {"seed", "calibration.seed"} if one["config"]["seed"] != two["config"]["seed"] else set()
    )
    assert set(told) == seeds
    click(browser, "#every")
    assert len(find(browser, "details[data-part='Settings'] tbody tr")) > 40
    assert f"A={one['key']}" in browser.current_url


def test_comparison_is_chosen_in_the_table(show):
    browser = show("cifar10")
    click(browser, "#runs-host tbody tr:nth-child(3) button[aria-label$='as B']")
    key = find(browser, "#runs-host tbody tr:nth-child(3) button.key")[0].text
    assert (
        find(browser, "input[aria-label='Key of run B']")[0].get_attribute("value").startswith(key)
    )
    assert len(find(browser, "#runs-host [aria-pressed=true]")) == 2


def test_legend_shows_and_hides_a_line_and_points_lead_to_runs(show):
    browser = show("quickstart")
    names = [node.text for node in find(browser, "#legend button")]
    assert names == ["gptq", "obq", "rtn", "sensiquant", "sensiquant_plus"]

    def drawn():
        return [node.get_attribute("data-name") for node in find(browser, "#chart-score .series")]

    assert drawn() == names
    click(browser, "#legend button", "rtn")
    assert drawn() == [name for name in names if name != "rtn"]
    assert find(browser, "#legend button")[2].get_attribute("aria-pressed") == "false"
    click(browser, "#legend button", "rtn")
    assert drawn() == names
    dashes = {
        node.get_attribute("stroke-dasharray") for node in find(browser, "#chart-score path.line")
    }
    shapes = {
        node.get_attribute("d") for node in find(browser, "#chart-score .point path[transform]")
    }
    assert len(dashes) == 4
    assert len(shapes) == 5  # without colour, too
    points = find(browser, "#chart-score .series[data-name=obq] .point")
    points[0].send_keys("\n")
    assert set(column(browser, "#runs-host", "method")) == {"obq"}
    assert set(column(browser, "#runs-host", "bits")) == {"2"}


def test_points_tell_their_figures(show):
    browser = show("quickstart")
    point = find(browser, "#chart-score .series[data-name=sensiquant_plus] .point")[0]
    browser.execute_script("arguments[0].focus()", point)
    told = find(browser, "#tip")[0]
    assert told.is_displayed()
    assert told.text.splitlines()[0] == "sensiquant_plus"
    assert "top-1 % 95." in told.text
    assert "±" in told.text


def test_figures_show_one_network_at_a_time(show):
    browser = show("cifar10")
    labels = "return [...document.querySelectorAll('#chart-score .point')].map((p) => p.getAttribute('aria-label'))"
    small = browser.execute_script(labels)
    choose(browser, "select[data-facet=model]", "resnet32")
    large = browser.execute_script(labels)
    assert len(small) == len(large) == 15
    assert not set(small) & set(large)
    choose(browser, "select[data-facet='act. bits']", "4")
    assert len(find(browser, "#chart-score .point")) == 5


def test_failures_are_listed_with_their_causes(show):
    browser = show("quickstart")
    causes = [node.text for node in find(browser, "#failures-host .failure > p")]
    assert [" ".join(cause.split()) for cause in causes] == [
        " ".join(NASTY.split()),
        "SqError: layer stem.0 is not positive definite",
    ]
    assert browser.title == "quickstart - sq"
    click(browser, "#failures-host summary")
    assert find(browser, "#failures-host pre")[0].is_displayed()
    choose(browser, "#runs-host select[aria-label='Filter by status']", "failed")
    assert (
        len(find(browser, "#runs-host tr.failed")) == len(find(browser, "#failures-host li")) == 3
    )


def test_index_leads_to_pages(show):
    browser = show(".")
    names = [node.text for node in find(browser, "#experiments-host .name")]
    assert names == ["broken", "cifar10", "quickstart", "rankings"]
    assert "not reported yet" in find(browser, "#experiments-host tbody tr:last-child")[0].text
    click(browser, "#experiments-host a.name", "quickstart")
    assert browser.title == "quickstart - sq"


def test_experiment_of_failures_only(show):
    browser = show("broken")
    assert len(find(browser, "#failures-host .cause")) == 2
    assert len(find(browser, "#runs-host tr.failed")) == 2
    assert not find(browser, "#chart-score")


def test_dark_and_narrow_windows_have_no_overflow(show):
    browser = show("cifar10")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    for width in (1400, 800, 500):
        browser.set_window_size(width, 900)
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, width
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.set_window_size(1400, 1000)
