"""Warnings name the line of the program that called the package, whatever lies between."""

import warnings

from jaxmbrl.core.warning import INSTALLED, PACKAGE, warn_user


def test_a_warning_points_at_the_users_line():
    names = {"warn_user": warn_user}
    for i, file in enumerate((f"{PACKAGE}data/inner.py", f"/lib{INSTALLED[0]}other/hook.py", f"{PACKAGE}outer.py")):
        inner = f"f{i - 1}()" if i else "warn_user('a text', DeprecationWarning)"
        exec(compile(f"def f{i}():\n    {inner}", file, "exec"), names)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        names["f2"]()  # this line
    (warning,) = heard
    assert (warning.filename, str(warning.message), warning.category) == (__file__, "a text", DeprecationWarning)
    with open(__file__, encoding="utf-8") as file:
        assert file.read().splitlines()[warning.lineno - 1].endswith("# this line")
