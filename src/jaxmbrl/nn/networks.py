"""Flax modules. An ensemble is `jax.vmap` over `init` and `apply` of a module; it has no module of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from annotated_types import Ge
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.nn.products import product

Initializer = Callable[..., jax.Array]
Precision = Literal["default", "bfloat16"]
"""Precision of the products between hidden layers: JAX's default, or factors rounded to bfloat16 and summed in float32."""


def pets_kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
    """PETS's initialisation: normal, standard deviation 1 / (2 sqrt(fan in)), truncated at two standard deviations."""
    return jax.nn.initializers.truncated_normal(1 / (2 * math.sqrt(shape[-2])))(key, shape, dtype)


def orthogonal(scale: float = 1.0) -> Initializer:
    """The initializer that `jax.nn.initializers.orthogonal` is, for matrices: `scale` times a matrix that is uniformly
    distributed over those with orthonormal rows or columns, whichever are fewer.

    It is computed by Gram-Schmidt, each column twice. JAX's is computed by LAPACK, and on a CPU a program with several such
    decompositions, each for several networks, may never return: the threads of the pool wait for one another."""

    def init(key: jax.Array, shape: tuple[int, int], dtype: Any = float) -> Float[Array, "rows columns"]:
        wide = shape[0] < shape[1]
        normal = jax.random.normal(key, shape[::-1] if wide else shape, dtype)

        def add(column: Int[Array, ""], found: Array) -> Array:
            rest = normal[:, column]
            for _ in range(2):
                rest = rest - jnp.sum(found * jnp.sum(found * rest[:, None], axis=0), axis=1)
            return found.at[:, column].set(rest / jnp.linalg.norm(rest))

        found = jax.lax.fori_loop(0, normal.shape[1], add, jnp.zeros_like(normal))
        return scale * (found.T if wide else found)

    return init


def with_deviation(params: Any, deviation: float) -> Any:
    """`params` of flax modules whose kernels were drawn by `lecun_normal`, the default, as if they had been drawn with this
    standard deviation whatever the number of inputs. Kernels that are 0 remain 0."""

    def scaled(path: Any, x: jax.Array) -> jax.Array:
        is_kernel = jax.tree_util.keystr(path[-1:], simple=True) == "kernel"
        return deviation * math.sqrt(x.shape[-2]) * x if is_kernel else x

    return jax.tree_util.tree_map_with_path(scaled, params)


RARE = 0.05
"""Below this rate, `bernoulli` samples the positions of the true entries, not one number for each entry."""


