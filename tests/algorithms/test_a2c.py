"""A2C: three updates against a transcription in NumPy."""

import jax
import numpy as np

from jaxmbrl import envs
from jaxmbrl.algorithms.on_policy import a2c
from jaxmbrl.core.types import Transition

from .test_sac import clock

T, N = 4, 2
CONFIG = a2c.Config(
    agent=a2c.A2CConfig(hidden=(), learning_rate=0.05, normalize_rewards=False, first_log_std=0.2),
    num_envs=N,
    collect_steps=T,
    epoch_steps=T * N,
    anneal_steps=4 * T * N,
)


def collected(seed):
    """Steps with ends of both kinds; the task received some actions at a bound."""
    rng = np.random.default_rng(seed)
    seen, following = rng.normal(2.0, 3.0, (2, T, N, 3))
    raw, reward, ends = 1.2 * rng.normal(size=(T, N, 1)), rng.normal(size=(T, N)), rng.random((2, T, N)) < 0.2
    return Transition(seen, np.clip(raw, -1, 1), reward, following, *ends, raw)


def parameters(actor, critic):
    """Kernel, bias and log standard deviation of the policy, kernel and bias of the value function."""
    policy, value = (network["params"]["Dense_0"] for network in (actor.network, critic))
    return [policy["kernel"], policy["bias"], actor.log_std, value["kernel"], value["bias"]]


class Transcription:
    """A linear Gaussian policy and a linear value function, moved by RMSProp."""

    def __init__(self, actor, critic):
        self.params = parameters(actor, critic)
        self.square = [np.ones_like(p) for p in self.params]
        self.seen = np.zeros((0, 3))

    def inputs(self, seen):
        if not len(self.seen):
            return seen
        return np.clip((seen - self.seen.mean(axis=0)) / np.sqrt(self.seen.var(axis=0) + 1e-8), -10, 10)

    def update(self, rows, rate):
        kernel, bias, log_std, of_value, constant = self.params
        x, after = self.inputs(rows.observation), self.inputs(rows.next_observation)
        value, next_value = ((z @ of_value + constant)[..., 0] for z in (x, after))
        advantage, following = np.zeros((T, N)), np.zeros(N)
        for t in reversed(range(T)):
            error = rows.reward[t] + 0.99 * ~rows.terminated[t] * next_value[t] - value[t]
            following = error + 0.99 * ~(rows.terminated[t] | rows.truncated[t]) * following
            advantage[t] = following

        x, z = x.reshape(-1, 3), ((rows.extras - x @ kernel - bias) / np.exp(log_std)).reshape(-1, 1)
        advantage = advantage.reshape(-1, 1)
        by_mean, by_value = -advantage * z / np.exp(log_std) / len(z), -advantage / len(z)
        by_log_std = np.mean(-advantage * (z**2 - 1), axis=0) - 0.01
        gradient = [x.T @ by_mean, by_mean.sum(axis=0), by_log_std, x.T @ by_value, by_value.sum(axis=0)]
        norm = np.sqrt(sum(np.sum(g**2) for g in gradient))
        for i, g in enumerate(gradient):
            clipped = g * min(1, 0.5 / norm)
            self.square[i] = 0.99 * self.square[i] + 0.01 * clipped**2
            self.params[i] = self.params[i] - rate * clipped / np.sqrt(self.square[i] + 1e-5)
        self.seen = np.concatenate([self.seen, rows.observation.reshape(-1, 3)])
        return norm


def test_three_updates_are_those_of_a_transcription(x64):
    """RMSProp's mean square starts at 1, and epsilon is inside the root, as in TensorFlow. Each update normalises its rows
    by the observations of earlier updates, as the policy did that collected them."""
    algorithm = a2c.make(CONFIG, envs.make("pendulum"))
    learn, state = jax.jit(algorithm.learn), jax.device_get(jax.jit(algorithm.init)(jax.random.key(0), {}))
    own = Transcription(state.agent.actor.params, state.agent.critic.params)
    norms = []
    for call in range(3):
        rows = collected(call)
        state, found = jax.device_get(learn(clock((call + 1) * T * N), state, rows))
        norms.append(own.update(rows, 0.05 * (1 - call / 4)))
        np.testing.assert_allclose(found["agent/gradient_norm"].total, norms[-1], rtol=1e-9)
        for now, due in zip(parameters(state.agent.actor.params, state.agent.critic.params), own.params, strict=True):
            np.testing.assert_allclose(now, due, rtol=1e-9)
    assert max(norms) > 0.5
