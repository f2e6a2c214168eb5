import asyncio
import gc
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxmbrl.core.config import UserError
from jaxmbrl.training import durable
from jaxmbrl.training.checkpoint import restore, save, steps
from jaxmbrl.training.manifest import CheckpointError

IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")


class Pair(NamedTuple):
    first: Any
    second: Any


class Struct(struct.PyTreeNode):
    weights: Any
    name: str = struct.field(pytree_node=False)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_to_collect():
    """Orbax's failed reads are reported when they are collected, which must not be while Python parses something."""
    yield
    gc.collect()


def small_state(seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "weights": jnp.asarray(draw.normal(size=(5, 3)).astype(np.float32)),
        "counts": (jnp.asarray(draw.integers(0, 2**31, 4).astype(np.int32)), jnp.asarray(seed, jnp.int32)),
        "key": jax.random.key(seed),
    }


def bits(tree: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    """Everything that must come back, by means of its own."""
    leaves = []
    for leaf in jax.tree.leaves(tree):
        data = jax.random.key_data(leaf) if "key<" in str(leaf.dtype) else leaf
        leaves.append((str(leaf.dtype), tuple(leaf.shape), np.asarray(data).tobytes()))
    return leaves


def shapes(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


def resign(path, change=lambda body: None) -> None:
    """Make the manifest fit the files again, so that only the digests of the leaves can tell."""
    file = path / "manifest.json"
    body = json.loads(file.read_text())["manifest"]
    change(body)
    for name in body["files"]:
        data = (path / name).read_bytes() if (path / name).exists() else b""
        body["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    signature = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({"sha256": signature, "manifest": body}))


def test_everything_comes_back_bit_for_bit(tmp_path):
    odd = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x7F800000, 0x00000001], np.uint32).view(np.float32)
    state = {
        "odd": jnp.asarray(odd),
        "negative zeros": -jnp.zeros((3, 2)),
        "pair": Pair(jnp.ones(3, jnp.bfloat16), None),
        "struct": Struct({"kernel": jnp.arange(6, dtype=jnp.uint8).reshape(2, 3)}, "a name"),
        "nested": ((), {}, [jnp.asarray(True), (jnp.zeros((0, 4)),)]),
        "keys": [jax.random.split(jax.random.key(3, impl=impl), (2, 2)) for impl in IMPLEMENTATIONS],
        "old key": jax.random.PRNGKey(1),
        "host": np.arange(3.0),
        "complex": jnp.asarray([1 + 2j]),
        "a/b.c": jnp.asarray(7),
    }
    extra = {"offset": 12, "name": "é", "nested": {"list": [1, 2.5, None]}}
    path = save(tmp_path / "deep" / "checkpoints", 7, state, extra)
    assert path == tmp_path / "deep" / "checkpoints" / "00000007"
    found = restore(path.parent, state)
    assert bits(found.state) == bits(state)
    assert jax.tree.structure(found.state) == jax.tree.structure(state)
    assert (found.step, found.extra, found.path, found.warnings) == (7, extra, path, ())
    assert isinstance(found.state["host"], np.ndarray) and found.state["host"].dtype == np.float64
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves({**found.state, "host": None}))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrays=st.lists(
        hnp.arrays(
            st.sampled_from([np.float32, np.float16, np.int32, np.int8, np.uint32, np.bool_]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
            elements={"allow_nan": True},
        ),
        max_size=4,
    ),
    step=st.integers(0, 10**9),
)
def test_any_arrays_come_back(tmp_path, arrays, step):
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    state = {"a": [jnp.asarray(array) for array in arrays]}
    save(tmp_path / "c", step, state, {})
    found = restore(tmp_path / "c", shapes(state))
    assert found.step == step
    assert [leaf.tobytes() for leaf in map(np.asarray, found.state["a"])] == [array.tobytes() for array in arrays]
    assert bits(found.state) == bits(state)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_restored_key_draws_the_same_numbers(tmp_path, impl):
    state = {"key": jax.random.split(jax.random.key(11, impl=impl), 3)}
    save(tmp_path, 1, state, {})
    found = restore(tmp_path, shapes(state)).state["key"]
    assert found.dtype == state["key"].dtype and str(jax.random.key_impl(found)) == impl
    draw = jax.vmap(lambda key: jax.random.normal(key, (4,)))
    np.testing.assert_array_equal(draw(found), draw(state["key"]))
    kept = json.loads((tmp_path / "00000001" / "manifest.json").read_text())["manifest"]["leaves"][0]
    assert (kept["path"], kept["implementation"], kept["shape"]) == ("['key']", impl, [3])


