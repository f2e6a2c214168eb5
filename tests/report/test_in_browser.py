"""The page in a real browser: it asks for nothing, draws everything, and does what its buttons, keys and pointer ask."""

import pytest
from browser import Browser, found
from run_by_hand import data_of, row, write

from jaxmbrl.report import build as making
from jaxmbrl.report import page
from jaxmbrl.report.parts import Chart, Facets, Heading, Page, Picture, Section, Series, Table, Text

pytestmark = pytest.mark.skipif(found() is None, reason="there is no Chromium on this machine")

EVALUATION = "Return in evaluation over real steps"
GIF = bytes.fromhex("47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b")
"""One pixel."""


@pytest.fixture(scope="module")
def browser():
    opened = Browser(found())
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def as_usual(browser):
    browser.size(1280, 900)
    browser.prefer("light")
    browser.scripts(True)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The page of a run of three seeds."""
    folder = tmp_path_factory.mktemp("page")
    more = {"model__holdout_error": 0.25, "imagine__rollout_length": 3.0, "agent__critic_loss": 1e-5}
    rows = [row(seed, step, **more) for step in range(200, 1201, 200) for seed in range(3)]
    made = making.make([write(folder / "run", "mbpo", rows=rows)], rollouts=False)
    (folder / "page.html").write_bytes(made)
    return folder / "page.html"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A page with every kind of part and of series."""
    x, y, low, high = [1, 2, 3], [0.1, 10, 1000], [0.05, 5, 500], [0.2, 20, 2000]
    kinds = ("line", "band", "points", "errors")
    series = [Series(kind, kind, kind, x, y, low, high, i) for i, kind in enumerate(kinds)]
    rule = Series("rule", "rule", "rule", (), [7.0], color=4)
    bars = Series("bars", "bars", "bars", [0.5, 1.5], [3, 4], [0, 1], [1, 2])
    wide = Series("b", "b", "band", [1, 2], [0, 1], [-1000, -1000], [1000, 1000])
    parts = (
        Chart("together", "time (s)", "height (m)", (*series, rule), "A note."),
        Chart("logarithmic", "time (s)", "height (m)", (series[0],), log=True),
        Facets((Chart("bars", "size (m)", "share", (bars,)), Chart("square", "a (m)", "b (m)", (series[2],), square=True))),
        Chart("wide", "time (s)", "height (m)", (Series("l", "l", "line", [1, 2], [0, 1]), wide)),
        Chart("nothing", "time (s)", "height (m)", ()),
        Chart("one", "time (s)", "height (m)", (Series("one", "one", "line", [5], [5]),)),
        *(Heading("h"), Text("t", True), Table("t", ("a", "b"), [[1, 2]]), Picture("film", GIF, "moves")),
    )
    path = tmp_path_factory.mktemp("kinds") / "page.html"
    path.write_bytes(page.render(Page("kinds", ("fact",), (Section("s", "s", parts),)), "footer"))
    return path


def figure(title):
    """A script's expression for the figure called so."""
    return f"[...document.querySelectorAll('figure')].find(f => f.querySelector('figcaption').textContent === {title!r})"


def button(title, key):
    return f"[...{figure(title)}.querySelectorAll('.legend button')].find(b => b.textContent === {key!r})"


def drawn(browser, title):
    """The keys of what is drawn in a chart."""
    return browser.run(f"[...{figure(title)}.querySelectorAll('.plot [data-key]')].map(g => g.dataset.key)")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["file", "kinds"])
def test_all_charts_are_there_and_nothing_is_asked_for(browser, request, which, width):
    path = request.getfixturevalue(which)
    browser.size(width, 900, phone=width < 500)
    browser.open(path)
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [path.absolute().as_uri()]
    charts = data_of(path.read_bytes())
    names = "[...f.querySelectorAll('.plot svg .name')].map(t => t.textContent)"
    assert browser.run(f"[...document.querySelectorAll('figure[data-chart]')].map(f => {names})") == [
        [chart["x"], chart["y"]] for chart in charts
    ]
    for chart in charts:
        assert drawn(browser, chart["title"]) == [series["key"] for series in chart["series"]]
    bad = "e => /NaN|Infinity|undefined/.test(e.outerHTML)"
    assert browser.run(f"[...document.querySelectorAll('.plot *')].filter({bad}).length") == 0
    assert browser.run("document.documentElement.scrollWidth") <= width, "nothing is wider than the window"
    right = "[...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().right)"
    assert browser.run(f"Math.max(...{right})") <= width
    assert browser.run(
        "[...document.querySelectorAll('svg[role=img], img')].every(e => e.getAttribute('aria-label') || e.alt)"
    )


