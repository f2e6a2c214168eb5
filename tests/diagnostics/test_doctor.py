"""The doctor: what it finds well, what it finds lacking, and what it finds bad."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import cli
from jaxmbrl.diagnostics import doctor
from jaxmbrl.training import run_folder


@pytest.fixture
def healthy(monkeypatch, tmp_path):
    """A machine on which all is well, so that one thing alone can be bad."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "rendering", lambda: doctor.Finding("rendering", "ok", "by a fake"))
    monkeypatch.setattr(doctor, "compiler_flags", lambda: None)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def findings(cache=None, folder="runs"):
    return {found.what: found for found in doctor.examine(Path(folder), cache)}


def run(capsys):
    code = cli.main(["--no-compile-cache", "doctor"])
    said, err = capsys.readouterr()
    assert not err
    return code, said


def test_a_machine_that_is_ready(healthy, capsys):
    found = findings(cache=str(healthy / "cache"))
    order = ["python", "versions", "simulator", "environment", "devices", "precision", "rendering", "runs", "compile cache"]
    assert list(found) == order and {finding.state for finding in found.values()} == {"ok"}
    assert found["python"].message.startswith("{}.{}.{} on ".format(*sys.version_info))
    assert f"jax {jax.__version__}" in found["versions"].message and "python" not in found["versions"].message
    assert found["devices"].message == ", ".join(f"{d.device_kind} ({d.platform} {d.id})" for d in jax.devices())
    assert list(healthy.iterdir()) == [], "looking leaves nothing"
    code, said = run(capsys)
    assert code == 0 and said.splitlines()[-1] == "this machine is ready"


def test_versions_that_do_not_match_are_bad(healthy, capsys, monkeypatch):
    real = run_folder.importlib.metadata.version
    monkeypatch.setattr(run_folder.importlib.metadata, "version", lambda name: "4.0.0" if name == "mujoco" else real(name))
    code, said = run(capsys)
    ours = real("mujoco-mjx")
    assert f"bad   simulator      mujoco 4.0.0 and mujoco-mjx {ours} must be of the same version" in said
    assert code == 1 and said.splitlines()[-1] == "1 problem to fix"


@pytest.mark.parametrize(
    ("versions", "state", "told"),
    [
        ({"mujoco": "3.17.0", "mujoco-mjx": "3.17.0"}, "ok", "mujoco 3.17.0 and mujoco-mjx 3.17.0"),
        ({"mujoco": "3.17.0"}, "bad", "mujoco 3.17.0 and mujoco-mjx missing must be"),
        ({}, "bad", "mujoco missing and mujoco-mjx missing must be"),
    ],
)
def test_both_simulators_are_needed(versions, state, told):
    found = doctor.paired(versions)
    assert found.state == state and told in found.message


def test_a_folder_that_cannot_be_written_is_bad(healthy, capsys):
    (healthy / "runs").write_text("a file")
    (healthy / "cache").write_text("a file")
    found = findings(cache=str(healthy / "cache" / "deep"))
    assert (found["runs"].state, found["runs"].message) == ("bad", "runs cannot be written to (Not a directory)")
    assert (found["compile cache"].state, found["compile cache"].message[-34:]) == (
        "bad",
        " cannot be written to (Not a directory)"[-34:],
    )
    code, said = run(capsys)
    assert code == 1 and "bad   runs           runs cannot be written to" in said
    assert said.splitlines()[-1] == "1 problem to fix"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_bad(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    found = doctor.writing("runs", tmp_path / "shut" / "runs")
    assert found.state == "bad" and "Permission denied" in found.message


def test_a_cache_elsewhere_and_none_are_notes(healthy):
    assert findings()["compile cache"] == ("compile cache", "note", "off: every start compiles afresh")
    found = findings(cache="gs://bucket/cache")["compile cache"]
    assert found.state == "note" and "not looked at" in found.message


def test_a_machine_that_computes_roughly_is_bad(healthy, monkeypatch, capsys):
    """As a product in bfloat16 would be, which has 8 bits."""
    real = jnp.matmul

    def rough(a, b, precision=None):
        return real(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).astype(jnp.float32)

    assert doctor.precision().state == "ok"
    monkeypatch.setattr(doctor.jnp, "matmul", rough)
    found = doctor.precision()
    assert found.state == "bad" and "err by" in found.message
    code, _ = run(capsys)
    assert code == 1


def test_the_default_precision_alone_may_be_low(monkeypatch):
    real = jnp.matmul

    def as_on_a_gpu(a, b, precision=None):
        if precision == "default":
            return real(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).astype(jnp.float32)
        return real(a, b, precision=precision)

    monkeypatch.setattr(doctor.jnp, "matmul", as_on_a_gpu)
    found = doctor.precision()
    errors = [float(word) for word in found.message.replace(",", "").split() if "e-" in word]
    assert found.state == "ok" and errors[1] < 1e-6 < 1e-4 < errors[0] < 1e-2


def test_without_a_backend_the_rest_is_still_told(healthy, monkeypatch, capsys):
    def broken():
        raise RuntimeError("Unable to initialize backend 'cuda':\nno driver")

    monkeypatch.setattr(doctor.jax, "devices", broken)
    found = findings()
    assert (
        found["devices"].state == "bad" and "(Unable to initialize backend 'cuda': no driver)" in found["devices"].message
    )
    assert "precision" not in found and {"rendering", "runs"} <= set(found)
    code, _ = run(capsys)
    assert code == 1


@pytest.mark.parametrize(
    ("name", "value", "state", "told"),
    [
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5", None, ""),
        (
            "XLA_PYTHON_CLIENT_MEM_FRACTION",
            "half",
            "bad",
            "MEM_FRACTION must be a number above 0, a share of the GPU's memory, got 'half'",
        ),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "-1", "bad", "got '-1'; correct it or unset it"),
        ("XLA_CLIENT_MEM_FRACTION", "nan", "bad", "must be a number above 0"),
        ("XLA_PYTHON_CLIENT_PREALLOCATE", "false", None, ""),
        ("XLA_PYTHON_CLIENT_PREALLOCATE", "no", "note", "=no counts as true: set it to true or false"),
    ],
)
def test_variables_of_memory_are_checked(name, value, state, told, monkeypatch):
    monkeypatch.setenv(name, value)
    found = [(finding.state, finding.message) for finding in doctor.environment()]
    assert [entry[0] for entry in found] == ([state] if state else []) and all(told in text for _, text in found)


