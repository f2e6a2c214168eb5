"""The probabilistic ensemble: E networks that each predict a diagonal Gaussian over the next observation and reward.

With y the normalised target [next observation - observation, reward] of size D, member e gives a mean m and a log-variance
l from (observation, action), and the fit minimises by Adam

    sum_e mean_{batch, dims} [(m - y)^2 exp(-l) + l] + 0.01 (sum_d high_d - sum_d low_d) + sum_layers decay/2 ||kernel||^2

where l is pressed softly between the learned bounds low and high, shared by the members. Each member sees its own bootstrap
of the data. Source: Chua et al., PETS, arXiv 1805.12114; early stopping, elites and the holdout: Janner et al., MBPO, arXiv
1906.08253, and its code. The differences: holdout errors are compared in the space of the fitted targets, where MBPO's code
compares un-normalised ones, so that no dimension rules by its unit; targets are normalised too by default; and the mean
over a minibatch is over the rows that it has, where an epoch's last one is smaller.

Under this likelihood a few rows that are hard to predict, as those of a rare contact, may get a large variance early and
then weigh too little to be learned. With `beta_nll` = b each row and dimension weighs exp(b l), through which no gradient
flows (beta-NLL, Seitzer et al., arXiv 2203.09168, who advise 0.5).

With `noise = "constant"` l is a number for each member and dimension that is learned, whatever the input, and not an output
of its network (as in DHMBPO): no region can be given up for noise. It needs no bounds but a least value.

A deterministic ensemble (PETS's DE) has no log-variances: it minimises sum_e mean_{batch, dims} (m - y)^2 and the last sum.

With `halt_above` imagined rows end where the model cannot tell what follows, so that plans keep away from there (after the
pessimistic MDP of Kidambi et al., MOReL, arXiv 2005.05951; the differences: the measure is the standard deviation of noise
and disagreement together, and the end costs nothing but what would follow). It suits a reward for staying alive: where
rewards are negative, an early end is a gain.

Where the task says so (`Task.features`), the networks see the observation's features for the observation, and some entries
are predicted themselves, as PETS feeds sine and cosine of an angle and predicts a velocity as such.

How imagined rows go through the members is written in `models.propagation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jaxmbrl.core.config import UserError, check
from jaxmbrl.core.types import Average, DynamicsModel, Features, Hyper, Key, Metrics, PyTree, Transition, World
from jaxmbrl.data.replay import Replay
from jaxmbrl.distributions import soft_clamp
from jaxmbrl.models import epochs as fitting
from jaxmbrl.models import propagation
from jaxmbrl.models.normalizer import Normalizer, denormalize, identity, measure, normalize
from jaxmbrl.models.propagation import Propagation
from jaxmbrl.nn import optimizer
from jaxmbrl.nn.networks import MLP, Precision, pets_kernel_init
from jaxmbrl.nn.optimizer import Trainable

FIRST_HIGH = 0.5
FIRST_LOW = -10.0
LEAST_LOG_VARIANCE = 2 * math.log(1e-3)
"""Of constant noise: a standard deviation of 0.001 in units of the fitted targets (4kubo/erl_lib)."""
HOLDOUT_CHUNK = 512
PLAIN = Features()
"""Of a task that says nothing: the observation itself."""


@dataclass(frozen=True)
class EnsembleConfig:
    """Settings of the ensemble. Members and batch size are PETS's by default, layers, holdout and patience MBPO's."""

    members: Annotated[int, Ge(1)] = 5
    """Networks that are fitted."""
    elites: Annotated[int, Ge(1)] = 5
    """Members with the least holdout error, which alone imagine."""
    probabilistic: bool = True
    """Whether members predict a variance too; without, they fit the squared error and imagine no noise of their own."""
    noise: Literal["input", "constant"] = "input"
    """What a member's variance depends on: the input, or nothing."""
    reward_noise: bool = True
    """Whether an imagined reward that is learned is drawn, or the mean."""
    hidden: tuple[Annotated[int, Ge(1)], ...] = (200, 200, 200, 200)
    """Units of each hidden layer (swish)."""
    precision: Precision = "default"
    """Of the products between hidden layers: JAX's default, or bfloat16, faster where a device has matrix units for it."""
    norms: tuple[Annotated[float, Gt(0)], ...] = ()
    """Epsilon of a layer norm without learned scale and shift after each hidden layer's swish; empty for none."""
    weight_decay: tuple[Annotated[float, Ge(0)], ...] = ()
    """Weight of half the squared kernel of each layer, hidden and last, in the loss; empty for none."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Step size of Adam."""
    annealing: bool = False
    """Whether the step size falls along half a cosine, from `learning_rate` at a fit's first epoch to 0 after `max_epochs`
    (Loshchilov and Hutter, SGDR, arXiv 1608.03983, equation 5, by epochs); each fit starts anew."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Rows a gradient step for each member."""
    max_epochs: Annotated[int, Ge(1)] = 200
    """Epochs of one fit at most, and exactly where there is no holdout."""
    patience: Annotated[int, Ge(0)] = 5
    """Epochs in a row without improvement that a fit bears; one more ends it."""
    holdout_fraction: Annotated[float, Ge(0), Le(0.9)] = 0.2
    """Share of the data held out in each fit; 0 for none: no early stopping, every member an elite."""
    holdout_cap: Annotated[int, Ge(1)] = 5000
    """Rows held out at most."""
    termination_hidden: tuple[Annotated[int, Ge(1)], ...] = (64, 64)
    """Units of each hidden layer (swish) of the networks that learn the termination, where it is not known."""
    normalize_targets: bool = True
    """Whether targets are shifted and scaled like inputs."""
    absolute: tuple[Annotated[int, Ge(0)], ...] = ()
    """Observation dimensions that are predicted themselves and not as changes, besides those that the task names."""
    features: bool = True
    """Whether the networks see the observation as the task says (`Task.features`), where it says so: angles by sine and
    cosine, say; without, as it is, and no entry is absolute or constant by the task's word."""
    propagation: Propagation = "ts1"
    """What an imagined row is drawn from: a member that changes at every step (ts1) or never (tsinf), all members' mean
    (expectation) or their Gaussian (distribution), refitted to the block's next observations (moment_matching)."""
    beta_nll: Annotated[float, Ge(0), Le(1)] = 0.0
    """Exponent of the variance that weighs each row's likelihood: 0 none, 1 the squared error's gradient for the mean."""
    halt_above: Annotated[float, Gt(0)] | None = None
    """An imagined row ends where the standard deviation predicted for any dimension, in units of the normalised targets,
    is above this; None for never."""
    bounds_weight: Annotated[float, Ge(0)] = 0.01
    """Weight of the sum of the log-variance bounds' distances in the loss."""

    def problem(self) -> tuple[str, str] | None:
        """A rule between fields that is broken."""
        layers = len(self.hidden) + 1
        if self.elites > self.members:
            return "elites", f"must be at most members ({self.members}), got {self.elites}"
        if self.weight_decay and len(self.weight_decay) != layers:
            return "weight_decay", f"must be empty or have one entry a layer ({layers}), got {len(self.weight_decay)}"
        if self.norms and len(self.norms) != layers - 1:
            return "norms", f"must be empty or have one entry a hidden layer ({layers - 1}), got {len(self.norms)}"
        if self.elites < self.members and self.holdout_fraction == 0:
            return "holdout_fraction", f"must be above 0 to rank {self.elites} elites of {self.members} members"
        if self.beta_nll > 0 and not self.probabilistic:
            return "beta_nll", f"must be 0 for deterministic members, which have no likelihood, got {self.beta_nll}"
        if self.halt_above is not None and not self.probabilistic and self.propagation in ("ts1", "tsinf"):
            return "halt_above", f"must be None for deterministic members under {self.propagation}, which are never unsure"
        return None


