"""Policy distillation: a student network fitted to the labels of an expert (Rusu et al., arXiv 1511.06295).

    continuous  minimise  mean over rows of KL(N(a, 1) || N(mu(s), 1)) = |a - mu(s)|^2 / 2
    discrete    minimise  mean over rows of KL(softmax(q / temperature) || softmax(z(s)))

The label of a row is the expert's deterministic action a, or its preferences q: action values or logits [n]. Both standard
deviations are the constant 1. Another constant only scales the loss, which Adam does not notice; a fitted one would decide
how much each row counts. A low temperature sharpens action values, which differ little between actions; logits need 1 or
more. The student's action is mu(s), the tanh of the network's output, or the choice with the largest z(s).

Vectors are normalised by the rows that the student is fitted to. Images have convolutions, or without any enter as one row
of pixels (`nn.encoder`). Students are fitted by Adam on random batches. A
student without hidden layers is linear: for continuous actions mu(s) is its output, clipped to [-1, 1] when it acts, and
its parameters are the least-squares solution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxmbrl.agents.exploration import remembered, with_key
from jaxmbrl.core.config import Traced
from jaxmbrl.core.spaces import Discrete, Space, encode, encoded_size
from jaxmbrl.core.types import Action, Average, Hyper, Key, Memory, Metrics, Observation, Policy, PyTree, Transition
from jaxmbrl.data import replay
from jaxmbrl.data.replay import Replay
from jaxmbrl.distributions import Categorical, Gaussian
from jaxmbrl.models.normalizer import Normalizer, identity, measure, normalize
from jaxmbrl.nn import encoder, optimizer
from jaxmbrl.nn.networks import MLP, ConvLayer
from jaxmbrl.nn.optimizer import Trainable


@dataclass(frozen=True)
class StudentConfig:
    """Settings of the student."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (16, 16)
    """Units of each hidden layer (ReLU). Without any the student is linear."""
    convolutions: tuple[ConvLayer, ...] = ()
    """(units, kernel size, stride) of each convolution in front of these, for images."""
    learning_rate: Annotated[float, Gt(0), Traced] = 1e-3
    """Adam learning rate."""
    updates: Annotated[int, Ge(1)] = 2000
    """Adam steps of each fit, which continues from the parameters of the one before."""
    batch_size: Annotated[int, Ge(1)] = 128
    """Rows in each step."""
    temperature: Annotated[float, Gt(0)] = 0.01
    """Temperature of the softmax of the expert's preferences, for discrete actions: about 0.01 for action values, 1 or more
    for logits."""


class Expert(NamedTuple):
    """A policy to imitate."""

    policy: Callable[[Int[Array, ""]], Policy]
    """Number of one of the expert's seeds -> its deterministic policy. The extras are the label of the observation
    (`label_like`); the memory is the expert's own, such as the plan from which its next search starts."""
    observes_full_state: bool = False
    """Whether the policy takes the world's full carry instead of the observation."""


class StudentState(NamedTuple):
    """Parameters of the network, and the normaliser of its inputs."""

    network: Trainable
    """For images the parameters are (encoder, network)."""
    normalizer: Normalizer
    """Of encoded observations; that of images changes nothing."""


class Student(NamedTuple):
    """A student for one task."""

    init: Callable[[Key, Hyper], StudentState]
    policy: Callable[[StudentState], Policy]
    """Its deterministic policy."""
    loss: Callable[[StudentState, Transition], Float[Array, ""]]
    """(state, labelled rows [B]) -> the mean divergence from the labels, in nats."""
    fit: Callable[[StudentState, Replay, Key], tuple[StudentState, Metrics]]
    """(state, labelled rows, key) -> (state, metrics). The extras of a row are its label."""


def label_like(action: Space) -> Float[Array, "L"]:
    """Zeros with the shape of a label: the action [A], or preferences [n] for n choices."""
    return jnp.zeros(encoded_size(action))


def label_of_action(action: Space, chosen: Shaped[Array, "..."]) -> Float[Array, "*n L"]:
    """The label of an action whose preferences are not known: itself, or preference 1 for it and 0 for other choices."""
    return encode(action, chosen)


def divergence(
    action: Space, label: Float[Array, "*n L"], output: Float[Array, "*n L"], temperature: float = 1.0
) -> Float[Array, "*n"]:
    """The divergence of the student's `output` from the expert's `label`, in nats.

    >>> import jax.numpy as jnp
    >>> from jaxmbrl.agents.distillation import divergence
    >>> from jaxmbrl.core.spaces import Box, Discrete
    >>> float(divergence(Box((2,), -1, 1), jnp.array([0.5, 0.0]), jnp.array([0.0, 1.0])))
    0.625
    >>> values, student = jnp.array([1.0, 0.99, 0.5]), jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> round(float(divergence(Discrete(3), values, student, temperature=0.01)), 4)
    0.2483
    """
    if isinstance(action, Discrete):
        return Categorical(label / temperature).divergence(Categorical(output))
    ones = jnp.zeros(label.shape[-1], label.dtype)
    return Gaussian(label, ones).divergence(Gaussian(output, ones))


def least_squares(
    inputs: Float[Array, "C F"], labels: Float[Array, "C L"], mask: Bool[Array, "C"]
) -> tuple[Float[Array, "F L"], Float[Array, "L"]]:
    """(kernel, bias) with the least sum over the rows in `mask` of |inputs kernel + bias - labels|^2; of several, the
    smallest."""
    columns = jnp.concatenate([inputs, jnp.ones_like(inputs[:, :1])], axis=1)
    found = jnp.linalg.lstsq(jnp.where(mask[:, None], columns, 0.0), jnp.where(mask[:, None], labels, 0.0))[0]
    return found[:-1], found[-1]


