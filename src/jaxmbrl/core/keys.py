"""Random keys beside those of `jax.random.split`."""

from __future__ import annotations

import jax

from jaxmbrl.core.types import Key

FIRST = 1_000_000
"""Above the number of keys of any `split`."""


def beside(key: Key, number: int = 0) -> Key:
    """A key that differs from all keys that `split` makes of the same `key`, so a part can have one without a change of the
    others'. `jax.random.fold_in(key, i)` alone is no such key: it equals `jax.random.split(key, n)[i]` for each i < n.

    >>> import jax
    >>> from jaxmbrl.core.keys import beside
    >>> key = jax.random.key(3)
    >>> bool(jax.random.fold_in(key, 0) == jax.random.split(key, 4)[0])
    True
    >>> bool((beside(key) == jax.random.split(key, 4)).any())
    False
    """
    return jax.random.fold_in(key, FIRST + number)
