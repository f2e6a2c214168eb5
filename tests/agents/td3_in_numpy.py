"""TD3's target and its actor's loss written out once more, in float64 NumPy; the rest is as in `sac_in_numpy`."""

import numpy as np

from .sac_in_numpy import backward, forward, values


def action_of(actor, observation):
    return np.tanh(forward(actor, observation)[0])


def critic_target(target_actor, target_critics, discount, batch, noise, limit):
    """`noise` [B, A] is scaled but not clipped yet; `limit` is the most that it may be."""
    smoothed = action_of(target_actor, batch["next_observation"]) + np.minimum(np.maximum(noise, -limit), limit)
    action = np.minimum(np.maximum(smoothed, -1.0), 1.0)
    least = values(target_critics, batch["next_observation"], action).min(axis=0)
    return batch["reward"] + discount * (1.0 - batch["terminated"]) * least


def actor_loss(actor, critic, observation):
    """The loss -mean Q(s, tanh(u)) and its gradient: a = tanh(u) has the slope 1 - a^2."""
    output, inputs = forward(actor, observation)
    action = np.tanh(output)
    value, of_critic = forward(critic, np.concatenate([observation, action], axis=1))
    rows = len(observation)
    by_pair = backward(critic, of_critic, np.full((rows, 1), -1.0 / rows))[1]
    by_output = by_pair[:, observation.shape[1] :] * (1 - action**2)
    return -np.mean(value), backward(actor, inputs, by_output)[0]
