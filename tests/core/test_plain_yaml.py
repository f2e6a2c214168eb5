"""What YAML is read as, and what is refused with its line."""

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmbrl.core.config import UserError
from jaxmbrl.core.plain_yaml import Loader, read_yaml

READ = {
    # Words, times and dates are text; YAML 1.1 has other ideas.
    "[yes, No, on, OFF, y, n]": ["yes", "No", "on", "OFF", "y", "n"],
    "1:30": "1:30",
    "190:20:30.15": "190:20:30.15",
    "2026-01-31": "2026-01-31",
    "2026-01-31 10:00:00": "2026-01-31 10:00:00",
    "a: =": {"a": "="},
    "on: no": {"on": "no"},
    "[08, 0o10]": ["08", "0o10"],
    # Numbers. 1e-3 becomes one where a config has a field for numbers.
    "[0, -7, +7, 1_000, 0x1F, 0b101]": [0, -7, 7, 1000, 31, 5],
    "[1., .5, -0.25, 1.0e+3, 6.02e+23, 1_000.5]": [1.0, 0.5, -0.25, 1000.0, 6.02e23, 1000.5],
    "[1e-3, 1e6]": ["1e-3", "1e6"],
    "[.inf, -.inf]": [float("inf"), float("-inf")],
    "[true, False, TRUE]": [True, False, True],
    "[null, ~, ]": [None, None],
    "'010'": "010",
    "out: ~/runs": {"out": "~/runs"},
    # Structure.
    "": None,
    "# only a comment": None,
    "\ufeffa: 1": {"a": 1},
    "base: &b {x: 1, y: 2}\nrun: {<<: *b, y: 3}": {"base": {"x": 1, "y": 2}, "run": {"x": 1, "y": 3}},
    "{inner: {a: &a {<<: {x: 1}, x: 2}}, run: {<<: *a}}": {"inner": {"a": {"x": 2}}, "run": {"x": 2}},
    "{a: &a {steps: 1}, b: &b {steps: 2}, run: {<<: [*a, *b]}}": {
        "a": {"steps": 1},
        "b": {"steps": 2},
        "run": {"steps": 1},
    },
    "a: &a [1]\nb: *a": {"a": [1], "b": [1]},
    "- 'a: 1'\n- \"\\u00fc\"\n- ü": ["a: 1", "ü", "ü"],
}


@pytest.mark.parametrize("text", READ)
def test_values_are_read_as_they_are_meant(text, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    found = read_yaml(file)
    assert found == READ[text] and repr(found) == repr(READ[text])


REFUSED = {
    "steps: 1\nseeds: 2\nsteps: 3": "line 3: 'steps' is given twice, first in line 1",
    "settings:\n  batch_size: 1\n  agent: {hidden: [1], hidden: [2]}": "line 3: 'hidden' is given twice, first in line 3",
    "a: 1\nsteps: 010": "line 2: '010' could be octal: write a number without the leading zero, or text in quotes",
    "[-017]": "line 1: '-017' could be octal",
    "a: " + "9" * 5000: "line 1: '99999999999999999999...' is no number",
    "a:\n\tb: 1": "line 2: a tab, where YAML allows spaces only",
    "a: 1\n---\nb: 2": "line 2: a second document begins",
    "a: [1": "line 1: ",
    "a: *b": "line 1: found undefined alias",
    "a: &a\n  b: *a": "line 1: the value contains itself",
    "&a [1, *a]": "line 1: the value contains itself",
    "a: !!python/object/apply:os.system [x]": "line 1: could not determine a constructor",
    "[" * 500: "its values are nested too deeply",
    "a: \0": "unacceptable character",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_has_no_single_meaning_is_refused_with_its_line(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "a.yaml", "mine.yaml")
    told = str(caught.value)
    assert told.startswith(f"mine.yaml is not valid YAML ({REFUSED[text]}") or re.search(REFUSED[text], told)
    assert "\n" not in told


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes("a: ü".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.yaml is not valid YAML \('utf-8' codec can't decode"):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"b\.yaml cannot be read \(No such file or directory\)"):
        read_yaml(tmp_path / "b.yaml")


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["no", "on", "1:30", "010", "08", "1e3", "0x1F", "2026-01-01", "~", "null", "<<", "=", "1_0", ".5", ""]
)


@settings(max_examples=150, deadline=None)
@given(st.recursive(scalars | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)))
def test_what_pyyaml_writes_is_read_as_the_same(value):
    """config.yaml is written by PyYAML, whose rules for what needs quotes are those of YAML 1.1."""
    assert yaml.load(yaml.safe_dump(value), Loader) == value
