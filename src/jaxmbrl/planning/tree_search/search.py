"""Searches with mctx: PUCT as in MuZero (Schrittwieser et al., arXiv 1911.08265), and Gumbel MuZero (Danihelka et al.,
Policy improvement by planning with Gumbel, ICLR 2022).

PUCT selects, at every node, the action with the largest

    q(a) + p(a) sqrt(N) / (1 + n(a)) (c1 + log((N + c2 + 1) / c2)),

where q is the action value, normalised to [0, 1] by the values of the node and its children or by known bounds, p the
prior, n the number of visits of the action, and N that of the node, its own evaluation included. At the root Dirichlet
noise is mixed into the prior. The policy target are the shares of visits.

Gumbel MuZero samples the actions considered at the root without replacement, by the largest logits + Gumbel noise, and
shares the simulations out among them by sequential halving. The policy target is softmax(logits + sigma(q)), with

    sigma(q) = (visit_offset + max n) value_scale q,

where q is completed for actions without visits and rescaled to [0, 1].
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from jaxtyping import Array, Float, Int

from jaxmbrl.core.config import UserError
from jaxmbrl.core.types import Action, Key, Memory, Observation, Policy, PyTree
from jaxmbrl.planning.tree_search.model import Node, Root, SearchModel, evaluated, expand, first_node


@dataclass(frozen=True)
class GumbelConfig:
    """Settings of Gumbel MuZero."""

    considered: Annotated[int, Ge(1)] = 16
    """Largest number of actions that are visited at the root."""
    value_scale: Annotated[float, Gt(0)] = 0.1
    """Scale of the action values, in logits, for each visit and `visit_offset`."""
    visit_offset: Annotated[float, Ge(0)] = 50.0
    """Added to the largest number of visits."""
    rescale: bool = True
    """Rescale the action values of a node to [0, 1]. Without it they should be in [0, 1] or [-1, 1] already."""


@dataclass(frozen=True)
class PUCTConfig:
    """Settings of PUCT."""

    c_init: Annotated[float, Gt(0)] = 1.25
    """c1: weight of the prior."""
    c_base: Annotated[float, Gt(0)] = 19652.0
    """c2: number of visits from which the weight of the prior grows noticeably."""
    noise_share: Annotated[float, Ge(0), Le(1)] = 0.25
    """Share of Dirichlet noise in the root's prior while collecting."""
    noise_concentration: Annotated[float, Gt(0)] = 0.3
    """Concentration of the Dirichlet noise."""
    value_range: tuple[float, float] | None = None
    """Smallest and largest possible action value, such as -1 and 1 in a game, by which action values are normalised; None
    for those of the node and its children."""
    temperature: Annotated[float, Ge(0)] = 1.0
    """While collecting, actions are sampled in proportion to visits^(1 / temperature); 0 for the most visited action."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            return "value_range", f"must be a smaller and a larger number, got {self.value_range}"
        return None


@dataclass(frozen=True)
class SearchConfig:
    """Choice of a search, with the settings of each."""

    method: Literal["gumbel", "puct"] = "gumbel"
    """The search. The settings of the other have no effect."""
    simulations: Annotated[int, Ge(1)] = 16
    """Nodes that are added to the root."""
    gumbel: GumbelConfig = field(default_factory=GumbelConfig)
    """Gumbel MuZero."""
    puct: PUCTConfig = field(default_factory=PUCTConfig)
    """PUCT."""


class Statistics(NamedTuple):
    """What a search found at its root: the extras of a policy that searches."""

    weights: Float[Array, "A"]
    """The improved policy, which sums to 1: the target of a policy network."""
    visits: Int[Array, "A"]
    value: Float[Array, ""]
    """Mean over all simulations, for the player to move."""


class Found(NamedTuple):
    """The result of a search."""

    action: Int[Array, ""]
    statistics: Statistics
    tree: Any
    """`mctx.Tree`, of a batch of one."""


Search = Callable[[SearchModel, PyTree, Key, bool], Found]
"""(model, state of the root, key, explore) -> found."""


def library() -> Any:
    """The module mctx. Raises UserError if it is missing."""
    try:
        return importlib.import_module("mctx")
    except ImportError:
        raise UserError("tree search needs mctx, which is missing: pip install 'jaxmbrl[search]'") from None


def make(config: SearchConfig) -> Search:
    """The search selected by `config`. With `explore` it adds its noise and samples an action of PUCT; without, an action
    of PUCT is the most visited, and Gumbel MuZero uses no noise. Raises UserError if mctx is missing."""
    mctx = library()

    def gumbel(explore: bool) -> Callable[..., Any]:
        of = config.gumbel
        return functools.partial(
            mctx.gumbel_muzero_policy,
            max_num_considered_actions=of.considered,
            gumbel_scale=1.0 if explore else 0.0,
            qtransform=gumbel_values(of),
        )

    def puct(explore: bool) -> Callable[..., Any]:
        of = config.puct
        normalised = mctx.qtransform_by_parent_and_siblings
        if of.value_range is not None:
            low, high = of.value_range
            normalised = functools.partial(mctx.qtransform_by_min_max, min_value=low, max_value=high)
        return functools.partial(
            mctx.muzero_policy,
            qtransform=normalised,
            pb_c_init=of.c_init,
            pb_c_base=of.c_base,
            dirichlet_fraction=of.noise_share if explore else 0.0,
            dirichlet_alpha=of.noise_concentration,
            temperature=of.temperature if explore else 0.0,
        )

    chosen = gumbel if config.method == "gumbel" else puct

    def search(model: SearchModel, state: PyTree, key: Key, explore: bool) -> Found:
        root_key, search_key = jax.random.split(key)
        root, invalid = root_of(mctx, model, state, root_key)
        found = chosen(explore)(
            (), search_key, root, recurrent(mctx, model), num_simulations=config.simulations, invalid_actions=invalid
        )
        summary = found.search_tree.summary()
        visits = summary.visit_counts[0].astype(jnp.int32)
        return Found(
            found.action[0].astype(jnp.int32),
            Statistics(found.action_weights[0], visits, summary.value[0]),
            found.search_tree,
        )

    return search


def gumbel_values(config: GumbelConfig) -> Callable[..., Float[Array, "A"]]:
    """sigma(q): (unbatched `mctx.Tree`, node) -> the completed and scaled action values of the node."""
    return functools.partial(
        library().qtransform_completed_by_mix_value,
        value_scale=config.value_scale,
        maxvisit_init=config.visit_offset,
        rescale_values=config.rescale,
    )


def root_of(mctx: Any, model: SearchModel, state: PyTree, key: Key) -> tuple[Any, Any]:
    """(root of a search, a batch of one; its illegal actions [1, A], or None if all are legal)."""
    node = first_node(state)
    logits, value = evaluated(model, node, key)
    embedding = jax.tree.map(lambda x: jnp.asarray(x)[None], node)
    root = mctx.RootFnOutput(prior_logits=logits[None], value=value[None], embedding=embedding)
    return root, None if model.legal is None else ~model.legal(state)[None]


def recurrent(mctx: Any, model: SearchModel) -> Callable[..., Any]:
    """The function of `model` that mctx calls with a batch of actions [B] and nodes."""

    def expand_one(node: Node, action: Action, key: Key) -> tuple[Any, Node]:
        step, successor, logits, value = expand(model, node, action, key)
        output = mctx.RecurrentFnOutput(reward=step.reward, discount=step.discount, prior_logits=logits, value=value)
        return output, successor

    def call(_: Any, key: Key, action: Int[Array, "B"], nodes: Node) -> tuple[Any, Node]:
        return jax.vmap(expand_one)(nodes, action, jax.random.split(key, action.shape[0]))

    return call


def searching_policy(search: Search, model: SearchModel, root: Root, explore: bool) -> Policy:
    """The policy that searches from each observation; its extras are the `Statistics` of the search."""

    @jax.named_scope("search")
    def act(memory: Memory, observation: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
        root_key, search_key = jax.random.split(key)
        found = search(model, root(observation, root_key), search_key, explore)
        return found.action, found.statistics, memory

    return Policy(init=lambda key: (), act=act)
