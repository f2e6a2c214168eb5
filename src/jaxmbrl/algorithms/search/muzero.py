"""MuZero: tree search in a learned model of rewards, values and policies (Schrittwieser et al., arXiv 1911.08265), with the
search of Gumbel MuZero (Danihelka et al., ICLR 2022) or PUCT.

    z_0 = h(o),    r_k, z_k = g(z_{k-1}, a_k),    p_k, v_k = f(z_k)

    loss = sum_{k=0..K} [ CE(pi_k, p_k) + w l(z_k's value target, v_k) ] + sum_{k=1..K} l(reward, r_k) + c ||theta||^2

    for each step: search from h(o), take its action, store the step with the policy and the value that the search found
    after `collect_steps` steps of each environment, `updates` times:
        sample windows of K + n + 1 rows, unroll the model along their actions, and take a gradient step

Terms with k >= 1 are scaled by 1 / K. The gradient that enters z_k from the next call of g is halved; that from f is not.
Latents are scaled to [0, 1] by their smallest and largest entry. After a termination the targets are value 0, reward 0 and
a uniform policy. Nothing is learned of the states after a time limit, and no return continues over it
(`planning.tree_search.targets`).

Differs from the paper: searches of old steps are not made anew, and value targets bootstrap from the stored ones; the
learning rate is constant; actions are sampled in proportion to visits at a constant temperature (PUCT), or taken by the
Gumbel rule. Networks are multilayer perceptrons.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Float, Int, Shaped

from jaxmbrl.algorithms import searching, shared
from jaxmbrl.algorithms.registry import TINY_RUN, Goal, Method
from jaxmbrl.algorithms.searching import Buffer, Losses, SearchedSettings
from jaxmbrl.core.extremes import largest, smallest
from jaxmbrl.core.spaces import encode, encoded_size
from jaxmbrl.core.types import Action, Algorithm, Clock, Hyper, Key, Metrics, Policy, PyTree, Task, Transition, Views
from jaxmbrl.distributions import ScalarHead
from jaxmbrl.envs.base import number_of_actions
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.planning import tree_search
from jaxmbrl.planning.tree_search import Node, SearchModel, Step, Targets


@dataclass(frozen=True)
class Config(SearchedSettings):
    """Settings of a run of MuZero."""

    unroll: Annotated[int, Ge(1)] = 5
    """K: steps along which the model is unrolled in training."""
    latent: Annotated[int, Ge(2)] = 32
    """Entries of the latent state z."""


class State(NamedTuple):
    """The whole state of a run."""

    networks: Trainable
    """Parameters of h, g and f."""
    replay: Buffer
    discount: Float[Array, ""]
    key: Key


class Networks(NamedTuple):
    """MuZero's three functions of its parameters."""

    init: Callable[[Key], PyTree]
    represent: Callable[[PyTree, Shaped[Array, "..."]], Float[Array, "*n L"]]
    """h: (parameters, observation) -> latent."""
    dynamics: Callable[[PyTree, Float[Array, "L"], Action], tuple[Float[Array, "S"], Float[Array, "L"]]]
    """g: (parameters, latent, action) -> (output of the reward's head, latent)."""
    predict: Callable[[PyTree, Float[Array, "*n L"]], tuple[Float[Array, "*n A"], Float[Array, "*n S"]]]
    """f: (parameters, latent) -> (prior logits, output of the value's head)."""


def make(config: Config, task: Task) -> Algorithm:
    """MuZero on `task`, which has discrete actions. Raises UserError if mctx is missing."""
    actions = number_of_actions(task, "muzero")
    head, search = ScalarHead(config.value_support), tree_search.make(config.search)
    networks = make_networks(config, task, actions, head)

    def init(key: Key, hyper: Hyper, data: Transition | None = None) -> State:
        shared.no_data(data, "muzero", on_policy=True)
        network_key, key = jax.random.split(key)
        rate, chain = hyper.get("learning_rate", config.learning_rate), searching.decayed(config)
        return State(
            optimizer.init(networks.init(network_key), rate, chain=chain),
            searching.new_buffer(config, task, actions),
            jnp.asarray(hyper.get("discount", config.discount), float),
            key,
        )

    def policy(state: State, clock: Clock, explore: bool) -> Policy:
        params = state.networks.params
        model = search_model(networks, head, params, state.discount)
        return tree_search.searching_policy(search, model, lambda o, key: networks.represent(params, o), explore)

    def learn(clock: Clock, state: State, transitions: Transition) -> tuple[State, Metrics]:
        key, update_key = jax.random.split(state.key)
        buffer = searching.store(state.replay, transitions)

        def loss(params: PyTree, rows: Transition, due: Targets) -> Losses:
            unrolled = unroll(networks, params, rows.observation[0], rows.action[: config.unroll])
            return window_loss(head, *unrolled, due)

        (trained, buffer), found = searching.update(
            config, loss, config.unroll, state.networks, buffer, state.discount, clock, update_key
        )
        return State(trained, buffer, state.discount, key), found | searching.searched(transitions)

    return Algorithm(
        init, policy, learn, period=config.collect_steps, views=lambda state: Views(state.replay), on_policy=True
    )


