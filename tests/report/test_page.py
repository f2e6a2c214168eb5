"""The page as HTML: what stands on it, its numbers, and that nothing in it is anything but text."""

import base64
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest
from command_line import call
from run_by_hand import curve, data_of, row, write

from jaxmbrl.report import build as making
from jaxmbrl.report import curves, gathering, page, sections
from jaxmbrl.report.parts import Chart, Page, Section, Series, Table, Text, chosen, table_of
from jaxmbrl.training.evaluation import bootstrap_interval, interquartile_mean, probability_of_improvement
from jaxmbrl.training.run_folder import RunFolder, event_of

EVIL = '</script><img src=x onerror="alert(1)"><!--'


class Reader(html.parser.HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, made):
        super().__init__()
        self.elements, self.texts, self._inside = [], [], []
        self.feed(made.decode())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.texts.append(data)


def charts_of(made):
    return {chart["title"]: chart for chart in data_of(made)}


def test_the_curve_of_a_run(run):
    made = making.make([run], rollouts=False)
    chart = charts_of(made)["Return in evaluation over real steps"]
    assert (chart["x"], chart["y"]) == ("real environment steps per seed", "return per episode")
    series = {one["name"]: one for one in chart["series"]}
    assert set(series) == {"seed 0", "seed 1", "seed 2", "interquartile mean", "interquartile mean, 95% bootstrap band"}
    assert series["seed 1"]["x"] == [400, 800, 1200] and series["seed 1"]["thin"]
    np.testing.assert_allclose(series["seed 1"]["y"], [curve(1, step) for step in (400, 800, 1200)], rtol=1e-5)
    values = [curve(seed, 800) for seed in range(3)]
    assert series["interquartile mean"]["y"][1] == pytest.approx(interquartile_mean(values), rel=1e-5)
    band = series["interquartile mean, 95% bootstrap band"]
    due = bootstrap_interval(values, repetitions=2000)
    assert (band["low"][1], band["high"][1]) == pytest.approx(due, rel=1e-5)
    wall = charts_of(made)["Return in evaluation over the wall clock"]
    assert wall["x"] == "wall clock, compilation included (s)"
    assert wall["series"][1]["x"] == [18, 26, 34]


def test_one_seed_is_a_line_without_a_band(tmp_path):
    made = making.make([write(tmp_path / "run", seeds=1)], rollouts=False)
    (series,) = charts_of(made)["Return in evaluation over real steps"]["series"]
    assert (series["name"], series["kind"], series["thin"]) == ("seed 0", "line", False)


def test_a_seed_that_was_frozen_counts_no_more(tmp_path):
    rows = [row(seed, step) for step in (400, 800) for seed in range(2)]
    rows[3] = {"epoch": 4, "env_steps": 800, "seed": 1, "wall_time": 26.0, "frozen": True}
    run = write(tmp_path / "run", seeds=2, rows=rows)
    made = making.make([run], rollouts=False)
    series = {one["name"]: one for one in charts_of(made)["Return in evaluation over real steps"]["series"]}
    assert series["seed 1"]["x"] == [400] and series["interquartile mean"]["y"][1] == pytest.approx(curve(0, 800))
    assert "froze seed 1" in made.decode()


def test_every_chart_has_names_a_table_and_numbers(run):
    made = making.make([run], rollouts=False)
    read = Reader(made)
    charts = data_of(made)
    assert len(charts) >= 4 and all(chart["x"] and chart["y"] and chart["title"] for chart in charts)
    figures = [attributes for tag, attributes in read.elements if tag == "figure" and "data-chart" in attributes]
    assert [int(figure["data-chart"]) for figure in figures] == list(range(len(charts)))
    assert sum(tag == "details" for tag, _ in read.elements) >= len(charts)
    assert f"{curve(2, 1200):.4g}" in " ".join(read.texts), "the numbers are there without the script"


def test_the_page_asks_for_nothing(run):
    made = making.make([run], rollouts=False)
    for tag, attributes in Reader(made).elements:
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    text = made.decode()
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"'sha256-{digest}'" in policy


def test_names_and_texts_are_never_markup(tmp_path):
    folder = tmp_path / EVIL.replace("/", "\u2215")
    run = write(folder, events=[event_of("warning", text=EVIL)], rows=[row(0, 400, **{"odd__" + EVIL: 1.0})], seeds=1)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("preset: pendulum", f"preset: {json.dumps(EVIL)}"))
    read = Reader(making.make([run], rollouts=False))
    tags = [tag for tag, _ in read.elements]
    assert tags.count("script") == 2 and "img" not in tags
    assert not any("onerror" in name for _, attributes in read.elements for name in attributes)
    assert any(EVIL in text for text in read.texts)


def test_inlined_json_ends_no_script_and_stays_what_it_is():
    value = [EVIL, "a\u2028b\u2029&", {"<!--": 1}]
    text = page.inlined(value)
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == value