def test_marks_lie_where_their_values_are(browser, kinds):
    """On the logarithmic axis 0.1, 10 and 1000 are evenly spaced; on the linear one 10 is a hundredth of the way."""
    browser.open(kinds)
    for title, share in (("logarithmic", 0.5), ("together", 9.9 / 999.9)):
        marks = f"[...{figure(title)}.querySelectorAll('[data-kind=line] circle')]"
        low, middle, high = browser.run(f"{marks}.map(c => Number(c.getAttribute('cy')))")
        assert (low - middle) / (low - high) == pytest.approx(share, abs=0.002)
    bars = f"[...{figure('bars')}.querySelectorAll('[data-kind=bars] rect')]"
    first, second = browser.run(f"{bars}.map(r => r.getBBox().height)")
    assert first / second == pytest.approx(3 / 4, abs=0.01)


def test_a_wide_band_leaves_its_lines_their_room(browser, kinds):
    """Lines from 0 to 1 have a third of an axis from -1 to 2, a little widened."""
    browser.open(kinds)
    plot = f"{figure('wide')}.querySelector('.plot svg')"
    line, axis = browser.run(f"[{plot}.querySelector('[data-kind=line] path').getBBox().height, {plot}.clientHeight - 52]")
    assert line / axis == pytest.approx(1 / (3 * 1.08), abs=0.01)


def test_a_seed_is_hidden_and_shown_by_pointer_and_keyboard(browser, file):
    browser.open(file)
    every = drawn(browser, EVALUATION)
    assert every.count("seed 1") == 1 and every.count("interquartile mean") == 2, "the mean and its band"
    browser.run(f"{button(EVALUATION, 'seed 1')}.click()")
    browser.settle()
    assert drawn(browser, EVALUATION) == [key for key in every if key != "seed 1"]
    assert browser.run(f"{button(EVALUATION, 'seed 1')}.getAttribute('aria-pressed')") == "false"
    assert "seed 1" in drawn(browser, "Return in training over real steps"), "of another chart it is not"
    browser.run(f"{button(EVALUATION, 'seed 1')}.focus()")
    browser.press("Enter", 13)
    assert drawn(browser, EVALUATION) == every
    assert browser.run(f"{button(EVALUATION, 'seed 1')}.getAttribute('aria-pressed')") == "true"
    for key in set(every):
        browser.run(f"{button(EVALUATION, key)}.click()")
    browser.settle()
    assert drawn(browser, EVALUATION) == [] and browser.errors == []


def background(browser):
    """Brightness of the page's background, from 0 to 255."""
    color = browser.run("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")) / 3


def test_it_is_light_or_dark_as_the_system_is_or_the_button_says(browser, file):
    for scheme, other in (("light", "dark"), ("dark", "light")):
        browser.prefer(scheme)
        browser.open(file)
        before = background(browser)
        assert before > 240 if scheme == "light" else before < 40
        assert browser.run("document.getElementById('theme').textContent") == other
        line = f"getComputedStyle({figure(EVALUATION)}.querySelector('[data-key=\"seed 1\"] path')).stroke"
        color = browser.run(line)
        browser.run("document.getElementById('theme').click()")
        assert background(browser) < 40 if scheme == "light" else background(browser) > 240
        assert browser.run(line) != color, "lines have colours for both"


def test_values_are_told_under_the_pointer_and_by_arrow_keys(browser, file):
    browser.open(file)
    tip = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"
    assert browser.run(tip) == ""
    where = f"{figure(EVALUATION)}.querySelector('.plot svg').getBoundingClientRect()"
    box = browser.run(f"(b => [b.left, b.top, b.width, b.height])({where})")
    browser.move(box[0] + box[2] - 20, box[1] + box[3] / 2)
    told = browser.run(tip)
    # At step 1,200, on the right, seed 2 has earned -1000 + 1200 * 1.2.
    assert "real environment steps per seed: 1,200" in told and "seed 2: 440" in told
    browser.move(5, 5)
    assert browser.run(tip) == ""
    browser.run(f"{figure(EVALUATION)}.querySelector('.plot svg').focus()")
    browser.press("ArrowRight", 39)
    assert "real environment steps per seed: 400" in browser.run(tip)
    browser.press("ArrowRight", 39)
    assert "real environment steps per seed: 800" in browser.run(tip)
    browser.press("Escape", 27)
    assert browser.run(tip) == ""


def test_without_its_script_the_numbers_are_there(browser, file):
    browser.scripts(False)
    browser.open(file)
    text = browser.run("document.body.innerText")
    assert "The numbers of each are in the table below it." in text
    assert "440" in browser.run("[...document.querySelectorAll('details table')].map(t => t.textContent).join(' ')")


def test_what_a_run_is_called_does_nothing(browser, tmp_path):
    evil = "<img src=x onerror=document.title=1>"
    run = write(tmp_path / f"{evil}<script>", rows=[row(0, 400, **{f"odd__{evil}": 1.0})], seeds=1)
    (tmp_path / "page.html").write_bytes(making.make([run], rollouts=False))
    browser.open(tmp_path / "page.html")
    assert browser.errors == [] and browser.run("document.title") == "sac on pendulum"
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert evil in browser.run("document.body.innerText")
