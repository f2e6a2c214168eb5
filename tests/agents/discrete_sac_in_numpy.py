"""Soft actor-critic for discrete actions once more, in float64 NumPy with hand-made gradients. Networks and batches are
those of `sac_in_numpy`; actions are numbers [B]."""

import numpy as np

from .sac_in_numpy import backward, forward


def log_probability(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def soft_value(log_p, values, alpha):
    """Of values [B, n]."""
    return np.sum(np.exp(log_p) * (values - alpha * log_p), axis=1)


def values(critics, observation):
    """[critics, B, n]."""
    return np.stack([forward(critic, observation)[0] for critic in critics])


def critic_target(actor, target_critics, alpha, discount, batch, subset):
    log_p = log_probability(forward(actor, batch["next_observation"])[0])
    least = values([target_critics[i] for i in subset], batch["next_observation"]).min(axis=0)
    return batch["reward"] + discount * (1.0 - batch["terminated"]) * soft_value(log_p, least, alpha)


def critic_loss(critics, batch, y, weight):
    """The loss, and the gradients of each critic's layers."""
    loss, gradients, rows = 0.0, [], np.arange(len(y))
    for critic in critics:
        output, inputs = forward(critic, batch["observation"])
        error = output[rows, batch["action"]] - y
        loss += np.mean(weight * error**2)
        by_output = np.zeros_like(output)
        by_output[rows, batch["action"]] = 2 * weight * error / len(y)
        gradients.append(backward(critic, inputs, by_output)[0])
    return loss, gradients


def actor_loss(actor, critics, alpha, observation, pool):
    """The loss, the gradients of the actor's layers, and the mean of sum_a pi log pi.

    Of V = sum_a pi_a f_a with f = Q - alpha log pi, the derivative by logit k is pi_k (f_k - V): the part from log pi is
    -alpha (pi_k - pi_k sum_a pi_a) = 0.
    """
    logits, inputs = forward(actor, observation)
    log_p = log_probability(logits)
    f = pool(values(critics, observation), axis=0) - alpha * log_p
    value = np.sum(np.exp(log_p) * f, axis=1)
    by_logits = -np.exp(log_p) * (f - value[:, None]) / len(value)
    return -value.mean(), backward(actor, inputs, by_logits)[0], np.mean(np.sum(np.exp(log_p) * log_p, axis=1))