def test_a_run_that_has_just_begun(tmp_path):
    made = making.make([write(tmp_path / "run", rows=[])], rollouts=False)
    assert data_of(made) == [] and "nothing has been evaluated yet" in made.decode()


def test_several_runs_are_laid_over_one_another_and_compared(tmp_path):
    better = [row(seed, step) for step in (400, 800) for seed in range(3)]
    for one in better:
        one["eval/return"] += 75
    paths = [write(tmp_path / "sac"), write(tmp_path / "td3", "td3", rows=better)]
    made = making.make(paths, rollouts=False)
    charts = charts_of(made)
    keys = {one["key"] for one in charts["Return in evaluation over real steps"]["series"]}
    assert keys == {"sac", "sac: seeds", "td3", "td3: seeds"}
    # The last step that both have come to is 800.
    sac = [curve(seed, 800) for seed in range(3)]
    td3 = [value + 75 for value in sac]
    text = " ".join(Reader(made).texts)
    assert "Return in evaluation at 800 steps" in text
    assert f"{probability_of_improvement((td3, sac)):.2f} (" in text
    profile = {one["name"]: one for one in charts["Performance profile"]["series"]}["td3"]
    for threshold, share in zip(profile["x"], profile["y"], strict=True):
        assert share == pytest.approx(np.mean([value > threshold for value in td3]), abs=1e-5)


def test_tasks_are_compared_one_by_one_and_together(tmp_path):
    rows = [row(seed, 400, odd__one=1.0) for seed in range(3)]
    tasks = ("pendulum", "cartpole-continuous")
    paths = [write(tmp_path / f"{name}-{env}", name, env=env, rows=rows) for name in ("sac", "td3") for env in tasks]
    made = making.make(paths, rollouts=False)
    text = " ".join(Reader(made).texts)
    keys = {one["key"] for one in charts_of(made)["odd/one"]["series"]}
    assert {"sac on pendulum", "sac on cartpole-continuous"} <= keys
    assert "Over all tasks" in text and "cartpole-continuous" in text and "95% stratified bootstrap interval" in text


def test_published_returns_stand_beside_ours(tmp_path):
    rows = [row(0, step) for step in range(10_000, 60_001, 10_000)]
    run = write(tmp_path / "run", env="Hopper-v5", steps=60_000, seeds=1, rows=rows, algorithm="sac")
    file = tmp_path / "returns.csv"
    lines = ["task,environment_steps,method,return_mean,return_std,seeds,wall_clock_hours,suite,source"]
    lines += ["Hopper,50000,MBPO,1728.2,934.4,5,3.36,gym,there", "Hopper,900000,SAC (UTD1),3000,10,5,,gym,elsewhere"]
    file.write_text("\n".join(lines) + "\n")
    made = making.make([run], rollouts=False, published_file=file)
    series = {one["name"]: one for one in charts_of(made)["Return in evaluation over real steps"]["series"]}
    theirs = series["MBPO, published, 5 seeds"]
    assert (theirs["x"], theirs["y"], theirs["low"], theirs["high"]) == ([50_000], [1728.2], [793.8], [2662.6])
    assert series["SAC (UTD1) at 900,000 steps, published"]["y"] == [3000]
    assert "1,728 ± 934" in made.decode() and "sources: there" in made.decode()


def test_model_metrics_and_other_ones_have_charts(tmp_path):
    more = {"model__holdout_error": 0.25, "model__aleatoric": 0.1, "imagine__rollout_length": 3.0, "svg__weight": 0.5}
    made = making.make([write(tmp_path / "run", "mbpo", rows=[row(0, 400, **more)], seeds=1)], rollouts=False)
    charts = charts_of(made)
    assert charts["Holdout error of the model"]["log"] and charts["Holdout error of the model"]["series"][0]["y"] == [0.25]
    assert {"Aleatoric variance", "Rollout length", "svg/weight"} <= set(charts)
    assert "real ratio" in made.decode()


def test_a_model_free_run_has_no_model(run):
    assert 'id="model"' not in making.make([run], rollouts=False).decode()


def test_what_differs_from_the_preset_comes_before_all_settings(tmp_path):
    text = making.make([write(tmp_path / "run", batch_size=31)], rollouts=False).decode()
    first, whole = text.index("Settings that differ from the preset"), text.index("All settings")
    assert first < text.index(">31<") < whole
    assert "2.50 MB" in text, "what the compiled program takes"


def test_long_runs_are_thinned_out(tmp_path):
    rows = [row(0, step) for step in range(200, 400_001, 200)]
    made = making.make([write(tmp_path / "run", steps=400_000, rows=rows, seeds=1)], rollouts=False)
    (series,) = charts_of(made)["Return in training over real steps"]["series"]
    assert len(series["x"]) == 400 and (series["x"][0], series["x"][-1]) == (200, 400_000)
    assert len(made) < 1_000_000