class Parameters(NamedTuple):
    """What the fit learns."""

    network: PyTree
    """Leaves [E, ...]; "log_variance" [E, D] among them where the noise is constant."""
    low: PyTree
    """Lower bound [D] of the log-variance, shared by the members; `()` where the input does not change it."""
    high: PyTree
    """Upper bound, likewise."""
    termination: PyTree
    """Leaves [E, ...]; `()` where the termination is known."""


class EnsembleState(NamedTuple):
    """A fitted ensemble, ready to be fitted further."""

    members: Trainable
    """`Parameters` with Adam's moments and the learning rate."""
    inputs: Normalizer
    """Of [the observation's features, action], over the last fit's training rows."""
    targets: Normalizer
    """Of [observation change, reward], likewise."""
    end_weight: Float[Array, ""]
    """Rows that went on for each that terminated, in the last fit's training rows; at least 1."""
    elites: Int[Array, "elites"]
    """Numbers of the elite members, the best first."""
    fits: Int[Array, ""]
    """Fits so far."""
    steps: Int[Array, ""]
    """Gradient steps so far."""


class Output(NamedTuple):
    """What the members say about their rows, in the space of the fitted targets."""

    mean: Float[Array, "E B D"]
    log_variance: Float[Array, "E B D"]
    """Minus infinity where the members are deterministic."""


