"""Students of runs: each seed imitates its own expert, from a planner too, and is a run without its expert afterwards."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmbrl
from jaxmbrl import UserError, cli, envs
from jaxmbrl.agents.distillation import Expert, label_of_action
from jaxmbrl.core.spaces import Discrete
from jaxmbrl.core.types import Algorithm, CriticView, Policy, Views
from jaxmbrl.planning.tree_search.search import Statistics
from jaxmbrl.training import experts, programs, restoring
from jaxmbrl.training.loop import clock_at

SETTINGS = {"round_steps": 50, "epoch_steps": 50, "updates": 10, "batch_size": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two seeds of the small method, whose policies differ."""
    folder = tmp_path_factory.mktemp("runs") / "linear"
    jaxmbrl.train("linear", "pendulum", steps=200, seeds=2, out=folder, settings={"eval_every": 0})
    return folder


def act(loaded, seed, observation):
    policy = loaded.policy(jax.tree.map(lambda x: x[seed], loaded.state))
    return float(policy.act((), jnp.asarray(observation), jax.random.key(0))[0][0])


def test_a_student_is_a_run_of_its_own(run, tmp_path, capsys, monkeypatch):
    """From the command line, of an expert with a memory, as planners have; the expert is moved away, and the student
    evaluates, exports, and refuses to go on."""
    made = experts.expert_of

    def planning(*given):
        inner = made(*given).policy

        def policy(seed):
            act = inner(seed).act
            return Policy(lambda key: jnp.zeros(3), lambda memory, seen, key: (*act((), seen, key)[:2], memory + 1.0))

        return Expert(policy)

    monkeypatch.setattr(experts, "expert_of", planning)
    expert, out = tmp_path / "expert", tmp_path / "student"
    shutil.copytree(run, expert)
    settings = SETTINGS | {"updates": 100, "learning_rate": 0.01}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    given = ["distill", str(expert), "--hidden", "8", "--steps", "100", "--eval-episodes", "2", "--out", str(out), *words]
    assert cli.main([*given, "--no-compile-cache"]) == 0
    *first, zero, one = programs.RunFolder.open(out).read_metrics()
    rows = [zero, one]
    assert [(row["epoch"], row["seed"]) for row in rows] == [(2, 0), (2, 1)]
    assert all(late["student/loss"] < 0.5 * early["student/loss_before"] for early, late in zip(first, rows, strict=True))
    shutil.rmtree(expert)
    found = jaxmbrl.evaluate(out, episodes=2)
    assert [row["eval/return"] for row in rows] == pytest.approx(found.per_seed, rel=1e-5)
    assert jaxmbrl.export(out, "numpy").difference < 1e-5
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(out), "--steps", "200", "--no-compile-cache"]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_each_seed_imitates_its_own_expert_exactly(run, tmp_path):
    """tanh(s K) of a small s is linear, and so is the student: seeds 1 and 2 imitate the second expert and the first."""
    settings = SETTINGS | {"beta_rounds": None}
    student = jaxmbrl.distill(run, hidden=[4], settings=settings, steps=50, seed=1, out=tmp_path / "student")
    state = restoring.newest(tmp_path / "student")[1].algorithm
    assert state.expert_seed.tolist() == [1, 0]
    teacher = jaxmbrl.load(run)
    for k, seed in enumerate((1, 0)):
        rows = jax.tree.map(lambda x, k=k: np.asarray(x[k][:50]), student.state.replay.data)
        for i in (0, 25, 49):
            assert rows.extras[i, 0] == pytest.approx(act(teacher, seed, rows.observation[i]), abs=1e-6)
            assert rows.action[i, 0] == rows.extras[i, 0]


