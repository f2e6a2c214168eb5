"""A network of the actors and critics written out once more, in float64 NumPy with a loop over layers."""

import numpy as np


def transcribed(network, x, norm):
    """One network's output for rows x: linear, swish, then with `norm` layer norm without scale and shift."""
    layers = [network["params"][name] for name in sorted(network["params"])]
    for layer in layers[:-1]:
        x = x @ layer["kernel"] + layer["bias"]
        x = x / (1 + np.exp(-x))
        if norm:
            x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]
