"""AlphaZero: tree search in the known simulator, with a network for policy and value (Silver et al., arXiv 1712.01815), and
the search of Gumbel MuZero (Danihelka et al., ICLR 2022) or PUCT.

    p, v = f(o),    loss = CE(pi, p) + w (z - v)^2 + c ||theta||^2

    for each step: search in the simulator from its state, take the action, store the step with the policy pi that the
    search found
    after `collect_steps` steps of each environment, `updates` times: take a gradient step on a batch of steps

z is the return that followed: the n-step return of `planning.tree_search.targets`, which for n of at least an episode's
steps is the outcome of the episode, as in the paper.

Differs from the paper: for a single agent with rewards along the way; two players are for `planning.tree_search`. Actions
are sampled in proportion to visits at a constant temperature (PUCT), or taken by the Gumbel rule. A random step of the
simulator is sampled once for each action of a node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmbrl.algorithms import searching, shared
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.searching import Buffer, Losses, SearchedSettings
from jaxmbrl.core.spaces import encode, encoded_size
from jaxmbrl.core.types import Algorithm, Clock, Hyper, Key, Metrics, Policy, PyTree, Task, Transition, Views
from jaxmbrl.distributions import ScalarHead
from jaxmbrl.envs.base import number_of_actions
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.planning import tree_search
from jaxmbrl.planning.tree_search import Node, Targets, begin, in_world
from jaxmbrl.rollout import with_full_state


@dataclass(frozen=True)
class Config(SearchedSettings):
    """Settings of a run of AlphaZero."""


class State(NamedTuple):
    """The whole state of a run."""

    network: Trainable
    replay: Buffer
    discount: Float[Array, ""]
    key: Key


def make(config: Config, task: Task) -> Algorithm:
    """AlphaZero on `task`, which has discrete actions. Raises UserError if mctx is missing."""
    actions = number_of_actions(task, "alphazero")
    head, search = ScalarHead(config.value_support), tree_search.make(config.search)
    network, simulator = MLP(config.hidden, actions + head.size), with_full_state(task.world)

    def predict(params: PyTree, observation: Array) -> tuple[Float[Array, "*n A"], Float[Array, "*n S"]]:
        output = network.apply(params, encode(task.observation, observation))
        return output[..., :actions], output[..., actions:]

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "alphazero", on_policy=True)
        network_key, key = jax.random.split(key)
        params = network.init(network_key, jnp.zeros(encoded_size(task.observation)))
        rate, chain = hyper.get("learning_rate", config.learning_rate), searching.decayed(config)
        return State(
            optimizer.init(params, rate, chain=chain),
            searching.new_buffer(config, task, actions),
            jnp.asarray(hyper.get("discount", config.discount), float),
            key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        def evaluate(node: Node, key: Key) -> tuple[Float[Array, "A"], Float[Array, ""]]:
            logits, value = predict(state.network.params, task.world.observe(node.state.carry))
            return logits, head.mean(value)

        model = in_world(simulator, evaluate, state.discount)
        return tree_search.searching_policy(search, model, lambda carry, key: begin(simulator, carry, key), explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer = searching.store(state.replay, transitions)

        def loss(params: PyTree, rows: Transition, due: Targets) -> Losses:
            logits, values = predict(params, rows.observation[:1])
            policy, value = searching.prediction_loss(head, logits, values, due)
            error = jnp.abs(head.mean(values[0]) - due.value[0])
            return Losses(policy[0], value[0], jnp.zeros(()), error)

        (trained, buffer), found = searching.update(
            config, loss, 0, state.network, buffer, state.discount, clock, update_key
        )
        return State(trained, buffer, state.discount, key), found | searching.searched(transitions)

    return Algorithm(
        init,
        policy,
        learn,
        period=config.collect_steps,
        views=lambda state: Views(state.replay),
        observes_full_state=True,
        on_policy=True,
    )


METHOD = Method(
    make,
    Config,
    family="search",
    paper="1712.01815",
    summary="tree search in the known simulator, with a learned policy and value",
    takes=("discrete actions",),
    requires=("the extra `search`", "a compiled task"),
    tiny={
        **TINY_RUN,
        "search.simulations": 3,
        "hidden": (16,),
        "n_steps": 3,
        "num_envs": 1,
        "collect_steps": 10,
        "updates": 2,
    },
    goals=(Goal("alphazero-catch", "bsuite/Catch", 5184, 1.0, about="its preset, 16 simulations"),),
)
