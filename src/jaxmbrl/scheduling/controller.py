"""AutoMBPO's controller: PPO without a critic, on trajectories of decisions (Lai et al., arXiv 2111.08550, algorithm 1).

A decision consists of a choice of each head, and each head has its own network of one hidden layer. With R trajectories of
T decisions each, the reward-to-go G_t = r_t + r_{t+1} + ... without a discount, and a weight w that is 0 for a choice
without effect,

    advantage    A_{i,t} = G_{i,t} - 1/R sum_j G_{j,t}
    loss         -sum over heads of mean w min(rho A, clip(rho, 1 - c, 1 + c) A),    rho = pi(a|s) / pi_old(a|s) of the head

so that each head is clipped on its own.

Differs from the paper's code, which has no baseline: the mean at the same decision number is subtracted, which lowers the
variance of the gradient. The mean is over all R trajectories, the own one among them: the expected gradient, before any
clipping, is (R - 1)/R times that without a baseline, of the same direction. Choices are always sampled from the controller;
the code's are uniformly random with a probability that falls over the first stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxmbrl.agents.on_policy import clipped_loss
from jaxmbrl.core.types import Key, PyTree
from jaxmbrl.distributions import Categorical
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class ControllerConfig:
    """Settings of the controller."""

    hidden: Annotated[int, Ge(1)] = 256
    """Units of the hidden layer (tanh) of each head."""
    learning_rate: Annotated[float, Gt(0)] = 3e-4
    """Adam's learning rate."""
    clip: Annotated[float, Gt(0)] = 0.2
    """c: where the probability ratio of each head is clipped."""
    gradient_steps: Annotated[int, Ge(1)] = 300
    """Gradient steps after each stage."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Decisions of a gradient step, sampled without replacement; at most all of the stage."""


class Decisions(NamedTuple):
    """Decisions of R trajectories, or with one leading axis less of one, with H heads."""

    state: Float[Array, "R T S"]
    choice: Int[Array, "R T H"]
    log_probability: Float[Array, "R T H"]
    """Of each choice under the controller that made it."""
    weight: Float[Array, "R T H"]
    """0 for a choice without effect, else 1."""
    reward: Float[Array, "R T"]


class Controller(NamedTuple):
    """The functions of a controller with `heads` numbers of choices for states of size S."""

    config: ControllerConfig
    heads: tuple[int, ...]
    state_size: int

    def init(self, key: Key) -> Trainable:
        """New parameters: a tree for each head."""
        keys = jax.random.split(key, len(self.heads))
        params = [self._network(n).init(k, jnp.zeros(self.state_size)) for n, k in zip(self.heads, keys, strict=True)]
        return optimizer.init(params, self.config.learning_rate)

    def distributions(self, params: PyTree, state: Float[Array, "*n S"]) -> list[Categorical]:
        """The distribution of each head's choice."""
        return [Categorical(self._network(n).apply(own, state)) for n, own in zip(self.heads, params, strict=True)]

    def decide(
        self, params: PyTree, state: Float[Array, "S"], key: Key, greedy: bool = False
    ) -> tuple[Int[Array, "H"], Float[Array, "H"]]:
        """(choices, log-probabilities) of one decision: sampled, or the most probable ones."""
        heads = self.distributions(params, state)
        keys = jax.random.split(key, len(heads))
        choices = [head.mode() if greedy else head.sample(k) for head, k in zip(heads, keys, strict=True)]
        return jnp.stack(choices), jnp.stack([head.log_probability(a) for head, a in zip(heads, choices, strict=True)])

    def loss(self, params: PyTree, rows: Decisions, advantage: Float[Array, "B"]) -> Float[Array, ""]:
        """The clipped loss of decisions [B], summed over heads."""
        total = jnp.zeros(())
        for i, head in enumerate(self.distributions(params, rows.state)):
            ratio = jnp.exp(head.log_probability(rows.choice[:, i]) - rows.log_probability[:, i])
            total += clipped_loss(ratio, advantage, rows.weight[:, i], self.config.clip)
        return total

    def update(self, trainable: Trainable, stage: Decisions, key: Key) -> Trainable:
        """The controller after the gradient steps on the decisions [R, T] of a stage."""
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (stage, advantages(stage.reward)))
        number = flat[1].shape[0]

        def step(trainable: Trainable, key: Key) -> tuple[Trainable, None]:
            chosen = jax.random.choice(key, number, (min(self.config.batch_size, number),), replace=False)
            rows, advantage = jax.tree.map(lambda x: x[chosen], flat)
            gradient = jax.grad(self.loss)(trainable.params, rows, advantage)
            return optimizer.step(trainable, gradient)[0], None

        return jax.lax.scan(step, trainable, jax.random.split(key, self.config.gradient_steps))[0]

    def _network(self, choices: int) -> MLP:
        return MLP((self.config.hidden,), choices, activation=nn.tanh)


def rewards_to_go(reward: Float[Array, "*R T"]) -> Float[Array, "*R T"]:
    """The sum of each reward and all later ones.

    >>> from jaxmbrl.scheduling.controller import rewards_to_go
    >>> [float(x) for x in rewards_to_go(jnp.array([1.0, 0.0, 2.0]))]
    [3.0, 2.0, 2.0]
    """
    return jnp.flip(jnp.cumsum(jnp.flip(reward, axis=-1), axis=-1), axis=-1)


def advantages(reward: Float[Array, "R T"]) -> Float[Array, "R T"]:
    """Rewards-to-go less their mean over the trajectories at the same decision number; of a single trajectory, the
    rewards-to-go."""
    to_go = rewards_to_go(reward)
    return to_go - jnp.mean(to_go, axis=0) if reward.shape[0] > 1 else to_go