@pytest.mark.parametrize(
    ("option", "state", "told"),
    [
        ("jax_disable_jit", "bad", "JAX_DISABLE_JIT (jax_disable_jit) is set, but runs are compiled programs: unset it"),
        ("jax_enable_x64", "note", "runs are in float64"),
        ("jax_debug_nans", "note", "'jaxmbrl debug' finds the operation"),
    ],
)
def test_settings_of_jax_are_told(option, state, told):
    jax.config.update(option, True)
    try:
        (found,) = doctor.environment()
    finally:
        jax.config.update(option, False)
    assert (found.what, found.state) == ("environment", state) and told in found.message


def test_a_backend_that_matplotlib_does_not_know_is_a_note(monkeypatch):
    def fails(name):
        raise ValueError("Key backend: 'nonsense' is not a valid value")

    monkeypatch.setenv("MPLBACKEND", "nonsense")
    monkeypatch.setattr(doctor.importlib, "import_module", fails)
    (found,) = doctor.environment()
    assert found.state == "note" and found.message.startswith("MPLBACKEND=nonsense is unknown to matplotlib")


def test_flags_that_xla_does_not_know_are_told(healthy, monkeypatch):
    """XLA ends a process that computes; the doctor lets another one do it."""
    monkeypatch.undo()
    monkeypatch.setenv("XLA_FLAGS", "--xla_of_old=1")
    assert doctor.compiler_flags() == (
        "devices",
        "bad",
        "XLA ends every process (Unknown flag in XLA_FLAGS: --xla_of_old=1): remove what this version does not know",
    )
    monkeypatch.delenv("XLA_FLAGS")
    assert doctor.compiler_flags() is None


def test_a_gpu_that_is_not_used_is_a_note(monkeypatch):
    if jax.devices()[0].platform != "cpu":
        pytest.skip("it is used")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "nvidia-smi" else None)
    found = doctor.devices()
    assert found.state == "note" and "jaxmbrl[cuda]" in found.message
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES='' hides the GPUs: unset it" in doctor.devices().message
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert doctor.devices().state == "ok", "the CPU was asked for"


def test_a_renderer_that_is_broken_is_a_note(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    found = doctor.rendering()
    assert found.state == "note" and "MUJOCO_GL=nonsense does not work: training goes on" in found.message


def test_renderers_are_tried_in_turn(monkeypatch):
    """Each in a process of its own, which may die or hang."""
    tried = []

    def works(command, env, timeout, **more):
        tried.append(env["MUJOCO_GL"])
        if env["MUJOCO_GL"] == "egl":
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, -11 if env["MUJOCO_GL"] == "osmesa" else 0)

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(doctor.subprocess, "run", works)
    assert doctor.rendering() == ("rendering", "ok", "by glfw") and tried == ["egl", "osmesa", "glfw"]
    monkeypatch.setattr(doctor.subprocess, "run", lambda command, **more: subprocess.CompletedProcess(command, 1))
    found = doctor.rendering()
    assert found.state == "note" and "none of egl, osmesa, glfw works" in found.message


@pytest.mark.promises
def test_the_real_command(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "jaxmbrl", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == "this machine is ready"
    shown = {line[6:21].strip(): line[:6].strip() for line in lines[:-1]}
    assert list(shown) == [
        "python",
        "versions",
        "simulator",
        "environment",
        "devices",
        "precision",
        "rendering",
        "runs",
        "compile cache",
    ]
    assert set(shown.values()) <= {"ok", "note"} and not (tmp_path / "runs").exists()
    assert str(tmp_path / "cache" / "jaxmbrl" / "compiled") in done.stdout
    assert np.isfinite([float(word) for word in lines[5].split() if "e-" in word]).all()
