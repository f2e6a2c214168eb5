"""DroQ's critic written out once more, in float64 NumPy: value and hand-made gradients.

A critic is a list of hidden layers (kernel, bias, scale, shift) and one last (kernel, bias). `masks` holds, for each hidden
layer, what its units [B, units] are multiplied by: 0 where dropped, else 1 / (1 - dropout).
"""

import numpy as np

EPSILON = 1e-6


def forward(critic, pair, masks):
    """The value [B], and what the backward pass needs."""
    x, kept = pair, []
    for (kernel, bias, scale, shift), mask in zip(critic[:-1], masks, strict=True):
        dropped = (x @ kernel + bias) * mask
        centred = dropped - dropped.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + EPSILON)
        normal = centred / deviation
        kept.append((x, normal, deviation, normal * scale + shift > 0))
        x = np.maximum(normal * scale + shift, 0.0)
    kernel, bias = critic[-1]
    return (x @ kernel + bias)[:, 0], (kept, x)


def backward(critic, masks, saved, by_value):
    """Gradients of the layers in order, and of the pair."""
    kept, x = saved
    gradients = [(x.T @ by_value[:, None], by_value.sum(keepdims=True))]
    by_output = by_value[:, None] @ critic[-1][0].T
    for (kernel, _, scale, _), mask, (x, normal, deviation, active) in list(zip(critic[:-1], masks, kept, strict=True))[
        ::-1
    ]:
        by_output = by_output * active
        by_normal = by_output * scale
        # The mean and the deviation depend on the row too.
        by_dropped = by_normal - by_normal.mean(1, keepdims=True) - normal * (by_normal * normal).mean(1, keepdims=True)
        by_linear = by_dropped / deviation * mask
        gradients.append((x.T @ by_linear, by_linear.sum(0), (by_output * normal).sum(0), by_output.sum(0)))
        by_output = by_linear @ kernel.T
    return gradients[::-1], by_output


def critic_loss(critics, masks, pair, y):
    """The sum over critics of the mean squared error, and each critic's gradients."""
    loss, gradients = 0.0, []
    for critic, of_critic in zip(critics, masks, strict=True):
        value, saved = forward(critic, pair, of_critic)
        loss += np.mean((value - y) ** 2)
        gradients.append(backward(critic, of_critic, saved, 2 * (value - y) / len(y))[0])
    return loss, gradients


def mean_value(masks):
    """A function (critics, pair) -> the critics' mean value, and its gradient by the pair."""

    def value_of(critics, pair):
        found = [forward(critic, pair, of_critic) for critic, of_critic in zip(critics, masks, strict=True)]
        share = np.full(len(pair), 1 / len(critics))
        slopes = [backward(c, m, saved, share)[1] for c, m, (_, saved) in zip(critics, masks, found, strict=True)]
        return np.mean([value for value, _ in found], axis=0), np.sum(slopes, axis=0)

    return value_of