def test_a_restored_state_runs_on_with_donation(tmp_path):
    state = small_state(0)
    save(tmp_path, 1, state, {})
    run = jax.jit(lambda s: {**s, "weights": s["weights"] * 1.5 + jax.random.normal(s["key"], (5, 3))}, donate_argnums=0)
    found = run(restore(tmp_path, shapes(state)).state)
    assert bits(found) == bits(run(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": jnp.zeros((5, 4))}, "leaf ['weights'] must be float32[5, 4], got float32[5, 3]"),
        ({"weights": jnp.zeros((5, 3), jnp.bfloat16)}, "leaf ['weights'] must be bfloat16[5, 3], got float32"),
        ({"more": jnp.zeros(2)}, "leaf ['more'] must be float32[2], got nothing"),
        ({"counts": (jnp.zeros(4, jnp.int32), None)}, "leaf ['counts'][1] must be nothing, got int32[]"),
        (
            {"counts": Pair(jnp.zeros(4, jnp.int32), jnp.zeros((), jnp.int32))},
            "leaf ['counts'].first must be int32[4]",
        ),
        ({"key": jnp.zeros(2, jnp.uint32)}, "leaf ['key'] must be uint32[2], got key<fry>[]"),
        ({"key": jax.random.key(0, impl="rbg")}, "leaf ['key'] must be key<rbg>[], got key<fry>[]"),
    ],
)
def test_another_tree_is_refused_and_left_alone(tmp_path, change, message):
    state = small_state(0)
    path = save(tmp_path, 3, state, {})
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path, shapes({**state, **change}))
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert steps(tmp_path) == [3]
    assert bits(restore(tmp_path, state).state) == bits(state)


