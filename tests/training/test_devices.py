"""Seeds spread over devices: four virtual ones in a process of their own, against one."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from command_line import TIMINGS

import jaxmbrl
from jaxmbrl.training import checkpoint, devices, memory
from jaxmbrl.training.run_folder import RunFolder

SETTINGS = {
    "batch_size": 8,
    "replay_capacity": 300,
    "warmup_steps": 20,
    "epoch_steps": 20,
    "eval_every": 1,
}
SEEDS = 6
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")


def on_four_devices(code, *arguments):
    """What Python prints where there are four devices, as JSON."""
    prelude = f"""
import sys, json, jax, jaxmbrl, small_method
SETTINGS, SEEDS = {SETTINGS!r}, {SEEDS}
assert len(jax.devices()) == 4
jaxmbrl.algorithms.register(small_method.NAME, small_method.METHOD)
"""
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4"])
    done = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_how_seeds_lie():
    four = list(range(4))
    lie = {seeds: devices.shard_seeds(seeds, four) for seeds in (2, 3, 4, 5, 6, 7, 8, 9)}
    assert {seeds: (x.rows, x.devices) for seeds, x in lie.items()} == {
        2: (2, 2),
        3: (3, 3),
        4: (4, 4),
        5: (6, 3),
        6: (6, 3),
        7: (8, 4),
        8: (8, 4),
        9: (9, 3),
    }
    assert devices.shard_seeds(1, four) == devices.single_device(1)
    assert devices.shard_seeds(5, four[:1]) == devices.single_device(5)
    assert lie[6].describe() == "6 seeds on 3 devices, 2 on each"
    assert lie[5].describe() == "5 seeds on 3 devices, 2 on each, 1 fewer on the last"


def test_copies_make_equal_shares_and_are_taken_off_again():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (devices.SEEDS,))
    sharding = devices.SeedSharding(3, 4, mesh)
    placed = sharding.place({"x": np.arange(6.0).reshape(3, 2), "key": jax.random.split(jax.random.key(0), 3)})
    np.testing.assert_array_equal(placed["x"], [[0, 1], [2, 3], [4, 5], [4, 5]])
    assert placed["key"].shape == (4,) and devices.rows_of(sharding, 7).tolist() == [7, 8, 9, 9]
    np.testing.assert_array_equal(sharding.of_seeds(placed)["x"], np.arange(6.0).reshape(3, 2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on four devices, and the same on one: (folders, what was seen on the four)."""
    place = tmp_path_factory.mktemp("devices")
    code = """
        import io
        from jaxmbrl.training import session
        from jaxmbrl.training.console import Progress
        seen, said = {}, io.StringIO()
        real = session.Session.run_to
        def run_to(self, end):
            real(self, end)
            seen["texts"] = {what: compiled.as_text() for what, compiled in self.compiled.items()}
            leaf = jax.tree.leaves(self.state.algorithm)[0]
            seen["shape"], seen["shards"] = leaf.shape, [s.data.shape[0] for s in leaf.addressable_shards]
        session.Session.run_to = run_to
        fields = dict(steps=60, seeds=SEEDS - 1, seed=3, eval_episodes=2, checkpoint={"every": 1}, settings=SETTINGS)
        result = jaxmbrl.train("linear", "pendulum", out=sys.argv[1], progress=Progress(60, SEEDS - 1, out=said), **fields)
        seen["returned"] = sorted({leaf.shape[0] for leaf in jax.tree.leaves(result.state)})
        seen["collectives"] = [n for n in sys.argv[2:] for text in seen["texts"].values() if n in text]
        seen["programs"] = sorted(seen.pop("texts"))
        print(json.dumps(seen | {"said": said.getvalue()}))
    """
    seen = on_four_devices(code, place / "four", *COLLECTIVES)
    fields = {"steps": 60, "seeds": SEEDS - 1, "seed": 3, "eval_episodes": 2, "checkpoint": {"every": 1}}
    jaxmbrl.train("linear", "pendulum", out=place / "one", settings=SETTINGS, **fields)
    return place, seen