def make(config: StudentConfig, observation: Space, action: Space) -> Student:
    """A student for observations and actions of these spaces. Raises UserError if an image is too small for the
    convolutions."""
    network, discrete = MLP(config.hidden, encoded_size(action)), isinstance(action, Discrete)
    coder = encoder.make(observation, config.convolutions) if encoder.is_image(observation) else None
    linear = not config.hidden and not discrete and coder is None
    size = encoded_size(observation) if coder is None else coder.size

    def output_of(params: PyTree, normalizer: Normalizer, seen: Observation) -> Float[Array, "*n L"]:
        if coder is None:
            output = network.apply(params, normalize(normalizer, encode(observation, seen)))
        else:
            output = network.apply(params[1], coder.apply(params[0], seen))
        return output if linear or discrete else jnp.tanh(output)

    def init(key: Key, hyper: Hyper) -> StudentState:
        params = network.init(key, jnp.zeros(size))
        if coder is not None:
            params = coder.init(jax.random.fold_in(key, 0)), params
        return StudentState(optimizer.init(params, hyper.get("learning_rate", config.learning_rate)), identity(size))

    def policy(state: StudentState) -> Policy:
        def act(memory: Memory, seen: Observation, key: Key) -> tuple[Action, PyTree, Memory]:
            output = output_of(state.network.params, state.normalizer, seen)
            return Categorical(output).mode() if discrete else jnp.clip(output, -1.0, 1.0), (), memory

        return Policy(lambda key: (), act)

    def loss_of(params: PyTree, normalizer: Normalizer, rows: Transition) -> Float[Array, ""]:
        output = output_of(params, normalizer, rows.observation)
        return jnp.mean(divergence(action, rows.extras, output, config.temperature))

    def fit(state: StudentState, rows: Replay, key: Key) -> tuple[StudentState, Metrics]:
        normalizer = state.normalizer
        if coder is None:
            seen, mask = encode(observation, rows.data.observation), jnp.arange(rows.data.reward.shape[0]) < rows.size
            normalizer = measure(seen, mask)
        if linear:
            kernel, bias = least_squares(normalize(normalizer, seen), rows.data.extras, mask)
            params = {"params": {"Dense_0": {"kernel": kernel, "bias": bias}}}
            return StudentState(optimizer.assign(state.network, params, jnp.zeros(())), normalizer), {}

        def update(trainable: Trainable, key: Key) -> tuple[Trainable, Float[Array, ""]]:
            batch = replay.sample(rows, key, config.batch_size)
            value, gradient = jax.value_and_grad(loss_of)(trainable.params, normalizer, batch)
            return optimizer.step(trainable, gradient)[0], value

        trainable, values = jax.lax.scan(update, state.network, jax.random.split(key, config.updates))
        return StudentState(trainable, normalizer), {"student/loss": Average.of(jnp.mean(values))}

    def loss(state: StudentState, rows: Transition) -> Float[Array, ""]:
        return loss_of(state.network.params, state.normalizer, rows)

    return Student(init, policy, loss, fit)


def privileged(expert: Expert, inside: Callable[[Any], Any], observe: Callable[[Any], Observation]) -> Expert:
    """`expert`, a policy for a task, as the expert for the same task with another observation, such as images: it sees the
    state that the student does not see (learning by cheating: Chen et al., arXiv 1912.12294).

    `inside` maps the carry of the student's world to that of the expert's, and `observe` the latter to the observation
    that the expert takes.
    """

    def shown(carry: Any) -> Any:
        within = inside(carry)
        return within if expert.observes_full_state else observe(within)

    def policy(seed: Int[Array, ""]) -> Policy:
        own = expert.policy(seed)

        def act(memory: Memory, carry: Any, key: Key) -> tuple[Action, PyTree, Memory]:
            return own.act(memory, shown(carry), key)

        def remember(memory: Memory, carry: Any, action: Action, key: Key) -> Memory:
            return remembered(own, memory, shown(carry), action, key, memory)

        return Policy(own.init, act, remember=remember if own.remember else None)

    return Expert(policy, observes_full_state=True)


def beta(rounds: int | None, number: Any) -> Float[Array, ""]:
    """The probability that the expert acts in round `number`, counted from 0: it falls linearly from 1 to 0 in `rounds`
    rounds (DAgger: Ross et al., arXiv 1011.0686, section 3.2); None for 1 in all rounds, which is behaviour cloning.

    >>> from jaxmbrl.agents.distillation import beta
    >>> [float(beta(2, i)) for i in range(4)], float(beta(None, 9))
    ([1.0, 0.5, 0.0, 0.0], 1.0)
    """
    return jnp.ones(()) if rounds is None else jnp.clip(1.0 - jnp.asarray(number, float) / rounds, 0.0, 1.0)


def asked(expert: Policy, student: Policy, observe: Callable[[Any], Observation], share: Float[Array, ""]) -> Policy:
    """The policy that collects: each step is the expert's with probability `share`, else the student's. The expert labels
    every step, from a memory of its own, also where the student acts. If the memory has actions, they are those that were
    taken. The extras are the label.

    `observe` maps what the expert takes to the observation that the student takes.
    """

    def act(memory: Memory, seen: Any, key: Key) -> tuple[Action, PyTree, Memory]:
        expert_key, student_key, choice_key = jax.random.split(key, 3)
        shown, label, after = expert.act(memory, seen, expert_key)
        own = student.act((), observe(seen), student_key)[0]
        action = jnp.where(jax.random.uniform(choice_key) < share, shown, own)
        return action, label, remembered(expert, memory, seen, action, expert_key, after)

    return Policy(expert.init, act, remember=with_key(expert, lambda key: jax.random.split(key, 3)[0]))