@pytest.mark.promises
def test_a_student_of_images_imitates_an_expert_that_sees_the_state(run, tmp_path):
    """The expert acts in all steps, so that the episodes, their rewards and the labels are those of a student that sees the
    state too, bit for bit; this one sees the pictures of these states, the last two."""
    settings, name = SETTINGS | {"beta_rounds": None, "updates": 2}, "stacked/2/pixels/8,grey/pendulum"
    seeing = jaxmbrl.distill(run, settings=settings, steps=50, seeds=1)
    student = jaxmbrl.distill(
        run, env=name, settings=settings | {"convolutions": ((2, 4, 4),)}, steps=50, seeds=1, out=tmp_path / "student"
    )
    states, images = (jax.device_get(of.state.replay.data) for of in (seeing, student))
    for field in ("action", "reward", "extras", "truncated"):
        np.testing.assert_array_equal(getattr(images, field), getattr(states, field))
    assert images.observation.shape[2:] == (8, 8, 2) and images.observation.dtype == np.uint8
    # The newer picture of a row is the older one of the next.
    np.testing.assert_array_equal(images.observation[0, 1:50, ..., 0], images.observation[0, :49, ..., 1])
    assert np.isfinite(jaxmbrl.evaluate(tmp_path / "student", episodes=2).mean)


def test_mistakes_are_told_in_a_line(run, tmp_path):
    for given, message in (
        (("distillation", "pendulum"), "has no policy to imitate"),
        (("sac", "pendulum", run), "sac imitates no expert"),
        (("distillation", "cartpole-continuous", run), "is of pendulum, not of cartpole-continuous"),
        (("distillation", "pixels/cartpole-continuous", run), "is of pendulum, not of pixels/cartpole-continuous"),
        (("distillation", "pendulum", tmp_path / "nothing"), "there is no folder"),
    ):
        name, env, *expert = given
        with pytest.raises(UserError, match=message):
            jaxmbrl.train(name, env, **({"expert": expert[0]} if expert else {}))
    with pytest.raises(UserError, match="action_repeat must be 1"):
        jaxmbrl.distill(run, action_repeat=2)
    config = programs.configure("distillation", "pendulum", expert=run)
    with pytest.raises(UserError, match="start another student"):
        experts.build(programs.changed(config, {}, {"expert_steps": 100}))


def chooser(views, extras):
    """An expert that always takes the second of three choices."""

    def act(memory, seen, key):
        return jnp.ones((), jnp.int32), extras, memory

    return Algorithm(
        init=lambda key, hyper, data=None: (),
        policy=lambda state, clock, explore: Policy(lambda key: (), act),
        learn=lambda clock, state, rows: (state, {}),
        period=1,
        views=lambda state: views,
    )


def critic(observation, action, key):
    return jnp.array([0.5, 2.0, 1.0])[action] * observation[:, 0]


@pytest.mark.parametrize(
    ("views", "extras", "label"),
    [
        (Views(), (), (0.0, 1.0, 0.0)),
        (Views(logits=lambda seen: jnp.array([0.1, 0.2, 0.3]) * seen[0]), (), (0.3, 0.6, 0.9)),
        (Views(critic=CriticView(None, critic, None, None)), (), (1.5, 6.0, 3.0)),
        (Views(), Statistics(jnp.ones(3) / 3, jnp.array([1, 3, 0], jnp.int32), jnp.zeros(())), np.log([0.25, 0.75, 1e-8])),
    ],
)
def test_the_label_of_a_choice(views, extras, label):
    """The action alone; logits; action values; the visits of a search."""
    task = envs.make("MountainCar-v0")._replace(action=Discrete(3))
    expert = experts.expert_of(chooser(views, extras), task, jnp.zeros(1), clock_at(0))
    policy = expert.policy(jnp.zeros((), jnp.int32))
    action, found, _ = policy.act((), jnp.array([3.0, 0.0]), jax.random.key(0))
    np.testing.assert_allclose(found, label, rtol=1e-5)
    assert int(action) == 1 and label_of_action(task.action, action).tolist() == [0, 1, 0]