def make_networks(config: Config, task: Task, actions: int, head: ScalarHead) -> Networks:
    """Multilayer perceptrons h, g and f for `task`."""
    representation = MLP(config.hidden, config.latent)
    dynamics_net = MLP(config.hidden, config.latent + head.size)
    prediction = MLP(config.hidden, actions + head.size)

    def init(key: Key) -> PyTree:
        h, g, f = jax.random.split(key, 3)
        latent = jnp.zeros(config.latent)
        return {
            "h": representation.init(h, jnp.zeros(encoded_size(task.observation))),
            "g": dynamics_net.init(g, jnp.concatenate([latent, jnp.zeros(actions)])),
            "f": prediction.init(f, latent),
        }

    def represent(params: PyTree, observation: Shaped[Array, "..."]) -> Float[Array, "*n L"]:
        return scaled(representation.apply(params["h"], encode(task.observation, observation)))

    def dynamics(params: PyTree, latent: Float[Array, "L"], action: Action) -> tuple[Float[Array, "S"], Float[Array, "L"]]:
        entered = jnp.concatenate([latent, jax.nn.one_hot(action, actions, dtype=latent.dtype)])
        output = dynamics_net.apply(params["g"], entered)
        return output[config.latent :], scaled(output[: config.latent])

    def predict(params: PyTree, latent: Float[Array, "*n L"]) -> tuple[Float[Array, "*n A"], Float[Array, "*n S"]]:
        output = prediction.apply(params["f"], latent)
        return output[..., :actions], output[..., actions:]

    return Networks(init, represent, dynamics, predict)


def scaled(latent: Float[Array, "*n L"]) -> Float[Array, "*n L"]:
    """The latent scaled to [0, 1] by its smallest and largest entry (arXiv 1911.08265, appendix G)."""
    low, high = smallest(latent, -1, keepdims=True), largest(latent, -1, keepdims=True)
    return (latent - low) / (high - low + 1e-5)


def search_model(networks: Networks, head: ScalarHead, params: PyTree, discount: Float[Array, ""]) -> SearchModel:
    """The model in which the search steps: g, evaluated by f. No episode ends in it."""

    def step(latent: Float[Array, "L"], action: Action, key: Key) -> Step:
        reward, latent = networks.dynamics(params, latent, action)
        return Step(head.mean(reward), discount, latent)

    def evaluate(node: Node, key: Key) -> tuple[Float[Array, "A"], Float[Array, ""]]:
        logits, value = networks.predict(params, node.state)
        return logits, head.mean(value)

    return SearchModel(step, evaluate)


def unroll(
    networks: Networks, params: PyTree, observation: Shaped[Array, "..."], actions: Int[Array, "K"]
) -> tuple[Float[Array, "K+1 A"], Float[Array, "K+1 S"], Float[Array, "K S"]]:
    """(prior logits, values, rewards) of the states along `actions` from an observation, as outputs of their heads. The
    gradient that enters a latent from the next step is halved."""

    def step(latent: Float[Array, "L"], action: Action) -> tuple[Float[Array, "L"], tuple[Array, Array]]:
        reward, latent = networks.dynamics(params, half_gradient(latent), action)
        return latent, (reward, latent)

    first = networks.represent(params, observation)
    _, (rewards, later) = jax.lax.scan(step, first, actions)
    logits, values = networks.predict(params, jnp.concatenate([first[None], later]))
    return logits, values, rewards


def half_gradient(latent: Float[Array, "*n L"]) -> Float[Array, "*n L"]:
    """The latent itself, through which half of the gradient flows back."""
    return 0.5 * latent + jax.lax.stop_gradient(0.5 * latent)


def window_loss(
    head: ScalarHead,
    logits: Float[Array, "N A"],
    values: Float[Array, "N S"],
    rewards: Float[Array, "K S"],
    due: Targets,
) -> Losses:
    """The losses of one unrolled window, N = K + 1 states. All terms but those of the first state are scaled by 1 / K."""
    steps = rewards.shape[0]
    scale = jnp.full(steps + 1, 1 / steps).at[0].set(1.0)
    policy, value = searching.prediction_loss(head, logits, values, due)
    reward = due.reward_known * head.loss(rewards, due.reward) / steps
    error = jnp.abs(head.mean(values[0]) - due.value[0])
    return Losses(jnp.sum(scale * policy), jnp.sum(scale * value), jnp.sum(reward), error)


METHOD = Method(
    make,
    Config,
    family="search",
    paper="1911.08265",
    summary="tree search in a learned model of rewards, values and policies",
    takes=("discrete actions",),
    requires=("the extra `search`",),
    tiny={
        **TINY_RUN,
        "search.simulations": 3,
        "hidden": (16,),
        "latent": 4,
        "unroll": 2,
        "n_steps": 3,
        "num_envs": 1,
        "collect_steps": 10,
        "updates": 2,
    },
    goals=(
        Goal("muzero-catch", "bsuite/Catch", 13_248, 0.9, about="its preset, 16 simulations"),
        Goal(
            "muzero-cartpole",
            "CartPole-v1",
            40_320,
            195.0,
            seeds_at_goal=0,
            episodes=20,
            about="small preset, 16 simulations",
        ),
    ),
)
