import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxmbrl.training import hosts, programs, recording
from jaxmbrl.training.console import Progress
from jaxmbrl.training.curve import NOTHING, draw, mean_curve, seed_curves, text_curve
from jaxmbrl.training.run_folder import RunFolder


def row(env_steps: int, seed: int, **values: float) -> dict:
    return {"epoch": env_steps // 100, "env_steps": env_steps, "seed": seed, **values}


def rising(seeds: int = 3, epochs: int = 10, name: str = "train/return") -> list[dict]:
    return [row(100 * e, s, **{name: 10.0 * e + s}) for e in range(1, epochs + 1) for s in range(seeds)]


def picture(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("L"), float)


def test_curves_of_seeds_and_their_mean():
    rows = [row(200, 0, **{"train/return": 4.0}), row(100, 1), row(200, 1, **{"train/return": 8.0})]
    rows += [row(100, 0, **{"train/return": 1.0}), row(300, 1, **{"train/return": 9.0})]
    curves = seed_curves(rows, "train/return")
    assert list(curves) == [0, 1]
    assert curves[0] == ([100, 200], [1.0, 4.0]) and curves[1] == ([200, 300], [8.0, 9.0])
    assert mean_curve(rows, "train/return") == ([100, 200, 300], [1.0, 6.0, 9.0])
    assert mean_curve(rows, "eval/return") == ([], [])


@pytest.mark.parametrize(
    "rows",
    [
        rising(),
        rising(1),
        rising(3, 1),
        rising(1, 1),
        [row(0, 0, **{"eval/return": -3.0})],
        [*rising(), *rising(3, 5, "eval/return"), row(1100, 0)],
        rising(1, 200),
        [row(1_000_000, 0, **{"train/return": 1e7}), row(2_000_000, 0, **{"train/return": -1e7})],
    ],
)
def test_every_kind_of_run_is_drawn(tmp_path, rows):
    draw(rows, tmp_path / "curve.png", "pets on cartpole-continuous")
    draw([], tmp_path / "empty.png", "pets on cartpole-continuous")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "empty.png"]
    assert picture(tmp_path / "curve.png").shape == (540, 840)
    assert not np.array_equal(picture(tmp_path / "curve.png"), picture(tmp_path / "empty.png"))


def test_many_seeds_are_a_band_in_place_of_their_lines(tmp_path, monkeypatch):
    """1,000 seeds whose values at a step are 0 to 999: the band is from 49.95 to 949.05."""
    import matplotlib.axes

    drawn, filled = [], []
    plot, fill = matplotlib.axes.Axes.plot, matplotlib.axes.Axes.fill_between
    monkeypatch.setattr(matplotlib.axes.Axes, "plot", lambda *given, **look: drawn.append(1) or plot(*given, **look))
    monkeypatch.setattr(
        matplotlib.axes.Axes,
        "fill_between",
        lambda axes, *given, **look: filled.append(given) or fill(axes, *given, **look),
    )
    rows = [row(step, seed, **{"train/return": float(seed)}) for step in (100, 200) for seed in range(1000)]
    draw(rows, tmp_path / "many.png", "dyna-q on dyna-maze")
    assert len(drawn) == 1
    (steps, low, high) = filled[0]
    np.testing.assert_array_equal(steps, [100, 200])
    np.testing.assert_allclose([low, high], [[49.95, 49.95], [949.05, 949.05]])
    draw([of for of in rows if of["seed"] < 50], tmp_path / "some.png", "dyna-q on dyna-maze")
    assert len(drawn) == 52 and len(filled) == 1


def test_no_finished_episode_is_said(tmp_path, monkeypatch):
    import matplotlib.axes

    said = []
    real = matplotlib.axes.Axes.text
    monkeypatch.setattr(matplotlib.axes.Axes, "text", lambda self, x, y, s, **k: said.append(s) or real(self, x, y, s, **k))
    draw([row(100, 0)], tmp_path / "none.png", "title")
    assert said == [NOTHING]
    draw(rising(), tmp_path / "some.png", "title")
    assert said == [NOTHING]
    assert text_curve([row(100, 0)]) == NOTHING


