"""The probabilistic ensemble written out once more, in float64 NumPy with loops and hand-made gradients.

Parameters: (members, low, high, ends), where members has a list of (kernel, bias) for each member, low and high are the
shared bounds, and ends is like members for the networks of termination, or empty where termination is known.
"""

import numpy as np


def softplus(x):
    return np.where(x > 0, x, 0.0) + np.log(1 + np.exp(-np.abs(x)))


def sigmoid(x):
    return np.exp(-softplus(-x))


def clamp(raw, low, high):
    below = high - softplus(high - raw)
    return low + softplus(below - low)


def network(layers, x):
    """The output of one multilayer perceptron for rows x, and each layer's (input, pre-activation) for the way back."""
    kept = []
    for kernel, bias in layers[:-1]:
        z = x @ kernel + bias
        kept.append((x, z))
        x = z * sigmoid(z)
    kernel, bias = layers[-1]
    kept.append((x, None))
    return x @ kernel + bias, kept


def network_gradient(layers, kept, delta):
    """The gradient of each layer's (kernel, bias), `delta` being the loss's gradient by the output."""
    backwards = []
    for i in reversed(range(len(layers))):
        backwards.append((kept[i][0].T @ delta, delta.sum(axis=0)))
        if i > 0:
            z = kept[i - 1][1]
            delta = (delta @ layers[i][0].T) * (sigmoid(z) * (1 + z * (1 - sigmoid(z))))
    return backwards[::-1]


def forward(layers, low, high, x):
    """(mean, log-variance) of one member for rows x."""
    out, _ = network(layers, x)
    return out[:, : len(low)], clamp(out[:, len(low) :], low, high)


def termination_logit(layers, following):
    """One member's logit of termination for rows of next observations, still that of weighted rows."""
    return network(layers, following)[0][:, 0]


def termination_weight(ended):
    """Rows that went on for each that terminated, at least 1."""
    ends = sum(1 for row in ended if row)
    return max((len(ended) - ends) / ends, 1.0)


def loss_and_gradient(parameters, x, y, following, ended, weight=1.0, decay=(), bounds_weight=0.01, beta=0.0):
    """x [E, B, I], y [E, B, D], following [E, B, O], ended [E, B]; the last two are used where `ends` has networks.

    With `beta` the gradient is that of rows whose weights, which depend on the variance, are held.
    """
    members, low, high, ends = parameters
    size = len(low)
    loss = bounds_weight * (high.sum() - low.sum())
    low_gradient, high_gradient = np.full(size, -bounds_weight), np.full(size, bounds_weight)
    gradients, end_gradients = [], []
    for e, layers in enumerate(members):
        out, kept = network(layers, x[e])
        mean, raw = out[:, :size], out[:, size:]
        log_variance = clamp(raw, low, high)
        rows = len(x[e])
        difference = mean - y[e]
        share = np.exp(beta * log_variance) / (rows * size)
        loss += np.sum(share * (difference**2 * np.exp(-log_variance) + log_variance))
        by_mean = share * 2 * difference * np.exp(-log_variance)
        by_log_variance = share * (1 - difference**2 * np.exp(-log_variance))
        below = high - softplus(high - raw)
        through_low = sigmoid(below - low)
        through_high = sigmoid(high - raw)
        low_gradient += np.sum(by_log_variance * (1 - through_low), axis=0)
        high_gradient += np.sum(by_log_variance * through_low * (1 - through_high), axis=0)
        delta = np.concatenate([by_mean, by_log_variance * through_low * through_high], axis=1)
        gradient = network_gradient(layers, kept, delta)
        for i, wd in enumerate(decay):
            kernel = layers[i][0]
            loss += 0.5 * wd * np.sum(kernel**2)
            gradient[i] = (gradient[i][0] + wd * kernel, gradient[i][1])
        gradients.append(gradient)
    for e, layers in enumerate(ends):
        out, kept = network(layers, following[e])
        p = sigmoid(out[:, 0])
        total = 2 * len(ended[e])
        by_logit = np.zeros(len(p))
        for n, row in enumerate(ended[e]):
            loss -= (weight * np.log(p[n]) if row else np.log(1 - p[n])) / total
            by_logit[n] = (weight * (p[n] - 1) if row else p[n]) / total
        end_gradients.append(network_gradient(layers, kept, by_logit[:, None]))
    return loss, (gradients, low_gradient, high_gradient, end_gradients)


def deterministic_loss_and_gradient(members, x, y, decay=()):
    """The same of members without variances, whose loss is the squared error; the gradient is theirs alone."""
    loss, gradients = 0.0, []
    for e, layers in enumerate(members):
        out, kept = network(layers, x[e])
        loss += np.sum((out - y[e]) ** 2) / y[e].size
        gradient = network_gradient(layers, kept, 2 * (out - y[e]) / y[e].size)
        for i, wd in enumerate(decay):
            kernel = layers[i][0]
            loss += 0.5 * wd * np.sum(kernel**2)
            gradient[i] = (gradient[i][0] + wd * kernel, gradient[i][1])
        gradients.append(gradient)
    return loss, gradients


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


def flatten(parameters):
    members, low, high, ends = parameters
    networks = [array.copy() for layers in [*members, *ends] for pair in layers for array in pair]
    return [*networks, low.copy(), high.copy()]


def unflatten(arrays, like):
    members, _, _, ends = like
    arrays = iter(arrays)
    members, ends = ([[(next(arrays), next(arrays)) for _ in layers] for layers in part] for part in (members, ends))
    return members, next(arrays), next(arrays), ends


def moments(rows):
    """Mean and standard deviation of the columns."""
    mean = np.array([sum(column) / len(rows) for column in rows.T])
    std = np.array([np.sqrt(sum((column - m) ** 2) / len(rows)) for column, m in zip(rows.T, mean, strict=True)])
    return mean, np.where(std < 1e-12, 0.0, std)


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
