"""Environment variables of other libraries."""

import os
import sys

import jax
import pytest

from jaxmbrl.core import surroundings
from jaxmbrl.core.config import UserError
from jaxmbrl.training import collecting, programs


def raises(error):
    def devices():
        raise error

    return devices


@pytest.mark.parametrize(
    ("platforms", "error", "told"),
    [
        # As JAX raises them where a platform's package, or the platform, is missing.
        ("cuda", AssertionError(), "JAX has no device for JAX_PLATFORMS=cuda (no such platform is installed); unset JAX_"),
        (
            "tpu",
            RuntimeError("Unable to initialize backend 'tpu': no\nlibtpu.so (set JAX_PLATFORMS='' to choose)"),
            "JAX has no device for JAX_PLATFORMS=tpu (Unable to initialize backend 'tpu': no libtpu.so); unset JAX_PLAT",
        ),
        (
            "",
            ValueError("could not convert string to float: 'half'"),
            "JAX has no device (could not convert string to float",
        ),
    ],
)
def test_without_a_device_nothing_is_built(platforms, error, told, monkeypatch):
    config = programs.configure("sac", "pendulum")
    before = jax.config.jax_platforms
    monkeypatch.setattr(jax, "devices", raises(error))
    jax.config.update("jax_platforms", platforms)
    try:
        for call in (lambda: programs.build(config), lambda: collecting.collect_by("pendulum", "random", 10)):
            with pytest.raises(UserError) as caught:
                call()
            assert str(caught.value).startswith(told) and "\n" not in str(caught.value)
    finally:
        jax.config.update("jax_platforms", before)


def test_what_is_not_compiled_is_refused():
    with (
        jax.disable_jit(),
        pytest.raises(UserError, match=r"^JAX_DISABLE_JIT \(jax_disable_jit\) is set, but runs are comp"),
    ):
        programs.build(programs.configure("sac", "pendulum"))


def test_a_share_of_memory_that_is_no_number_is_refused(monkeypatch):
    """With it JAX cannot start a GPU."""
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "50%")
    with pytest.raises(UserError, match=r"^XLA_PYTHON_CLIENT_MEM_FRACTION must be a number above 0, .* got '50%'; correct"):
        programs.build(programs.configure("sac", "pendulum"))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.5")
    assert surroundings.memory_problem().endswith("XLA_CLIENT_MEM_FRACTION are both set; unset the first")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION")
    assert surroundings.memory_problem() is None


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that is imported only if a variable has a value that it likes."""
    place = tmp_path / "particular"
    place.mkdir()
    (place / "inner.py").write_text("")
    likes = "assert os.environ.get('LIKED', 'good') == 'good', 'I do not like it'"
    (place / "__init__.py").write_text(f"import os\nfrom particular import inner\n{likes}\n")
    (place / "outer.py").write_text("import particular\nseen = particular.inner")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "particular.outer"
    for name in [name for name in sys.modules if name.partition(".")[0] == "particular"]:
        del sys.modules[name]


@pytest.mark.parametrize("instead", ["good", None])
def test_a_wrong_variable_does_not_keep_a_package_from_being_imported(package, instead, monkeypatch):
    monkeypatch.setenv("LIKED", "bad")
    module = surroundings.import_despite("LIKED", instead, package)
    assert module.seen is sys.modules["particular.inner"] and os.environ["LIKED"] == "bad"


def test_another_failure_of_an_import_is_not_hidden(package, monkeypatch):
    monkeypatch.delenv("LIKED", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        surroundings.import_despite("LIKED", "good", "no_such_module")
    monkeypatch.setenv("LIKED", "bad")
    with pytest.raises(AssertionError, match="I do not like it"):
        surroundings.import_despite("LIKED", "also bad", package)


def test_variables_are_set_for_a_while(monkeypatch):
    monkeypatch.setenv("SET", "before")
    monkeypatch.delenv("UNSET", raising=False)
    with surroundings.environment(SET=None, UNSET="now"):
        assert "SET" not in os.environ and os.environ["UNSET"] == "now"
    assert os.environ["SET"] == "before" and "UNSET" not in os.environ