@pytest.mark.promises
def test_each_device_works_through_its_seeds_alone(runs):
    _, seen = runs
    assert seen["shape"][0] == 6 and seen["shards"] == [2, 2, 2]
    assert seen["returned"] == [5], "what comes out has no copies"
    assert seen["programs"] == ["evaluation", "training"] and seen["collectives"] == []
    assert "5 seeds on 3 devices, 2 on each, 1 fewer on the last" in seen["said"]


@pytest.mark.promises
def test_one_chunk_is_that_of_one_device(runs):
    place, _ = runs
    for name in ("four", "one"):
        assert checkpoint.steps(place / name / "checkpoints") == [20, 40, 60]
    rows = [RunFolder.open(place / name).read_metrics() for name in ("four", "one")]
    assert [(r["epoch"], r["seed"]) for r in rows[0]] == [(r["epoch"], r["seed"]) for r in rows[1]]
    for a, b in zip(*rows, strict=True):
        assert set(a) - TIMINGS == set(b) - TIMINGS
        if a["epoch"] == 1:
            for name in set(a) - TIMINGS:
                assert a[name] == pytest.approx(b[name], rel=1e-6, abs=1e-6), name


@pytest.mark.promises
def test_a_run_of_four_devices_goes_on_with_one_and_back(runs):
    place, _ = runs
    on_one = jaxmbrl.resume(place / "four", steps=80)
    assert jax.tree.leaves(on_one.state)[0].shape[0] == 5 and on_one.rows[-1]["env_steps"] == 80
    code = """
        result = jaxmbrl.resume(sys.argv[1], steps=80)
        print(json.dumps([jax.tree.leaves(result.state)[0].shape[0], result.rows[-1]["env_steps"]]))
    """
    assert on_four_devices(code, place / "one") == [5, 80]
    told = [event["text"] for event in RunFolder.open(place / "one").read_events() if event["kind"] == "warning"]
    assert told == ["devices differ from those that the run started with: the resume may not be exact"]


def test_what_a_program_needs_is_told_before_it_runs(monkeypatch):
    x = jax.ShapeDtypeStruct((1000, 1000), np.float32)
    compiled = jax.jit(lambda x: (x @ x) @ x).lower(x).compile()
    need = memory.needed(compiled)
    assert need >= 2 * 4_000_000, "argument and result at least"
    memory.check_compiled("training", compiled)
    monkeypatch.setattr(memory, "available", lambda: need - 1)
    with pytest.raises(memory.OutOfMemory, match=r"training needs \d+\.\d MB of memory while it runs, .*; lower seeds, "):
        memory.check_compiled("training", compiled)
    monkeypatch.setattr(memory, "available", lambda: 3 * need)
    memory.check_compiled("training", compiled, devices=3)
    with pytest.raises(memory.OutOfMemory):
        memory.check_compiled("training", compiled, devices=4)


def test_an_allocation_that_fails_is_told_with_the_need():
    compiled = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((10,), np.float32)).compile()
    told = r"out of memory in training, which needs 0\.0 MB .*; lower seeds"
    with pytest.raises(memory.OutOfMemory, match=told), memory.explained("training", compiled):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.explained("training"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_container_may_have_less_than_its_machine(tmp_path, monkeypatch):
    machine = memory.available()
    (tmp_path / "limit").write_text("123456789\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(memory, "LIMITS", (tmp_path / "none", tmp_path / "missing"))
    assert memory.available() >= machine
    monkeypatch.setattr(memory, "LIMITS", (tmp_path / "none", tmp_path / "limit"))
    assert memory.available() == 123456789


def test_a_run_that_does_not_fit_ends_before_it_trains(tmp_path, monkeypatch):
    real = memory.needed
    monkeypatch.setattr(memory, "needed", lambda compiled: real(compiled) + 10**15)
    with pytest.raises(memory.OutOfMemory, match=r"training needs 1,000,000\.\d GB of memory while it runs"):
        jaxmbrl.train("linear", "pendulum", settings=SETTINGS, steps=20, out=tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [0], "with more memory it can be resumed"