def test_lines_legend_and_labels(tmp_path, monkeypatch):
    import matplotlib.figure

    figures = []
    real = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: figures.append(self) or real(self, *a, **k)
    )
    draw([*rising(), *rising(3, 5, "eval/return")], tmp_path / "curve.png", "a title")
    (axes,) = figures[0].axes
    assert axes.get_title() == "a title"
    assert "steps" in axes.get_xlabel() and "return" in axes.get_ylabel()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["training episodes, mean of 3 seeds", "evaluation, mean of 3 seeds"]
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    bold = [line for line in axes.lines if line.get_linewidth() > 2]
    assert len(thin) == 6 and len(bold) == 2
    np.testing.assert_array_equal(bold[0].get_xdata(), np.arange(100, 1001, 100))
    np.testing.assert_allclose(bold[0].get_ydata(), 10.0 * np.arange(1, 11) + 1)
    from matplotlib.colors import to_rgb

    brightness = [float(np.dot(to_rgb(line.get_color()), (0.299, 0.587, 0.114))) for line in bold]
    assert abs(brightness[0] - brightness[1]) > 0.25 and max(brightness) < 0.7
    assert bold[0].get_linestyle() != bold[1].get_linestyle() and bold[0].get_marker() != bold[1].get_marker()


def test_the_same_picture_every_time_and_no_global_state(tmp_path):
    import sys

    pyplot_before = "matplotlib.pyplot" in sys.modules
    for name in ("a", "b"):
        draw([*rising(), *rising(3, 10, "eval/return")], tmp_path / f"{name}.png", "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_before


def heights(text: str) -> list[int | None]:
    """For each column of the drawing, the line of its topmost dot, counted from the top; None where it is blank."""
    lines = [line.split("\u2524", 1)[1] for line in text.splitlines() if "\u2524" in line]
    width = max(map(len, lines))
    columns = zip(*(line.ljust(width) for line in lines), strict=True)
    return [next((i for i, character in enumerate(column) if character != " "), None) for column in columns]


def test_a_rising_curve_is_seen_to_rise():
    text = text_curve(rising(), 60, 10)
    found = heights(text)
    assert found[0] == 6 and found[-1] == 0 and None not in found
    assert found == sorted(found, reverse=True) and len(set(found)) == 7
    lines = text.splitlines()
    assert len(lines) == 10 and max(map(len, lines)) == 60
    assert lines[0] == "training return, mean of 3 seeds"
    assert lines[1].startswith("101 \u2524") and lines[7].startswith(" 11 \u2524")
    assert lines[-1].split() == ["100", "1,000", "steps"]
    falling = [{**r, "train/return": -r["train/return"]} for r in rising()]
    assert heights(text_curve(falling, 60, 10)) == sorted(heights(text_curve(falling, 60, 10)))


def test_evaluation_goes_first():
    rows = [*rising(), row(100, 0, **{"eval/return": 3.0}), row(900, 0, **{"eval/return": 1.0})]
    text = text_curve(rows)
    assert text.startswith("evaluation return\n") and "3.0 \u2524" in text and "1.0 \u2524" in text
    assert heights(text)[0] == 0 and heights(text)[-1] == 8


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30),
    stride=st.integers(1, 10**6),
    width=st.integers(24, 120),
    height=st.integers(5, 30),
)
def test_a_text_curve_fits_where_it_is_put(values, stride, width, height):
    rows = [row(stride * i, 0, **{"train/return": value}) for i, value in enumerate(values)]
    lines = text_curve(rows, width, height).splitlines()
    assert len(lines) == height and max(map(len, lines)) <= width
    assert any("\u2800" < character <= "\u28ff" for line in lines for character in line)


def test_too_small_a_place_is_refused():
    for width, height in ((23, 5), (24, 4)):
        with pytest.raises(ValueError, match="at least 24 by 5"):
            text_curve(rising(), width, height)


def test_training_returns_alone_are_drawn_in_the_dark_style(tmp_path):
    draw(rising(1), tmp_path / "alone.png", "title")
    draw(rising(1, name="eval/return"), tmp_path / "evaluation.png", "title")
    alone, evaluation = picture(tmp_path / "alone.png"), picture(tmp_path / "evaluation.png")
    below_the_legend = np.s_[150:, :]
    np.testing.assert_array_equal(alone[below_the_legend], evaluation[below_the_legend])
    assert not np.array_equal(alone, evaluation)


def test_the_picture_takes_a_small_share_of_the_time_and_the_last_one_is_always_drawn(tmp_path, monkeypatch):
    """Epochs of 1 s, and pictures that take 0.5 s: one in 25 s of training."""
    now, drawn = [0.0], []

    def slow(rows, path, title):
        drawn.append((now[0], len(rows)))
        now[0] += 0.5

    monkeypatch.setattr(recording.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(recording.curve, "draw", slow)
    folder, config = RunFolder.create(tmp_path / "run"), programs.configure("linear", "pendulum")
    recorder = recording.Recorder(folder, config, Progress.silent(), hosts.ALONE, lambda state: state)
    for epoch in range(1, 61):
        now[0] = float(epoch)
        recorder.rows.append(row(epoch, 0))
        recorder.draw(final=False)
    assert drawn == [(1.0, 1), (27.0, 27), (53.0, 53)]
    recorder.draw()
    assert drawn[-1] == (60.0, 60)