def check_damage(original, work, name: str, damage) -> bool:
    """Damage file `name` of the newest of two checkpoints; whether it was noticed. Wrong values fail."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(original, work)
    newest = work / "00000002"
    data = (newest / name).read_bytes()
    (newest / name).write_bytes(damage(data))
    found = restore(work, shapes(small_state(0)))
    if found.step == 2:
        assert bits(found.state) == bits(small_state(2)) and found.extra == {"at": 2, "share": 0.5} and not found.warnings
        return False
    assert found.step == 1 and bits(found.state) == bits(small_state(1)) and found.extra == {"at": 1}
    assert (work / "damaged-00000002").is_dir() and not newest.exists()
    (warning,) = found.warnings
    assert str(newest) in warning and "damaged-00000002" in warning and "\n" not in warning
    return True


def flip(at: int, bit: int):
    return lambda data: data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    save(folder, 1, small_state(1), {"at": 1})
    save(folder, 2, small_state(2), {"at": 2, "share": 0.5})
    files = sorted(path for path in (folder / "00000002").rglob("*") if path.is_file())
    return folder, {str(path.relative_to(folder / "00000002")): path.stat().st_size for path in files}


def test_flipped_bits_and_truncations_are_noticed_or_harmless(two_checkpoints, tmp_path):
    original, files = two_checkpoints
    draw = random.Random(0)
    assert len(files) >= 6 and sum(size > 0 for size in files.values()) >= 5
    tried = 0
    for name, size in files.items():
        if name == "manifest.json":
            continue
        for at in {0, size - 1, *draw.sample(range(size), min(size, 3))} if size else ():
            assert check_damage(original, tmp_path / "w", name, flip(at, draw.randrange(8))), (name, at)
            tried += 1
        for length in {0, size // 2, size - 1} if size else ():
            assert check_damage(original, tmp_path / "w", name, lambda data, length=length: data[:length]), (name, length)
            tried += 1
        assert check_damage(original, tmp_path / "w", name, lambda data: data + b"\0"), name
    for at in draw.sample(range(files["manifest.json"]), 20):
        check_damage(original, tmp_path / "w", "manifest.json", flip(at, draw.randrange(8)))
        tried += 1
    for share in (0.0, 0.2, 0.5, 0.9):
        assert check_damage(
            original, tmp_path / "w", "manifest.json", lambda data, share=share: data[: int(share * len(data))]
        )
    assert tried >= 40


@pytest.mark.slow
def test_all_over_a_checkpoint_its_bytes_are_guarded(two_checkpoints, tmp_path):
    original, files = two_checkpoints
    for name, size in files.items():
        for at in range(0, size, 5):
            noticed = check_damage(original, tmp_path / "w", name, flip(at, at % 8))
            assert noticed or name == "manifest.json", (name, at)


def test_a_missing_file_or_manifest_is_noticed(two_checkpoints, tmp_path):
    original, files = two_checkpoints
    for name in files:
        shutil.rmtree(tmp_path / "w", ignore_errors=True)
        shutil.copytree(original, tmp_path / "w")
        (tmp_path / "w" / "00000002" / name).unlink()
        found = restore(tmp_path / "w", shapes(small_state(0)))
        assert found.step == 1 and bits(found.state) == bits(small_state(1)) and len(found.warnings) == 1


def test_leaves_are_checked_after_loading(tmp_path):
    """Orbax restores this flip without a word, the files fit the manifest: the digest of the leaf tells."""
    from orbax.checkpoint import v1 as orbax

    state = {"values": jnp.asarray(np.random.default_rng(0).normal(size=5000).astype(np.float32))}
    path = save(tmp_path, 1, state, {})
    silent = 0
    for file in sorted(p for p in (path / "arrays").rglob("d/*") if p.is_file()):
        data = file.read_bytes()
        for at in range(3, len(data), 997):
            file.write_bytes(flip(at, 5)(data))
            try:
                found = orbax.load(path / "arrays", {"000000": np.zeros(5000, np.float32)})["000000"]
            except Exception:
                continue
            finally:
                file.write_bytes(data)
            if found.tobytes() == np.asarray(state["values"]).tobytes():
                continue
            silent += 1
            shutil.copytree(path, tmp_path / "w" / "00000001", dirs_exist_ok=True)
            copied = tmp_path / "w" / "00000001"
            (copied / file.relative_to(path)).write_bytes(flip(at, 5)(data))
            resign(copied)
            with pytest.raises(CheckpointError, match=r"leaf .*values.* differs from what was saved"):
                restore(tmp_path / "w", state)
            shutil.rmtree(tmp_path / "w")
    assert silent > 3


def test_an_intact_checkpoint_that_orbax_cannot_read_is_not_set_aside(tmp_path):
    path = save(tmp_path, 1, small_state(1), {})
    for file in (path / "arrays").rglob("manifest.ocdbt"):
        file.write_bytes(b"")
    resign(path)
    with pytest.raises(CheckpointError, match=r"intact but orbax-checkpoint .* cannot read it") as caught:
        restore(tmp_path, small_state(1))
    assert "\n" not in str(caught.value) and steps(tmp_path) == [1]


def test_another_format_is_refused_and_left_alone(tmp_path):
    path = save(tmp_path, 1, small_state(1), {})
    resign(path, lambda body: body.update(format=99))
    with pytest.raises(CheckpointError, match="has format 99, not 1"):
        restore(tmp_path, small_state(1))
    assert steps(tmp_path) == [1]


def test_a_checkpoint_under_another_step_is_damaged(tmp_path):
    save(tmp_path, 1, small_state(1), {}).rename(tmp_path / "00000009")
    save(tmp_path, 5, small_state(5), {})
    found = restore(tmp_path, small_state(1))
    assert found.step == 5 and "is that of step 1" in found.warnings[0]


def test_none_good_is_an_error_that_deletes_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        restore(tmp_path / "missing", small_state(0))
    for step in (1, 2):
        manifest = save(tmp_path, step, small_state(step), {}) / "manifest.json"
        manifest.write_text(manifest.read_text()[:-20])
    (tmp_path / "damaged-00000002").mkdir()
    before = {p.name: p.read_bytes() for p in (tmp_path / "00000002").rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError) as caught:
        restore(tmp_path, small_state(0))
    message = str(caught.value)
    assert "\n" not in message and "00000001" in message and "damaged-00000002-2" in message
    assert isinstance(caught.value, UserError)
    assert {p.name: p.read_bytes() for p in (tmp_path / "damaged-00000002-2").rglob("*") if p.is_file()} == before
    with pytest.raises(CheckpointError, match="damaged-00000001"):
        restore(tmp_path, small_state(0))


def test_the_newest_good_ones_are_kept(tmp_path):
    assert steps(tmp_path / "missing") == []
    for step in (10, 2, 7):
        save(tmp_path, step, small_state(step), {}, keep=3)
    assert steps(tmp_path) == [2, 7, 10]
    save(tmp_path, 11, small_state(11), {}, keep=3)
    assert steps(tmp_path) == [7, 10, 11]
    (tmp_path / "00000010" / "manifest.json").unlink()
    file = next(p for p in (tmp_path / "00000011" / "arrays").rglob("*") if p.is_file() and p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    save(tmp_path, 12, small_state(12), {}, keep=2)
    assert steps(tmp_path) == [7, 10, 11, 12]
    save(tmp_path, 13, small_state(13), {}, keep=1)
    assert steps(tmp_path) == [10, 11, 13]
    assert not list(tmp_path.glob(".*"))


def test_leftovers_are_removed_and_the_same_step_replaced(tmp_path):
    (tmp_path / ".partial-00000004" / "arrays").mkdir(parents=True)
    save(tmp_path, 5, small_state(1), {})
    save(tmp_path, 5, small_state(2), {"again": True})
    found = restore(tmp_path, small_state(0))
    assert bits(found.state) == bits(small_state(2)) and found.extra == {"again": True}
    assert [p.name for p in tmp_path.iterdir()] == ["00000005"]


def test_what_cannot_be_saved_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"could not be written to .*file"):
        save(tmp_path / "file" / "checkpoints", 1, small_state(0), {})
    with pytest.raises(ValueError, match=r"leaf \['x'\]\[0\] must be an array, got float"):
        save(tmp_path, 1, {"x": [1.0]}, {})
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, 1, {}, {"x": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, 1, {}, {"x": np.ones(2)})
    with pytest.raises(ValueError, match="at least"):
        save(tmp_path, -1, {}, {})
    with pytest.raises(ValueError, match="at least"):
        save(tmp_path, 1, {}, {}, keep=0)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, 5, small_state(1), {})

    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync_tree", fail)
    for step in (5, 6):
        with pytest.raises(CheckpointError, match="No space left on device"):
            save(tmp_path, step, small_state(2), {})
    assert [p.name for p in tmp_path.iterdir()] == ["00000005"]
    assert bits(restore(tmp_path, small_state(0)).state) == bits(small_state(1))


def test_it_works_inside_a_running_event_loop(tmp_path):
    async def notebook() -> Any:
        save(tmp_path, 1, small_state(1), {})
        return restore(tmp_path, small_state(1)).state

    assert bits(asyncio.run(notebook())) == bits(small_state(1))


def test_logging_is_left_as_it_was(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root, absl = logging.getLogger(), logging.getLogger("absl")
    before = (list(root.handlers), root.level, absl.level)
    save(tmp_path, 1, small_state(1), {})
    restore(tmp_path, small_state(1))
    assert (list(root.handlers), root.level, absl.level) == before
    assert not [record for record in caplog.records if record.name == "absl"]


def run_python(code: str, *arguments: Any, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )


CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")


@pytest.mark.parametrize(("step", "keep"), [(3, 2), pytest.param(2, 3, marks=pytest.mark.promises)])
def test_whatever_moment_a_kill_comes_one_checkpoint_stands(tmp_path, monkeypatch, step, keep):
    """The folder as it is before each change that `save` makes to the file system is what a kill there would leave."""
    folder, snapshots = tmp_path / "run", []
    save(folder, 1, small_state(1), {"n": 1})
    save(folder, 2, small_state(2), {"n": 2})

    def watched(real):
        def call(*arguments, **options):
            place = tmp_path / f"snapshot-{len(snapshots)}"
            snapshots.append(place)
            with monkeypatch.context() as plain:
                for name, function in originals.items():
                    plain.setattr(os, name, function)
                shutil.copytree(folder, place)
            return real(*arguments, **options)

        return call

    originals = {name: getattr(os, name) for name in CHANGES}
    with monkeypatch.context() as patched:
        for name, function in originals.items():
            patched.setattr(os, name, watched(function))
        save(folder, step, small_state(9), {"n": 9}, keep=keep)
    seen = []
    for place in [*snapshots, folder]:
        found = restore(place, shapes(small_state(0)))
        n = found.extra["n"]
        assert n in (2, 9) and found.step == (step if n == 9 else 2) and not found.warnings
        assert bits(found.state) == bits(small_state(n))
        seen.append(n)
        if len(seen) % 6 == 0:
            save(place, 10, small_state(10), {}, keep=1)
            assert [path.name for path in place.iterdir()] == ["00000010"]
    assert seen == sorted(seen) and seen.count(2) >= 10 and seen.count(9) >= 2


def test_a_killed_process_leaves_the_checkpoint_before(tmp_path):
    code = """
        import os, signal, sys
        from logging import getLogger
        from pathlib import Path
        import numpy as np
        from jaxmbrl.training import checkpoint, durable, manifest

        assert not [name for name in sys.modules if name.startswith("orbax")] and not getLogger().handlers
        folder, moment = Path(sys.argv[1]), sys.argv[2]
        state = lambda n: {"a": np.random.default_rng(n).normal(size=(300, 1000)), "n": np.asarray(n)}
        checkpoint.save(folder, 1, state(1), {"n": 1})

        def kill(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        if moment == "later":
            print("saving", flush=True)
            for n in range(2, 10_000):
                checkpoint.save(folder, n, state(n), {"n": n})
        setattr(manifest if moment == "file_entry" else durable, moment, kill)
        checkpoint.save(folder, 2, state(2), {"n": 2})
    """
    moments = ("file_entry", "sync_tree", "later")
    command = [sys.executable, "-c", textwrap.dedent(code)]
    started = {
        moment: subprocess.Popen([*command, str(tmp_path / moment), moment], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for moment in moments
    }
    assert started["later"].stdout.readline() == b"saving\n"
    time.sleep(0.7)
    started["later"].kill()

    def state(n):
        return {"a": np.random.default_rng(n).normal(size=(300, 1000)), "n": np.asarray(n)}

    for moment, process in started.items():
        _, complaints = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL and complaints == b""
        found = restore(tmp_path / moment, state(0))
        assert bits(found.state) == bits(state(found.step)) and found.extra == {"n": found.step} and not found.warnings
        if moment != "later":
            assert found.step == 1 and list((tmp_path / moment).glob(".partial-00000002/arrays/*"))


def test_a_full_disk_is_told_in_one_line(tmp_path):
    code = """
        import resource, signal, sys
        from pathlib import Path
        import numpy as np
        from jaxmbrl.training.checkpoint import restore, save
        from jaxmbrl.training.manifest import CheckpointError

        folder, state = Path(sys.argv[1]), {"a": np.random.default_rng(0).normal(size=30_000)}
        save(folder, 1, {"a": np.zeros(30_000)}, {})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            save(folder, 2, state, {})
        except CheckpointError as error:
            print(error)
        assert restore(folder, state).step == 1 and [path.name for path in folder.iterdir()] == ["00000001"]
    """
    done = run_python(code, tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1 and "could not be written" in done.stdout and "File too large" in done.stdout


def test_seeds_spread_over_devices_come_back_where_they_were(tmp_path):
    code = """
        import sys
        from pathlib import Path
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec
        from jaxmbrl.training.checkpoint import restore, save
        spread = NamedSharding(Mesh(jax.devices(), ("seed",)), PartitionSpec("seed"))
        state = jax.device_put({"a": jnp.arange(8.0).reshape(4, 2), "key": jax.random.split(jax.random.key(0), 4)}, spread)
        save(Path(sys.argv[1]), 1, state, {})
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        for like in (state, abstract):
            found = restore(Path(sys.argv[1]), like).state
            assert found["a"].sharding == spread and found["key"].sharding == spread
            assert len(found["a"].addressable_shards) == 4
            np.testing.assert_array_equal(found["a"], np.arange(8.0).reshape(4, 2))
            np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(state["key"]))
        print("done")
    """
    done = run_python(code, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=4", JAX_PLATFORMS="cpu")
    assert done.stdout == "done\n", done.stderr[-2000:]


def test_float64_needs_float64(tmp_path):
    save(tmp_path, 1, {"x": np.ones(2)}, {})
    with pytest.raises(CheckpointError, match=r"must be float32\[2\], got float64"):
        restore(tmp_path, {"x": jnp.ones(2)})
    with pytest.raises(CheckpointError, match="JAX_ENABLE_X64"):
        restore(tmp_path, {"x": jax.ShapeDtypeStruct((2,), np.float64)})
    assert restore(tmp_path, {"x": np.zeros(2)}).state["x"].dtype == np.float64
