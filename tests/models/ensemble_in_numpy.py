"""The probabilistic ensemble written out once more, in float64 NumPy with loops and hand-made gradients.

Parameters: for each member a list of (kernel, bias), and the shared bounds low and high.
"""

import numpy as np


def softplus(x):
    return np.where(x > 0, x, 0.0) + np.log(1 + np.exp(-np.abs(x)))


def sigmoid(x):
    return np.exp(-softplus(-x))


def clamp(raw, low, high):
    below = high - softplus(high - raw)
    return low + softplus(below - low)


def forward(layers, low, high, x):
    """(mean, log-variance, rest of the output, what the backward pass needs) of one member for rows x."""
    kept, size = [], len(low)
    for kernel, bias in layers[:-1]:
        z = x @ kernel + bias
        kept.append((x, z))
        x = z * sigmoid(z)
    kernel, bias = layers[-1]
    out = x @ kernel + bias
    kept.append((x, None))
    return out[:, :size], clamp(out[:, size : 2 * size], low, high), out[:, 2 * size :], (kept, out)


def loss_and_gradient(members, low, high, x, y, ended, decay=(), bounds_weight=0.01):
    """x [E, B, I], y [E, B, D], ended [E, B]; `ended` is used where the networks have a logit."""
    size = len(low)
    loss = bounds_weight * (high.sum() - low.sum())
    low_gradient, high_gradient = np.full(size, -bounds_weight), np.full(size, bounds_weight)
    gradients = []
    for e, layers in enumerate(members):
        mean, log_variance, logit, (kept, out) = forward(layers, low, high, x[e])
        rows = len(x[e])
        difference = mean - y[e]
        loss += np.sum(difference**2 * np.exp(-log_variance) + log_variance) / (rows * size)
        by_mean = 2 * difference * np.exp(-log_variance) / (rows * size)
        by_log_variance = (1 - difference**2 * np.exp(-log_variance)) / (rows * size)
        raw = out[:, size : 2 * size]
        below = high - softplus(high - raw)
        through_low = sigmoid(below - low)
        through_high = sigmoid(high - raw)
        low_gradient += np.sum(by_log_variance * (1 - through_low), axis=0)
        high_gradient += np.sum(by_log_variance * through_low * (1 - through_high), axis=0)
        parts = [by_mean, by_log_variance * through_low * through_high]
        if logit.shape[1]:
            p, label = sigmoid(logit[:, 0]), ended[e].astype(float)
            loss += -np.mean(label * np.log(p) + (1 - label) * np.log(1 - p))
            parts.append(((p - label) / rows)[:, None])
        delta = np.concatenate(parts, axis=1)
        backwards = []
        for i in reversed(range(len(layers))):
            kernel = layers[i][0]
            wd = decay[i] if decay else 0.0
            loss += 0.5 * wd * np.sum(kernel**2)
            backwards.append((kept[i][0].T @ delta + wd * kernel, delta.sum(axis=0)))
            if i > 0:
                z = kept[i - 1][1]
                delta = (delta @ kernel.T) * (sigmoid(z) * (1 + z * (1 - sigmoid(z))))
        gradients.append(backwards[::-1])
    return loss, (gradients, low_gradient, high_gradient)


class Adam:
    """Kingma and Ba (arXiv 1412.6980), algorithm 1, on a list of arrays."""

    def __init__(self, arrays, rate):
        self.rate, self.t = rate, 0
        self.m = [np.zeros_like(a) for a in arrays]
        self.v = [np.zeros_like(a) for a in arrays]

    def step(self, arrays, gradients):
        self.t += 1
        moved = []
        for i, (a, g) in enumerate(zip(arrays, gradients, strict=True)):
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g**2
            m, v = self.m[i] / (1 - 0.9**self.t), self.v[i] / (1 - 0.999**self.t)
            moved.append(a - self.rate * m / (np.sqrt(v) + 1e-8))
        return moved


def flatten(members, low, high):
    return [array.copy() for layers in members for pair in layers for array in pair] + [low.copy(), high.copy()]


def unflatten(arrays, like):
    arrays = iter(arrays)
    members = [[(next(arrays), next(arrays)) for _ in layers] for layers in like]
    return members, next(arrays), next(arrays)


def moments(rows):
    """Mean and standard deviation of the columns, a tiny one replaced by 1."""
    mean = np.array([sum(column) / len(rows) for column in rows.T])
    std = np.array([np.sqrt(sum((column - m) ** 2) / len(rows)) for column, m in zip(rows.T, mean, strict=True)])
    return mean, np.where(std < 1e-12, 1.0, std)


class EarlyStopping:
    """Best score and its epoch for each member, and the epochs in a row in which none got better by over 1 %."""

    def __init__(self, members, patience):
        self.best, self.at = [None] * members, [None] * members
        self.patience, self.barren, self.epochs = patience, 0, 0

    def stops_with(self, scores):
        better = False
        for e, score in enumerate(scores):
            if np.isfinite(score) and (self.best[e] is None or (self.best[e] - score) / self.best[e] > 0.01):
                self.best[e], self.at[e], better = score, self.epochs, True
        self.epochs += 1
        self.barren = 0 if better else self.barren + 1
        return self.barren > self.patience