class Batch(NamedTuple):
    """Rows for each member, normalised."""

    inputs: Float[Array, "E B I"]
    targets: Float[Array, "E B D"]
    next_features: Float[Array, "E B F"]
    """The next observation's features, normalised as the inputs' are."""
    terminated: Bool[Array, "E B"]


@dataclass(frozen=True)
class Layout:
    """Which numbers go in and out of the networks."""

    config: EnsembleConfig
    observation_size: int
    action_size: int
    learns_reward: bool
    learns_termination: bool
    features: Features = PLAIN

    @property
    def feature_size(self) -> int:
        """F: the observation's features."""
        return jax.eval_shape(lambda: self.features.encode(jnp.zeros(self.observation_size))).shape[0]

    @property
    def input_size(self) -> int:
        """The observation's features and the action."""
        return self.feature_size + self.action_size

    @property
    def absolute(self) -> tuple[int, ...]:
        """Observation dimensions that are predicted themselves."""
        return self.config.absolute + self.features.absolute

    @property
    def target_size(self) -> int:
        """D: the observation, then the reward where it is learned."""
        return self.observation_size + self.learns_reward

    @property
    def network(self) -> nn.Module:
        """One member: D means and, where a variance depends on the input, D log-variances."""
        size = (1 + self.bounded) * self.target_size
        given = self.config
        return MLP(given.hidden, size, nn.swish, pets_kernel_init, norms=given.norms, precision=given.precision)

    @property
    def bounded(self) -> bool:
        """Whether the networks tell log-variances, which bounds then press."""
        return self.config.probabilistic and self.config.noise == "input"

    @property
    def constant_noise(self) -> bool:
        """Whether each member has log-variances of its own that no input changes."""
        return self.config.probabilistic and self.config.noise == "constant"

    @property
    def termination(self) -> nn.Module:
        """One member's logit of termination."""
        return MLP(self.config.termination_hidden, 1, nn.swish, pets_kernel_init)


def forward(layout: Layout, parameters: Parameters, inputs: Float[Array, "E B I"]) -> Output:
    """Every member's prediction for its own rows of normalised inputs."""
    raw = jax.vmap(layout.network.apply)({"params": parameters.network["params"]}, inputs)
    if not layout.config.probabilistic:
        return Output(raw, jnp.full_like(raw, -jnp.inf))
    size = layout.target_size
    mean = raw[..., :size]
    if layout.constant_noise:
        log_variance = jnp.maximum(parameters.network["log_variance"], LEAST_LOG_VARIANCE)
        return Output(mean, jnp.broadcast_to(log_variance[:, None], mean.shape))
    return Output(mean, soft_clamp(raw[..., size:], parameters.low, parameters.high))


def termination_logit(layout: Layout, parameters: Parameters, next_features: Float[Array, "E B F"]) -> Float[Array, "E B"]:
    """Every member's logit of termination for its own rows of normalised features of next observations."""
    return jax.vmap(layout.termination.apply)(parameters.termination, next_features)[..., 0]


