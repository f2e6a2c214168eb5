"""Distillation: the losses by hand, least squares for a linear student, who acts and who labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.agents import distillation
from jaxmbrl.agents.distillation import StudentConfig
from jaxmbrl.core.spaces import Box, Discrete
from jaxmbrl.core.types import Policy, Transition
from jaxmbrl.data import replay

VALUES = np.array([1.0, 0.99, 0.5])
TORQUE = Box((1,), -1.0, 1.0)
GAINS = np.array([[-2.5854231], [-3.4433415]])
"""LQR's gains of a double integrator."""


def softened(temperature):
    weights = np.exp((VALUES - VALUES.max()) / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("temperature", "expected", "tolerance"),
    [(1.0, (0.385122, 0.381290, 0.233588), 1e-6), (0.01, (0.731059, 0.268941, 1e-22), 1e-6)],
)
def test_the_softmax_of_action_values_by_its_temperature(temperature, expected, tolerance):
    np.testing.assert_allclose(softened(temperature), expected, atol=tolerance)
    other = np.array([0.5, 0.3, 0.2])
    with np.errstate(divide="ignore", invalid="ignore"):
        by_hand = np.nansum(softened(temperature) * np.log(softened(temperature) / other))
    found = distillation.divergence(Discrete(3), jnp.asarray(VALUES), jnp.log(jnp.asarray(other)), temperature)
    assert float(found) == pytest.approx(by_hand, abs=1e-6)
    if temperature == 0.01:
        assert float(found) == pytest.approx(0.2483262, abs=2e-6)


def test_the_divergence_of_actions_is_half_the_squared_distance():
    label, output = np.array([[0.5, -1.0], [0.0, 0.25]]), np.array([[0.0, 1.0], [0.5, 0.25]])
    found = distillation.divergence(Box((2,), -1.0, 1.0), jnp.asarray(label), jnp.asarray(output))
    np.testing.assert_allclose(found, 0.5 * ((label - output) ** 2).sum(axis=1), rtol=1e-6)


def labelled(observation, label):
    none = jnp.zeros(len(observation), bool)
    return Transition(observation, label, jnp.zeros(len(observation)), observation, none, none, label)


def test_a_linear_student_of_a_linear_expert_is_the_expert(x64):
    """In a buffer that is not full: its free rows do not count."""
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(50, 2)) * (3.0, 0.1) + (5.0, -1.0)
    student = distillation.make(StudentConfig(hidden=()), Box((2,)), TORQUE)
    rows = labelled(jnp.asarray(seen), jnp.asarray(seen @ GAINS))
    buffer = replay.add(replay.init(jax.tree.map(lambda x: x[0], rows), 64), rows)
    state, _ = student.fit(student.init(jax.random.key(0), {}), buffer, jax.random.key(1))
    assert float(student.loss(state, rows)) < 1e-24
    at = rng.normal(size=(9, 2)) / 10
    shown = student.policy(state).act((), jnp.asarray(at), jax.random.key(2))[0]
    np.testing.assert_allclose(shown, np.clip(at @ GAINS, -1, 1), atol=1e-10)


def test_least_squares_with_noise_are_those_of_numpy(x64):
    rng = np.random.default_rng(1)
    inputs, labels = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    kernel, bias = distillation.least_squares(jnp.asarray(inputs), jnp.asarray(labels), jnp.arange(30) < 20)
    expected = np.linalg.lstsq(np.c_[inputs, np.ones(30)][:20], labels[:20])[0]
    np.testing.assert_allclose(np.vstack([kernel, bias]), expected, atol=1e-10)


def counting(key):
    return jnp.zeros(())


EXPERT = Policy(counting, lambda memory, seen, key: (seen + memory, jnp.array([7.0]) + memory, memory + 1))
"""Its memory counts how often it was asked; its label is not its action."""
STUDENT = Policy(lambda key: (), lambda memory, seen, key: (-seen, (), memory))


@pytest.mark.parametrize(("share", "action"), [(1.0, 6.0), (0.0, -4.0)])
def test_the_expert_labels_every_step_from_its_own_memory(share, action):
    acting = distillation.asked(EXPERT, STUDENT, lambda seen: seen, jnp.asarray(share))
    memory = acting.init(jax.random.key(0))
    for step in range(3):
        acted, label, memory = acting.act(memory, jnp.array([4.0]), jax.random.key(step))
        assert float(label[0]) == 7.0 + step
    assert float(acted[0]) == action and float(memory) == 3.0


def last_action(memory, seen, key):
    """The label is the action before this one; the own action is 0.5."""
    return jnp.array([0.5]), memory, jnp.array([0.5])


@pytest.mark.parametrize(("share", "action"), [(1.0, 0.5), (0.0, -4.0)])
@pytest.mark.parametrize("cheats", [False, True])
def test_the_memory_of_the_expert_has_the_actions_that_were_taken(share, action, cheats):
    own = Policy(lambda key: jnp.zeros(1), last_action, remember=lambda memory, seen, action, key: action + 0 * seen)
    expert = distillation.Expert(lambda seed: own, observes_full_state=False)
    if cheats:
        # The student's world is a pair around the expert's, which it observes as a single number.
        expert = distillation.privileged(expert, lambda carry: carry[1], lambda within: within[:1])
        seen, observe = (jnp.zeros(()), jnp.array([4.0, 9.0])), lambda carry: carry[1][:1]
    else:
        seen, observe = jnp.array([4.0]), lambda seen: seen
    acting = distillation.asked(expert.policy(jnp.asarray(0)), STUDENT, observe, jnp.asarray(share))
    memory = acting.init(jax.random.key(0))
    for step in range(3):
        acted, label, memory = acting.act(memory, seen, jax.random.key(step))
        assert float(acted[0]) == action
        assert float(label[0]) == (action if step else 0.0)
    assert float(acting.remember(memory, seen, jnp.array([0.125]), jax.random.key(0))[0]) == 0.125


def test_beta_is_the_share_of_steps_that_are_the_experts():
    acting = distillation.asked(EXPERT, STUDENT, lambda seen: seen, jnp.asarray(0.3))
    keys = jax.random.split(jax.random.key(5), 4000)
    acted = jax.jit(jax.vmap(lambda key: acting.act(jnp.zeros(()), jnp.array([4.0]), key)[0]))(keys)
    assert float(jnp.mean(acted > 0)) == pytest.approx(0.3, abs=0.03)


def test_a_network_learns_choices_from_action_values():
    """The better of two choices is that with the sign of the observation."""
    student = distillation.make(StudentConfig(hidden=(8,), updates=200, learning_rate=0.01), Box((1,)), Discrete(2))
    seen = np.linspace(-1, 1, 65)[:, None].astype(np.float32)
    rows = labelled(jnp.asarray(seen), jnp.asarray(np.concatenate([-seen, seen], axis=1)))._replace(
        action=jnp.zeros(65, jnp.int32)
    )
    fitted = jax.jit(lambda: student.fit(student.init(jax.random.key(0), {}), replay.of_rows(rows), jax.random.key(1))[0])()
    shown = student.policy(fitted).act((), jnp.asarray(seen), jax.random.key(2))[0]
    assert np.mean(np.asarray(shown) == (seen[:, 0] > 0)) > 0.95
