"""World Models: the losses of vision and memory by hand and by a NumPy loop, dreams and controllers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.agents import episode_trials
from jaxmbrl.algorithms.latent import world_models
from jaxmbrl.algorithms.latent.world_models import Config
from jaxmbrl.core.config import UserError
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Clock, Transition, row_like
from jaxmbrl.data import sequences
from jaxmbrl.models.latent import Belief, CoderConfig, MDNConfig, Window, mdn_rnn
from jaxmbrl.nn import cma_es
from jaxmbrl.nn.cma_es import CMAConfig
from jaxmbrl.training import programs

Z, A, H, K, B, T = 2, 1, 3, 2, 2, 4
MODEL = MDNConfig(size=Z, coder=CoderConfig(units=4, symlog=False), units=H, components=K)
PARTS = mdn_rnn.parts(MODEL, Box((3,)), Box((A,), -1.0, 1.0))
KEY = jax.random.key(0)
IMAGE = Box((64, 64, 3), 0, 255, "uint8")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def memory():
    """Random parameters of the memory, in float64."""
    with jax.enable_x64(True):
        shapes = jax.eval_shape(PARTS.init_memory, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)


def head_biases(memory, bias):
    heads = memory["heads"]["params"]
    heads = {"kernel": jnp.zeros(heads["kernel"].shape), "bias": jnp.array(bias)}
    return jax.tree.map(jnp.asarray, memory) | {"heads": {"params": heads}}


@pytest.mark.parametrize(("free", "divergence"), [(0.4, 1.0), (0.5, 1.0), (0.6, 1.2)])
def test_the_loss_of_vision_by_hand(free, divergence):
    """With mean 1 and deviation 1 the divergence is 0.5 an entry. The error of an observation is a sum: 3."""
    coder = PARTS.coder._replace(loss=lambda params, z, observation: jnp.full(z.shape[0], 3.0))
    parts = PARTS._replace(code=lambda params, observation: jnp.array([[1.0, 1.0, 0.0, 0.0]] * B), coder=coder)
    config = MDNConfig(size=Z, free_nats=free, decoder_scale=10.0)
    loss, found = mdn_rnn.vision_loss(config, parts, {"decoder": ()}, jnp.zeros((B, 3)), jax.random.key(0))
    np.testing.assert_allclose([loss, found["model/divergence"].total], [30 + divergence, 1.0], rtol=1e-6)


def test_the_loss_of_the_memory_by_a_loop(x64, memory):
    """The second window has an episode that begins at its third position, and a termination at its second."""
    rng = np.random.default_rng(1)
    first, ended = np.zeros((B, T), bool), np.zeros((B, T), bool)
    first[:, 0] = first[1, 2] = ended[1, 1] = True
    mean, action, reward = rng.normal(size=(B, T, Z)), rng.uniform(-1, 1, (B, T, A)), rng.normal(size=(B, T))
    codes = np.concatenate([mean, np.full_like(mean, -200.0)], axis=-1)  # so that z is the mean
    known = np.ones((B, T))
    known[:, 0] = 0
    window = Window(codes, action, reward, ended, first, ended, known)
    loss = jax.jit(partial(mdn_rnn.memory_loss, MODEL, PARTS))
    _, (beliefs, found) = loss(memory, window, jax.random.key(0))

    unit, heads = memory["unit"], memory["heads"]["params"]
    sums, count = np.zeros(3), 0
    for b in range(B):
        for t in range(T):
            if first[b, t]:
                h, c, x = np.zeros(H), np.zeros(H), np.zeros(Z + A)
            else:
                x = np.concatenate([mean[b, t - 1], action[b, t]])
            i, f, g, o = np.split(x @ unit.input_kernel + h @ unit.hidden_kernel + unit.bias, 4)
            c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            np.testing.assert_allclose(beliefs.deter[b, t], np.concatenate([h, c]), rtol=1e-9)
            if first[b, t]:
                continue
            out = h @ heads["kernel"] + heads["bias"]
            logits, mu, log_std = out[: 3 * K * Z].reshape(3, K, Z)
            weights = np.exp(logits) / np.exp(logits).sum(0)
            density = np.exp(-0.5 * ((mean[b, t] - mu) / np.exp(log_std)) ** 2) / np.exp(log_std) / np.sqrt(2 * np.pi)
            p = sigmoid(out[-1])
            of_end = -10 * np.log(p) if ended[b, t] else -np.log(1 - p)
            sums += [-np.log((weights * density).sum(0)).mean(), (out[-2] - reward[b, t]) ** 2, of_end]
            count += 1
    assert count == 5
    for name, expected in zip(("memory", "reward", "termination"), sums / count, strict=True):
        np.testing.assert_allclose(found[f"model/{name}"].total, expected, rtol=1e-9)


def test_a_dream_steps_as_the_filter_does(x64, memory):
    """[h, c] is that of an observation; at a temperature near 0 z is the mean of the most probable component; the rewards
    are predicted or constant; a step terminates where its logit is positive."""
    rng = np.random.default_rng(2)
    belief = Belief(*map(jnp.asarray, (rng.normal(size=(5, 2 * H)), rng.normal(size=(5, Z)), np.zeros((5, A)))))
    action, key = jnp.asarray(rng.uniform(-1, 1, (5, A))), jax.random.key(0)

    @jax.jit
    def both(memory):
        seen = mdn_rnn.observed(PARTS, memory, belief._replace(action=action), jnp.zeros((5, 2 * Z)), key)
        cold = mdn_rnn.dream(MODEL, PARTS, memory, 1e-12).step(belief, action, key)
        paid = mdn_rnn.dream(MODEL, PARTS, memory, 1.0, constant_reward=1.0).step(belief, action, key)
        return seen, cold, paid, PARTS.predict(memory, seen.deter)

    seen, (after, row), (_, paid), expected = both(memory)
    np.testing.assert_array_equal(after.deter, seen.deter)
    chosen = np.argmax(expected.code.logits, axis=1)
    np.testing.assert_allclose(after.stoch, np.take_along_axis(expected.code.mean, chosen[:, None], 1)[:, 0], atol=1e-4)
    np.testing.assert_array_equal(row.reward, expected.reward)
    np.testing.assert_array_equal(row.terminated, expected.ends > 0)
    np.testing.assert_array_equal(paid.reward, np.ones(5))
    np.testing.assert_array_equal(row.next_observation, np.concatenate([after.stoch, after.deter[:, :H]], axis=1))


@pytest.mark.parametrize(("logit", "expected"), [(-1.0, 7.0), (1.0, 1.0)])
def test_the_return_of_a_dream_ends_with_it(memory, logit, expected):
    """Reward 1 a step for 7 steps, or until the first step terminates."""
    memory = head_biases(memory, [0.0] * (3 * K * Z + 1) + [logit])
    config = Config(model=MODEL, dream_steps=7, dream_reward="one")

    def control(point):
        return world_models.controlled(PARTS.action, point.reshape(A, Z + H + 1))

    codes, point = jnp.zeros((3, 2 * Z)), jnp.zeros(A * (Z + H + 1))
    found = world_models.dream_return(config, PARTS, control, memory, jnp.ones(()), codes, jax.random.key(0), point)
    assert found == expected


def test_each_round_begins_a_new_search_at_the_last_mean():
    """Of the search before, only the mean counts; each generation has its own dreams, and the best possible mean is 0."""
    config = Config(model=MODEL, search=CMAConfig(population=8, deviation=0.5), generations=40, dreams=2)
    row = Transition(jnp.zeros(2 * Z), jnp.zeros(A), jnp.zeros(()), jnp.zeros(2 * Z), *[jnp.zeros((), bool)] * 2, ())
    coded = sequences.add(sequences.init(row, 1, 4), jax.tree.map(lambda x: x[None, None], row))
    first = cma_es.init(config.search, jnp.array([1.0, -2.0]))
    used = first._replace(scale=jnp.asarray(1e-6), generations=jnp.asarray(9, jnp.int32), scale_path=jnp.ones(2))

    def dreamt(codes, key, point):
        assert codes.shape == (2, 2 * Z)
        return -jnp.sum(point**2)

    search = jax.jit(lambda before: world_models.search_in_dream(config, dreamt, coded, before, KEY))
    (after, found), (again, _) = search(first), search(used)
    jax.tree.map(np.testing.assert_array_equal, after, again)
    assert int(after.generations) == 40 and -1e-2 < float(found["policy/dreamt_at_end"].total) < 0


def test_equal_controllers_have_equal_returns_within_a_generation(x64, monkeypatch):
    """All are played from the same first codes with the same random numbers, and each generation has its own."""
    size = 5
    config = Config(model=MODEL, search=CMAConfig(population=size), generations=2, dreams=2)
    monkeypatch.setattr(cma_es, "ask", lambda config, search, key: jnp.full((size, size), 0.3))
    # There are as many values as parameters: those of the last generation are kept as the mean, those before as a path.
    monkeypatch.setattr(
        cma_es, "tell", lambda config, search, points, values: search._replace(mean=values, scale_path=search.mean)
    )
    # Eight episodes of one row, each with its own first code.
    codes, ended = jnp.asarray(np.random.default_rng(3).normal(size=(8, 1, 2 * Z))), jnp.ones((8, 1), bool)
    rows = Transition(codes, jnp.zeros((8, 1, A)), jnp.zeros((8, 1)), codes, ended, ended, ())
    coded = sequences.add(sequences.init(jax.tree.map(lambda x: x[0, 0], rows), 1, 9), rows)

    def dreamt(codes, key, point):
        return jnp.sum(codes) + jax.random.normal(key) + jnp.sum(point)

    first = cma_es.init(config.search, jnp.zeros(size))
    found, _ = jax.jit(lambda first: world_models.search_in_dream(config, dreamt, coded, first, KEY))(first)
    told = np.stack([found.scale_path, found.mean])
    np.testing.assert_array_equal(told, told[:, :1].repeat(size, axis=1))
    assert abs(told[0, 0] - told[1, 0]) > 1e-3, "the generations have dreams of their own"


def test_a_controller_by_hand():
    weights, features = jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, -1.0]]), jnp.array([[0.5, 0.25], [1.0, -1.0]])
    linear = np.array([[2.5, -0.25], [3.0, -4.0]])
    act = world_models.controlled(Box((2,), -1.0, 1.0), weights).act
    np.testing.assert_allclose(act((), features, KEY)[0], np.tanh(linear), rtol=1e-6)
    np.testing.assert_allclose(act((), features[0], KEY)[0], np.tanh(linear[0]), rtol=1e-6)
    chosen = world_models.controlled(Discrete(2), -weights).act((), features, KEY)[0]
    assert chosen.tolist() == [1, 1] and chosen.dtype == jnp.int32


@pytest.mark.parametrize(("preset", "actions", "number"), [("car", 3, 867), ("doom", 1, 1088)])
def test_the_papers_controllers_have_as_many_parameters(preset, actions, number):
    config = algorithms.get("world-models").presets[preset].config
    model = mdn_rnn.make(config.model, mdn_rnn.parts(config.model, IMAGE, Box((actions,), -1.0, 1.0)))
    assert actions * (model.feature_size + config.bias) == number


def test_rounds_begin_after_the_random_actions():
    config = Config(warmup_steps=500, train_every=10, rounds=2, round_steps=200, sequence_length=5)
    begins = [n for n in range(10, 2000, 10) if world_models.due(config, Clock(jnp.asarray(n)))]
    assert begins == [500, 700]


def test_a_generation_in_the_task_ends_before_a_round_begins(monkeypatch):
    """In the call in which both are due, the search is given the returns of the generation, here 0, 1, 2, ..."""
    for name in ("fit_vision", "fit_memory"):
        monkeypatch.setattr(world_models, name, lambda *given: (given[-3], {}))
    monkeypatch.setattr(world_models, "encoded", lambda parts, vision, buffer: buffer)
    config = Config(
        model=MODEL,
        controller="task",
        search=CMAConfig(population=4),
        rounds=3,
        round_steps=400,
        generation_steps=400,
        warmup_steps=100,
        train_every=50,
        sequence_length=5,
        replay_capacity=100,
    )
    task = envs.make("cartpole-continuous")
    algorithm, clock = world_models.make(config, task), Clock(jnp.asarray(500))
    row = row_like(task)._replace(extras=episode_trials.not_tried(jnp.zeros(1)))
    rows = jax.tree.map(lambda x: jnp.zeros((50, 1, *jnp.shape(x)), x.dtype), row)

    @jax.jit
    def found():
        state = algorithm.init(KEY, {}, None)
        trials = episode_trials.following(state.trials, cma_es.ask(config.search, state.search, KEY))
        played = trials._replace(total=3 * jnp.arange(4.0), episodes=jnp.full(4, 3.0))
        after, told = algorithm.learn(clock, state._replace(trials=played), rows)
        due = cma_es.tell(config.search, state.search, played.points, -jnp.arange(4.0))
        return after.search, due, told["policy/best_of_generation"], played.number, after.trials

    search, due, best, number, trials = found()
    assert world_models.due(config, clock)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), search, due)
    assert (float(best.total), int(trials.number - number), float(trials.episodes.sum())) == (3.0, 2, 0.0)


def test_periods_must_fit_the_calls_of_learn():
    for name in ("round_steps", "generation_steps"):
        with pytest.raises(UserError, match=name):
            programs.configure("world-models", "pendulum", settings={name: 1234})


def test_a_generation_in_the_task_is_long_enough_for_its_episodes():
    """Those of the pendulum have 200 steps."""
    settings = {"controller": "task", "num_envs": 2, "generation_steps": 700}
    with pytest.raises(UserError, match=r"^generation_steps must be at least 798, .* pendulum, at most 200 .* got 700"):
        programs.build(programs.configure("world-models", "pendulum", settings=settings))