def loss(
    layout: Layout,
    parameters: Parameters,
    batch: Batch,
    valid: Bool[Array, "B"],
    end_weight: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """The loss of the module's first lines, over the rows that are `valid`.

    Where termination is learned, each member's mean binary cross-entropy is added, in which a terminated row weighs
    `end_weight` times as much as another: it is rare, and would be learned last. The logit is then that of equally
    frequent classes; log `end_weight` less, it is that of the data (King and Zeng, Logistic regression in rare events data,
    2001). It has parameters of its own: on a shared trunk the likelihood of precise dynamics drowns it.
    """
    output = forward(layout, parameters, batch.inputs)
    error = (output.mean - batch.targets) ** 2
    if layout.config.probabilistic:
        error = error * jnp.exp(-output.log_variance) + output.log_variance
        if layout.config.beta_nll > 0:
            error *= jax.lax.stop_gradient(jnp.exp(layout.config.beta_nll * output.log_variance))
    data = jnp.sum(jnp.where(valid, jnp.mean(error, axis=-1), 0.0)) / jnp.sum(valid)
    if layout.learns_termination:
        logit = termination_logit(layout, parameters, batch.next_features)
        entropy = jax.nn.softplus(logit) - jnp.where(batch.terminated, logit, 0.0)
        weight = jnp.where(batch.terminated, end_weight, 1.0) * valid
        # Over twice the rows, the mean weight of the training data, and not over the weights of this minibatch: a rare row
        # would then count no more than the others together.
        data += jnp.sum(weight * entropy) / (2 * jnp.sum(valid))
    return data + regularizer(layout, parameters)


def regularizer(layout: Layout, parameters: Parameters) -> Float[Array, ""]:
    """The part of the loss that no data enters: bounds apart, and kernels (not biases, not bounds) small."""
    total = jnp.zeros(())
    if layout.bounded:
        total += layout.config.bounds_weight * (jnp.sum(parameters.high) - jnp.sum(parameters.low))
    for i, decay in enumerate(layout.config.weight_decay):
        total += 0.5 * decay * jnp.sum(parameters.network["params"][f"Dense_{i}"]["kernel"] ** 2)
    return total


def make(
    config: EnsembleConfig,
    observation_size: int,
    action_size: int,
    reward: Callable[..., Any] | None = None,
    terminated: Callable[..., Any] | None = None,
    features: Features | None = None,
) -> DynamicsModel:
    """A probabilistic ensemble as a `DynamicsModel` whose state is an `EnsembleState`.

    `reward(observation, action, next_observation)` and `terminated(next_observation)` are the task's known functions, on
    rows; without them the ensemble learns a reward (last of the D targets, so D = O + 1) and a probability of termination
    given the next observation, by a small network of its own for each member, which does not enter the holdout error.
    `features` are the task's, and used unless the config says not: all networks then see the observation encoded, its
    absolute entries are predicted themselves, and its constant ones stay as they are, with a variance of 0.

    - init(key, hyper): `hyper["learning_rate"]` may be traced; without it the config's holds.
    - fit(state, rows, count, key): rows [C, ...], of which the first `count` are data. Weights, bounds and Adam go on from
      where they stood; each member ends with its best weights, while bounds and Adam are the last epoch's. Metrics are
      means over the elites on the holdout, in the space of the fitted targets (the likelihood in nats a dimension), and
      of all members there the variance that they expect as noise (`model/aleatoric`) and that between them
      (`model/epistemic`); they are unknown in a fit too small to hold out a row, which runs all its epochs and keeps the
      elites as they were.
    - predict(state, observation, action): mean and variance [E, N, D] of [next observation, reward] in the task's units;
      `models.uncertainty` parts them into noise and disagreement. The variance of deterministic members is 0.
    - world(state): the item is a block of N rows, which the elites move as `config.propagation` says. Row n belongs to
      elite n mod E under `tsinf`; under `ts1` all rows move on together by a random number of elites at every step, so that
      each step has the same share of rows for each elite. The mean over particles of one block is right, and a variance
      over particles is right on average over keys, but wider from key to key than if rows changed elites independently.
      `expectation`, `distribution` and `moment_matching` run every elite on every row: E times the cost. Nothing is ever
      truncated; `reset` raises NotImplementedError.
      - Moment matching takes the whole block for one belief: its N rows must be the particles of one start and one action
        sequence, never several candidates or a batch of states. A learned reward stays as it was drawn with its row, a
        known one is that of the row's observation and its new next observation. Rows are no trajectories then: one that
        has ended is refitted with the others.
      - A learned termination is told as a probability, and not drawn: that of the row's elite under `ts1` and `tsinf`, else
        the mean of all elites'.

    Raises UserError where the config is inconsistent, `absolute` names a dimension that the observation lacks or that is
    constant, or the features name such a dimension or are no vector.
    """
    config = check(config)
    features = (features if config.features else None) or PLAIN
    for name, of in (("absolute", config.absolute), *features._asdict().items()):
        if name != "encode":
            _check_dimensions(name, of, observation_size)
    layout = Layout(config, observation_size, action_size, reward is None, terminated is None, features)
    both = sorted(set(layout.absolute) & set(features.constant))
    if both:
        raise UserError(f"absolute must name no dimension that the task's features call constant, got {both[0]}")
    shape = jax.eval_shape(lambda: features.encode(jnp.zeros((3, observation_size)))).shape
    if len(shape) != 2 or shape[0] != 3:
        raise UserError(f"features: encode must make [N, F] of observations [N, O], got {shape} of (3, {observation_size})")
    return DynamicsModel(
        init=partial(_init, layout),
        fit=partial(_fit, layout),
        predict=partial(_predict, layout),
        world=partial(_world, layout, reward, terminated),
    )


def _check_dimensions(name: str, dimensions: tuple[int, ...], size: int) -> None:
    beyond = [i for i in dimensions if not 0 <= i < size]
    if beyond:
        raise UserError(f"{name} must name observation dimensions below {size}, got {beyond[0]}")


def _init(layout: Layout, key: Key, hyper: Hyper) -> EnsembleState:
    network_key, termination_key = jax.random.split(key)

    def members(key: Key, network: nn.Module, inputs: int) -> PyTree:
        keys = jax.random.split(key, layout.config.members)
        return jax.vmap(lambda k: network.init(k, jnp.zeros(inputs)))(keys)

    network = members(network_key, layout.network, layout.input_size)
    if layout.constant_noise:
        network |= {"log_variance": jnp.zeros((layout.config.members, layout.target_size))}
    parameters = Parameters(
        network=network,
        low=jnp.full(layout.target_size, FIRST_LOW, float) if layout.bounded else (),
        high=jnp.full(layout.target_size, FIRST_HIGH, float) if layout.bounded else (),
        termination=members(termination_key, layout.termination, layout.feature_size) if layout.learns_termination else (),
    )
    return EnsembleState(
        members=optimizer.init(parameters, hyper.get("learning_rate", layout.config.learning_rate)),
        inputs=identity(layout.input_size),
        targets=identity(layout.target_size),
        end_weight=jnp.ones(()),
        elites=jnp.arange(layout.config.elites, dtype=jnp.int32),
        fits=jnp.zeros((), jnp.int32),
        steps=jnp.zeros((), jnp.int32),
    )


def _delta_mask(layout: Layout) -> Float[Array, "O"]:
    """1 where a dimension is predicted as a change of the observation, 0 where it is predicted itself."""
    return jnp.ones(layout.observation_size).at[jnp.array(layout.absolute, int)].set(0.0)


def _zero_constant_dims(layout: Layout, of: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """`of` with 0 for the observation's constant dimensions."""
    if not layout.features.constant:
        return of
    return of.at[..., jnp.array(layout.features.constant, int)].set(0.0)


def _next_features(layout: Layout, inputs: Normalizer, observation: Float[Array, "*n O"]) -> Float[Array, "*n F"]:
    """The features of next observations, normalised by the part of the inputs' normaliser that is the features'."""
    of_features = jax.tree.map(lambda leaf: leaf[: layout.feature_size], inputs)
    return normalize(of_features, layout.features.encode(observation))


def _inputs(layout: Layout, observation: Float[Array, "*n O"], action: Float[Array, "*n A"]) -> Float[Array, "*n I"]:
    return jnp.concatenate([layout.features.encode(observation), action], axis=-1)


def _targets(layout: Layout, rows: Transition) -> Float[Array, "*n D"]:
    change = rows.next_observation - _delta_mask(layout) * rows.observation
    return jnp.concatenate([change, rows.reward[..., None]], axis=-1) if layout.learns_reward else change


@jax.named_scope("fit")
def _fit(layout: Layout, state: EnsembleState, buffer: Replay, key: Key) -> tuple[EnsembleState, Metrics]:
    config = layout.config
    rows, count = buffer.data, buffer.size
    capacity = rows.reward.shape[0]
    split_key, bootstrap_key, shuffle_key = jax.random.split(key, 3)
    split = fitting.split_rows(split_key, capacity, count, config.holdout_fraction, config.holdout_cap)
    own_rows = fitting.bootstrap(bootstrap_key, split, config.members)
    batches = (split.train + config.batch_size - 1) // config.batch_size
    trained = fitting.training_mask(split)
    inputs, targets = _measure(layout, rows, trained)
    ends = jnp.sum(trained & rows.terminated)
    end_weight = jnp.where(ends > 0, jnp.maximum((split.train - ends) / jnp.maximum(ends, 1), 1.0), 1.0)

    def gather(index: Int[Array, "*n"]) -> Batch:
        taken = jax.tree.map(lambda leaf: leaf[index], rows._replace(extras=()))
        return Batch(
            inputs=normalize(inputs, _inputs(layout, taken.observation, taken.action)),
            targets=normalize(targets, _targets(layout, taken)),
            next_features=_next_features(layout, inputs, taken.next_observation),
            terminated=taken.terminated,
        )

    def epoch(members: Trainable, number: Int[Array, ""]) -> Trainable:
        epoch_key = jax.random.fold_in(shuffle_key, number)
        shuffles = fitting.draw_shuffles(epoch_key, config.members, capacity, split.train)
        scale = (1 + jnp.cos(jnp.pi * number / config.max_epochs)) / 2 if config.annealing else 1.0

        def step(i: Int[Array, ""], members: Trainable) -> Trainable:
            index, valid = fitting.minibatch(shuffles, own_rows, split.train, i, config.batch_size)
            gradient = jax.grad(partial(loss, layout))(members.params, gather(index), valid, end_weight)
            return optimizer.step(members, gradient, scale)[0]

        return jax.lax.fori_loop(0, batches, step, members)

    def held_out(parameters: Parameters) -> dict[str, Float[Array, "E"]]:
        return _held_out(layout, parameters, gather, split)

    judged = split.holdout > 0
    search = fitting.train_until_stale(
        epoch,
        score=lambda members: held_out(members.params)["error"],
        weights=lambda members: members.params.network,
        training=state.members,
        members=config.members,
        judged=judged,
        patience=config.patience,
        max_epochs=config.max_epochs,
    )
    members = search.training._replace(params=search.training.params._replace(network=search.best))
    ranked = jnp.argsort(search.score)[: config.elites].astype(jnp.int32)
    elites = jnp.where(judged, ranked, state.elites)
    steps = search.epochs * batches
    found = held_out(members.params)
    means = {f"model/holdout_{name}": found[name][elites] for name in ("error", "likelihood") if name in found}
    means |= {f"model/{name}": found[name] for name in ("aleatoric", "epistemic") if name in found}
    metrics = {name: Average.of(jnp.mean(of), judged) for name, of in means.items()} | {
        "model/fit_steps": Average.of(steps),
        "model/fit_epochs": Average.of(search.epochs),
    }
    return EnsembleState(members, inputs, targets, end_weight, elites, state.fits + 1, state.steps + steps), metrics


def _measure(layout: Layout, rows: Transition, mask: Bool[Array, "C"]) -> tuple[Normalizer, Normalizer]:
    """The normalisers of inputs and targets over the rows where `mask` is true."""
    inputs = measure(_inputs(layout, rows.observation, rows.action), mask)
    if not layout.config.normalize_targets:
        return inputs, identity(layout.target_size)
    return inputs, measure(_targets(layout, rows), mask)


def _held_out(
    layout: Layout, parameters: Parameters, gather: Callable[..., Batch], split: fitting.Split
) -> dict[str, Float[Array, "E"]]:
    """Of each member, the mean over the holdout's rows and dimensions: its squared `error`, the square of its distance from
    the members' mean (`epistemic`) and, where it is probabilistic, its log-density (`likelihood`) and its variance
    (`aleatoric`); zeros where the holdout is empty."""
    members, place = layout.config.members, jnp.arange(HOLDOUT_CHUNK)

    def add(i: Int[Array, ""], sums: dict[str, Array]) -> dict[str, Array]:
        here = i * HOLDOUT_CHUNK + place
        rows = gather(split.order[jnp.minimum(here, split.order.shape[0] - 1)])
        output = forward(layout, parameters, jnp.broadcast_to(rows.inputs, (members, *rows.inputs.shape)))
        found = {
            "error": (output.mean - rows.targets) ** 2,
            "epistemic": (output.mean - jnp.mean(output.mean, axis=0)) ** 2,
        }
        if layout.config.probabilistic:
            scaled = found["error"] * jnp.exp(-output.log_variance)
            found["likelihood"] = -0.5 * (scaled + output.log_variance + math.log(2 * math.pi))
            found["aleatoric"] = jnp.broadcast_to(jnp.exp(output.log_variance), output.mean.shape)
        valid = (here < split.holdout)[:, None]
        return {name: sums[name] + jnp.sum(jnp.where(valid, of, 0.0), axis=(1, 2)) for name, of in found.items()}

    chunks = (split.holdout + HOLDOUT_CHUNK - 1) // HOLDOUT_CHUNK
    names = ("error", "epistemic", *(("likelihood", "aleatoric") if layout.config.probabilistic else ()))
    sums = jax.lax.fori_loop(0, chunks, add, {name: jnp.zeros(members) for name in names})
    return jax.tree.map(lambda total: total / (jnp.maximum(split.holdout, 1) * layout.target_size), sums)


def _predict(
    layout: Layout, state: EnsembleState, observation: Float[Array, "N O"], action: Float[Array, "N A"]
) -> tuple[Float[Array, "E N D"], Float[Array, "E N D"]]:
    with jax.default_matmul_precision("highest"):
        x = normalize(state.inputs, _inputs(layout, observation, action))
        output = forward(layout, state.members.params, jnp.broadcast_to(x, (layout.config.members, *x.shape)))
    base = jnp.pad(_delta_mask(layout) * observation, ((0, 0), (0, int(layout.learns_reward))))
    mean = _zero_constant_dims(layout, denormalize(state.targets, output.mean)) + base
    return mean, _zero_constant_dims(layout, jnp.exp(output.log_variance) * state.targets.std**2)


def _world(
    layout: Layout, reward: Callable[..., Any] | None, terminated: Callable[..., Any] | None, state: EnsembleState
) -> World:
    config, size = layout.config, layout.observation_size
    params = state.members.params
    chosen = partial(jax.tree.map, lambda leaf: leaf[state.elites])
    elites = params._replace(network=chosen(params.network), termination=chosen(params.termination))
    kept = _delta_mask(layout)

    def reset(key: Key) -> Float[Array, "N O"]:
        raise NotImplementedError("a learned model knows no first states: call start with observation rows [N, O]")

    def start(origin: Float[Array, "N O"], key: Key) -> Float[Array, "N O"]:
        return origin

    def ends(
        next_observation: Float[Array, "N O"], shift: Int[Array, ""] | int, unsure: Bool[Array, "N"]
    ) -> Bool[Array, "N"] | Float[Array, "N"]:
        if terminated is not None:
            return terminated(next_observation) | unsure

        def chances(x: Float[Array, "E M F"]) -> tuple[Float[Array, "E M 1"]]:
            return (jax.nn.sigmoid(termination_logit(layout, elites, x) - jnp.log(state.end_weight))[..., None],)

        x = _next_features(layout, state.inputs, next_observation)
        (chance,) = propagation.evaluate(config.propagation, config.elites, shift, chances, x)
        return jnp.where(unsure, 1.0, jnp.mean(chance, axis=0)[:, 0])

    def moments(x: Float[Array, "E M I"]) -> tuple[Float[Array, "E M D"], Float[Array, "E M D"]]:
        output = forward(layout, elites, x)
        return _zero_constant_dims(layout, output.mean), _zero_constant_dims(layout, jnp.exp(output.log_variance))

    def step(
        observation: Float[Array, "N O"], action: Float[Array, "*n A"], key: Key
    ) -> tuple[Float[Array, "N O"], Transition]:
        # The first key moves rows to other members or matches their moments; the noise is the same under all propagations.
        other_key, noise_key = jax.random.split(key)
        shift = jax.random.randint(other_key, (), 0, config.elites) if config.propagation == "ts1" else 0
        action = jnp.broadcast_to(action, (observation.shape[0], layout.action_size))
        inputs = normalize(state.inputs, _inputs(layout, observation, action))
        means, variances = propagation.evaluate(config.propagation, config.elites, shift, moments, inputs)
        mean, std = propagation.gaussian(config.propagation, means, variances)
        noise = std * state.targets.std * jax.random.normal(noise_key, std.shape, std.dtype)
        if not config.reward_noise:
            noise = noise.at[:, size:].set(0.0)
        drawn = _zero_constant_dims(layout, denormalize(state.targets, mean) + noise)
        next_observation = kept * observation + drawn[:, :size]
        if config.propagation == "moment_matching":
            next_observation = propagation.match_moments(next_observation, other_key)
        ended = ends(next_observation, shift, propagation.unsure(means, variances, config.halt_above))
        return next_observation, Transition(
            observation=observation,
            action=action,
            reward=drawn[:, size] if reward is None else reward(observation, action, next_observation),
            next_observation=next_observation,
            terminated=ended,
            truncated=jnp.zeros(ended.shape, bool),
        )

    return World(reset=reset, start=start, observe=lambda observation: observation, step=step)