def bernoulli(key: jax.Array, rate: float, shape: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """Independent boolean samples, true with probability `rate`, 0 <= rate < 1.

    At low rates the geometric gaps between true entries are sampled, so the cost grows with the number of true entries, not
    with the size. Some more gaps are sampled than needed; fewer than one mask in 10^12 would need more than that.
    """
    if not 0 < rate < RARE:
        return jax.random.bernoulli(key, rate, shape)
    size = math.prod(shape)
    mean = size * rate
    number = min(size, math.ceil(mean + 8 * math.sqrt(mean) + 16))
    uniform = jax.random.uniform(key, (number,))
    gaps = jnp.minimum(jnp.floor(jnp.log1p(-uniform) / math.log1p(-rate)), size).astype(jnp.int32)
    positions = jnp.cumsum(gaps + 1) - 1
    return jnp.zeros(size, bool).at[positions].set(True, mode="drop").reshape(shape)


@jax.custom_vjp
def bfloat16_product(x: Float[Array, "*n i"], kernel: Float[Array, "i o"]) -> Float[Array, "*n o"]:
    """`x @ kernel` with both factors rounded to bfloat16 (8 bits of significand, so within 0.4%), summed in float32.

    In the two products of the backward pass the incoming gradient is rounded likewise. On devices with matrix units for
    bfloat16 (AMX, tensor cores, TPUs) this is several times as fast as float32; on others it is slower.
    """
    return _with_factors(x, kernel)[0]


def _rounded_product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _with_factors(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    factors = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _rounded_product("...i,io->...o", *factors).astype(x.dtype), factors


def _of_both_factors(factors: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = factors
    rounded = gradient.astype(jnp.bfloat16)
    of_x = _rounded_product("...o,io->...i", rounded, kernel)
    of_kernel = _rounded_product(
        "in,no->io", _transposed(x.reshape(-1, x.shape[-1])), rounded.reshape(-1, rounded.shape[-1])
    )
    return of_x.astype(gradient.dtype), of_kernel.astype(gradient.dtype)


def _transposed(x: jax.Array) -> jax.Array:
    """`x.T`, on a CPU as a copy in memory: XLA would fold the transposition into the product, which is slow there."""
    if jax.default_backend() != "cpu":
        return x.T
    return jax.lax.optimization_barrier(x.T.reshape(-1)).reshape(x.T.shape)


bfloat16_product.defvjp(_with_factors, _of_both_factors)


def _dot_general(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`product` with the signature that `flax.linen.Dense` needs: x's last axis with the kernel's first."""
    return lambda x, kernel, dimensions, **asked: product(x, kernel)


RMS_EPSILON = 1e-4
"""Added to the mean square in RMS norms."""


class MLP(nn.Module):
    """A multilayer perceptron: `hidden` layers with `activation`, then a linear layer of `out` units.

    A hidden layer consists of a linear layer, dropout with the rate `dropout`, layer norm (Ba et al., arXiv 1607.06450) if
    `layer_norm` is set, and the activation, in the order of DroQ (arXiv 2110.02034). If `norms` is given, the activations
    of each hidden layer are also normalised, without learned scale and shift; `norms` are the epsilons. With `first_norm`
    the first hidden layer has layer norm and tanh, as in Acme's networks. With `rms_norm` each hidden layer has the norm of
    its root mean square with a learned scale (Zhang and Sennrich, arXiv 1910.07467) before the activation, as in DreamerV3.
    Weights have JAX's default float dtype for any `precision` of the products between hidden layers. If `out` is None,
    there is no last linear layer.
    """

    hidden: tuple[int, ...]
    out: int | None
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: Initializer = nn.initializers.lecun_normal()
    layer_norm: bool = False
    dropout: float = 0.0
    norms: tuple[float, ...] = ()
    last_init: Initializer | None = None
    precision: Precision = "default"
    first_norm: bool = False
    rms_norm: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "*n i"], key: jax.Array | None = None, masks: tuple[Float[Array, "*n _"], ...] = ()
    ) -> Float[Array, "*n o"]:
        """Apply the network to the last axis. With a key, units are dropped, independently for each row. The outputs of the
        hidden layers are multiplied with `masks`, if there are some."""
        dense = partial(
            nn.Dense, kernel_init=self.kernel_init, param_dtype=jnp.result_type(float), dot_general=_dot_general(product)
        )
        for i, units in enumerate(self.hidden):
            # The first layer is not rounded: its inputs are measurements, and it is small.
            rounded = self.precision == "bfloat16" and i > 0
            x = dense(units, dot_general=_dot_general(bfloat16_product if rounded else product))(x)
            if self.dropout and key is not None:
                dropped = bernoulli(jax.random.fold_in(key, i), self.dropout, x.shape)
                x = jnp.where(dropped, 0, x / (1 - self.dropout))
            bounded = self.first_norm and i == 0
            if self.layer_norm or bounded:
                x = nn.LayerNorm(param_dtype=jnp.result_type(float))(x)
            if self.rms_norm:
                x = nn.RMSNorm(epsilon=RMS_EPSILON, param_dtype=jnp.result_type(float))(x)
            x = nn.tanh(x) if bounded else self.activation(x)
            if self.norms:
                x = nn.LayerNorm(epsilon=self.norms[i], use_bias=False, use_scale=False)(x)
            if masks:
                x = x * masks[i]
        return x if self.out is None else dense(self.out, kernel_init=self.last_init or self.kernel_init)(x)


ConvLayer = tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)], Annotated[int, Ge(1)]]
"""(units, size of the square kernel, stride) of a convolution."""
NATURE: tuple[ConvLayer, ...] = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""The convolutions of DQN (Mnih et al., Nature 518, 2015), for images of 84 x 84 pixels."""


class ConvTorso(nn.Module):
    """Convolutions without padding, each followed by a ReLU: an image [H, W, C] -> features in one row.

    Pixels (integers in 0 .. 255) are divided by 255, and `middle` is subtracted; images of real numbers are used as they
    are. The image must be at least as large as each kernel when it gets there; `smallest_side` is the least side for given
    layers. Without layers the features are the pixels.
    """

    layers: tuple[ConvLayer, ...] = NATURE
    kernel_init: Initializer = nn.initializers.lecun_normal()
    middle: float = 0.0

    @nn.compact
    def __call__(self, image: Shaped[Array, "*n H W C"]) -> Float[Array, "*n F"]:
        """The features of images."""
        dtype = jnp.result_type(float)
        x = image.astype(dtype)
        if not jnp.issubdtype(image.dtype, jnp.floating):
            x = x / 255 - self.middle if self.middle else x / 255
        for i, (units, size, stride) in enumerate(self.layers):
            x = nn.relu(Convolution(units, size, stride, self.kernel_init, dtype, name=f"Conv_{i}")(x))
        return x.reshape(*x.shape[:-3], -1)


class Convolution(nn.Module):
    """A convolution without padding, with the parameters of `nn.Conv`, as one product of matrices.

    The image is divided into blocks as large as the stride. A kernel covers n x n of them, so n x n shifted images of
    blocks, joined, hold what the kernel sees at each place. On a CPU the gradient of DQN's convolutions in a loop takes a
    fiftieth of the time that XLA's own take, for one seed and for four under `vmap`.
    """

    units: int
    size: int
    """Of the square kernel."""
    stride: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "*n H W C"]) -> Float[Array, "*n h w units"]:
        """The convolved images."""
        channels, step = image.shape[-1], self.stride
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, channels, self.units), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.units,), self.param_dtype)
        places = [max(side - self.size, -step) // step + 1 for side in image.shape[-3:-1]]
        n = -(-self.size // step)
        blocks = _blocks(_sized(image, [(count + n - 1) * step for count in places]), step)
        parts = [blocks[..., i : i + places[0], j : j + places[1], :] for i in range(n) for j in range(n)]
        # A kernel that does not end with a block is 0 in the rest of it.
        square = _sized(jnp.moveaxis(kernel, -1, 0), [n * step, n * step])
        weights = _blocks(square, step).reshape(self.units, -1).T
        return product(jnp.concatenate(parts, axis=-1), weights) + bias


def _sized(image: Float[Array, "*n H W C"], sides: list[int]) -> Float[Array, "*n h w C"]:
    """The image with these numbers of rows and columns, cut off or filled up with zeros at the end."""
    more = [(0, max(side - given, 0)) for given, side in zip(image.shape[-3:-1], sides, strict=True)]
    return jnp.pad(image[..., : sides[0], : sides[1], :], [(0, 0)] * (image.ndim - 3) + [*more, (0, 0)])


def _blocks(image: Float[Array, "*n H W C"], side: int) -> Float[Array, "*n h w D"]:
    """Each block of `side` x `side` pixels in one row, D = side^2 C."""
    *rows, height, width, channels = image.shape
    down, across = height // side, width // side
    apart = jnp.swapaxes(image.reshape(*rows, down, side, across, side, channels), -4, -3)
    return apart.reshape(*rows, down, across, side * side * channels)


def smallest_side(layers: tuple[ConvLayer, ...]) -> int:
    """The least height and width of an image that `ConvTorso` accepts.

    >>> from jaxmbrl.nn import networks
    >>> networks.smallest_side(networks.NATURE)
    36
    """
    side = 1
    for _, size, stride in reversed(layers):
        side = (side - 1) * stride + size
    return side
