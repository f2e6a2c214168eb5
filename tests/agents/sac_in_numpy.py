"""Soft actor-critic written out once more, in float64 NumPy with loops over critics and hand-made gradients.

A network is a list of (kernel, bias) with ReLU between layers. A batch is a dict of observation, action, reward,
next_observation and terminated, each with leading axis B.
"""

import numpy as np


def forward(layers, x):
    """The output, and the input of each layer."""
    inputs = []
    for kernel, bias in layers[:-1]:
        inputs.append(x)
        x = np.maximum(x @ kernel + bias, 0.0)
    inputs.append(x)
    kernel, bias = layers[-1]
    return x @ kernel + bias, inputs


def backward(layers, inputs, by_output):
    """Gradients of the layers as (kernel, bias), and of the network's input."""
    gradients = []
    for (kernel, _), x in zip(reversed(layers), reversed(inputs), strict=True):
        gradients.append((x.T @ by_output, by_output.sum(0)))
        by_output = by_output @ kernel.T
        if len(gradients) < len(layers):
            by_output = by_output * (x > 0)
    return gradients[::-1], by_output


def gaussian(actor, observation):
    """Mean and log standard deviation before tanh, and what the backward pass needs."""
    output, inputs = forward(actor, observation)
    size = output.shape[1] // 2
    raw = output[:, size:]
    return output[:, :size], np.clip(raw, -20.0, 2.0), (inputs, (raw > -20.0) & (raw < 2.0))


def log_density(pre_tanh, mean, log_std):
    """Of the squashed action: change of variables with the plain derivative of tanh."""
    gaussian_part = -0.5 * ((pre_tanh - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    return np.sum(gaussian_part - np.log(1 - np.tanh(pre_tanh) ** 2), axis=1)


def sample(actor, observation, noise):
    mean, log_std, _ = gaussian(actor, observation)
    pre_tanh = mean + np.exp(log_std) * noise
    return np.tanh(pre_tanh), log_density(pre_tanh, mean, log_std)


def values(critics, observation, action):
    pair = np.concatenate([observation, action], axis=1)
    return np.stack([forward(critic, pair)[0][:, 0] for critic in critics])


def critic_target(actor, target_critics, alpha, discount, batch, noise, subset):
    action, density = sample(actor, batch["next_observation"], noise)
    least = values([target_critics[i] for i in subset], batch["next_observation"], action).min(axis=0)
    return batch["reward"] + discount * (1.0 - batch["terminated"]) * (least - alpha * density)


def critic_loss(critics, batch, y, weight):
    """The loss, and each critic's gradient."""
    pair, rows = np.concatenate([batch["observation"], batch["action"]], axis=1), len(y)
    loss, gradients = 0.0, []
    for critic in critics:
        output, inputs = forward(critic, pair)
        error = output[:, 0] - y
        loss += np.sum(weight * error**2) / rows
        gradients.append(backward(critic, inputs, (2 * weight * error / rows)[:, None])[0])
    return loss, gradients


def least(critics, pair):
    """The critics' least value, and its gradient by the pair of observation and action."""
    outputs = [forward(critic, pair) for critic in critics]
    table = np.stack([output[:, 0] for output, _ in outputs])
    by_pair = np.zeros_like(pair)
    for i, (critic, (_, inputs)) in enumerate(zip(critics, outputs, strict=True)):
        by_pair += backward(critic, inputs, np.where(table.argmin(axis=0) == i, 1.0, 0.0)[:, None])[1]
    return table.min(axis=0), by_pair


def actor_loss(actor, critics, alpha, observation, noise, value_of=least):
    """The loss, its gradient, and the mean log-density. The actor maximises `value_of(critics, pair)`, given with slope.

    With a = tanh(u), u = m + exp(l) noise: log pi = sum(-noise^2 / 2 - l - log(2 pi) / 2 - log(1 - a^2)), whose derivative
    by u is 2 a and by l, apart from u, is -1.
    """
    mean, log_std, (inputs, unclipped) = gaussian(actor, observation)
    rows = len(observation)
    pre_tanh = mean + np.exp(log_std) * noise
    action, density = np.tanh(pre_tanh), log_density(pre_tanh, mean, log_std)
    pair = np.concatenate([observation, action], axis=1)
    value, by_pair = value_of(critics, pair)
    by_action = by_pair[:, observation.shape[1] :]
    by_pre_tanh = (alpha * 2 * action - by_action * (1 - action**2)) / rows
    by_log_std = (by_pre_tanh * np.exp(log_std) * noise - alpha / rows) * unclipped
    gradient = backward(actor, inputs, np.concatenate([by_pre_tanh, by_log_std], axis=1))[0]
    return np.mean(alpha * density - value), gradient, np.mean(density)