def test_the_table_behind_lines_and_bars():
    line = Series("a", "a", "line", [1, 2, 3], [10, 20, 30])
    band = Series("b", "b", "band", [1, 3], [0, 0], [1, 2], [3, 4])
    rule = Series("c", "c", "rule", (), [7])
    table = table_of(Chart("t", "x", "y", (line, band, rule)))
    assert list(table.head) == ["x", "a", "b, from", "b, to", "c"]
    assert [list(row) for row in table.rows] == [[1, 10, 1, 3, 7], [2, 20, None, None, 7], [3, 30, 2, 4, 7]]
    bars = Series("d", "d", "bars", [0.5], [0.25], [0], [1])
    table = table_of(Chart("t", "x", "y", (bars,)))
    assert list(table.head) == ["series", "x", "y", "from", "to"] and [list(row) for row in table.rows] == [
        ["d", 0.5, 0.25, 0, 1]
    ]
    assert chosen(1000, 3) == [0, 500, 999] or chosen(1000, 3) == [0, 499, 999]


@pytest.mark.parametrize(
    ("entry", "due"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (1_234_567, "1,234,567"),
        (-1234.567, "-1,234.6"),
        (0.123456, "0.1235"),
        (np.float32(0.5), "0.5"),
        (3.0, "3"),
        (True, "true"),
        ("<b>", "&lt;b&gt;"),
    ],
)
def test_entries_of_tables(entry, due):
    assert page.shown(entry) == due


def test_values_that_are_not_finite_are_gaps():
    series = Series("a", "a", "line", [1, 2], [float("nan"), float("inf")])
    made = page.render(Page("t", (), (Section("s", "s", (Chart("t", "x", "y", (series,)), Text("<p>"))),)), "")
    assert data_of(made)[0]["series"][0]["y"] == [None, None] and "&lt;p&gt;" in made.decode()
    assert Table("t", ("a",), ()).rows == ()


def test_the_wall_clock_is_told_in_a_unit_that_reads_well():
    told = [curves.unit_of(seconds) for seconds in (10.0, 119.0, 120.0, 7199.0, 7200.0, 2e5)]
    assert told == [(1.0, "s"), (1.0, "s"), (60.0, "minutes"), (60.0, "minutes"), (3600.0, "hours"), (86400.0, "days")]


def test_the_command_writes_beside_the_run(run):
    code, out, err = call("report", run, "--no-rollouts", "--no-compile-cache")
    assert (code, err) == (0, "") and f"report   {run / 'report.html'}: " in out
    assert page.is_ours(run / "report.html")
    # Again, over the old one; and the run is still one that can be looked at.
    assert call("report", run, "--no-rollouts", "--no-compile-cache")[0] == 0
    assert len(gathering.gather([run]).runs) == 1


def test_the_command_puts_several_beside_the_first(tmp_path):
    for name in ("sac", "td3"):
        write(tmp_path / "runs" / name, name)
    code, _, err = call(
        "report", tmp_path / "runs" / "sac", tmp_path / "runs" / "td3", "--no-rollouts", "--no-compile-cache"
    )
    assert (code, err) == (0, "") and (tmp_path / "runs" / "report.html").exists()
    code, out, _ = call(
        "report", tmp_path / "runs", "--out", tmp_path / "new" / "two", "--no-rollouts", "--no-compile-cache"
    )
    assert code == 0 and (tmp_path / "new" / "two.html").exists() and "two.html" in out


def test_mistakes_are_told_in_a_line(tmp_path, run):
    (tmp_path / "thesis.html").write_text("<p>years of work</p>")
    (tmp_path / "bad.csv").write_text("a,b\n")
    for words, told in [
        ((), "RUN is missing"),
        ((tmp_path / "no",), "there is no folder"),
        ((run, "--out", tmp_path / "thesis.html"), "exists and is no report"),
        ((run, "--out", ".."), "name of a file"),
        ((run, "--out", tmp_path / "study.yaml"), "--out must be the name of a page, FILE.html, got "),
        ((run, "--published", tmp_path / "bad.csv"), "must begin with the line task,"),
        ((run, "--published", tmp_path / "no.csv"), "cannot be read"),
        ((run, "--rollouts"), "unknown option '--rollouts'"),
    ]:
        code, _, err = call("report", *words, "--no-compile-cache")
        assert code == 2 and told in err and err.count("\n") == 1, (words, err)
    assert (tmp_path / "thesis.html").read_text() == "<p>years of work</p>" and not (run / "report.html").exists()


def test_a_run_without_a_checkpoint_is_reported_all_the_same(run):
    made = making.make([run])
    assert "could not be evaluated" in made.decode() and len(data_of(made)) >= 4


def test_all_parts_of_the_page_have_contents(run):
    made = sections.page(gathering.gather([run]), {}, [])
    assert [section.id for section in made.sections] == ["learning", "policy", "run"]
    assert RunFolder.open(run).read_config()["algorithm"] in made.title
