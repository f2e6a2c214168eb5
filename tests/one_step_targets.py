"""The one-step target that an agent's critics learn where none is given."""

import functools

import jax

from jaxmbrl.agents.actor_critic.critics import td_target


@functools.partial(jax.jit, static_argnums=0)
def critic_target(agent, state, batch, key):
    next_value = agent.target_value(state, batch.next_observation, key)
    return td_target(batch.reward, state.discount, batch.terminated, next_value)
