"""Settings of the probabilistic ensemble."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from jaxmbrl.core.config import Traced
from jaxmbrl.models.bayesian import BayesianConfig, Kind
from jaxmbrl.models.propagation import Propagation
from jaxmbrl.nn.networks import Precision


@dataclass(frozen=True)
class EnsembleConfig:
    """Settings of the ensemble. Defaults: members and batch size are PETS's; layers, holdout and patience MBPO's."""

    kind: Kind = "bootstrap"
    """How the members are found: fitted independently, each to its own bootstrap of the data (bootstrap), or drawn after
    each fit from one fitted distribution over weights: Gaussian (bayes-by-backprop), of dropped units (dropout), or of
    dropped units with learned rates (concrete-dropout)."""
    bayesian: BayesianConfig = field(default_factory=BayesianConfig)
    """The settings of distributions over weights."""
    members: Annotated[int, Ge(1)] = 5
    """Networks of the ensemble."""
    elites: Annotated[int, Ge(1)] = 5
    """Members with the smallest holdout error; only these are used to imagine."""
    probabilistic: bool = True
    """Whether members also predict a variance. Otherwise they are fitted by squared error and predict no noise."""
    head: Literal["gaussian", "mixture"] = "gaussian"
    """The distribution that a probabilistic member predicts: one Gaussian, or a mixture of them."""
    components: Annotated[int, Ge(1)] = 5
    """Gaussians of a mixture."""
    noise: Literal["input", "constant"] = "input"
    """What a member's variance depends on: the input, or nothing."""
    reward_noise: bool = True
    """Whether a learned reward is sampled in imagined steps; otherwise it is the predicted mean."""
    hidden: tuple[Annotated[int, Ge(1)], ...] = (200, 200, 200, 200)
    """Units of each hidden layer (swish)."""
    precision: Precision = "default"
    """Precision of the products between hidden layers: JAX's default, or bfloat16 for devices with matrix units for it."""
    norms: tuple[Annotated[float, Gt(0)], ...] = ()
    """Epsilon of a layer norm without learned scale and shift after each hidden layer's swish; empty for none."""
    weight_decay: tuple[Annotated[float, Ge(0)], ...] = ()
    """Weight of half the squared kernel of each layer, hidden and last, in the loss; empty for none."""
    decoupled_decay: bool = False
    """Whether `weight_decay` is instead the decoupled decay (AdamW) of each layer's kernel and bias: a gradient step also
    multiplies them by 1 - learning rate x decay. Decay in the loss is divided by Adam like the rest of the gradient, so
    weights of little influence move much closer to zero (Loshchilov and Hutter, arXiv 1711.05101)."""
    noise_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled decay of the log-variances of constant noise, which moves them towards the variance of the normalised
    targets; 0 for none. Noise that depends on the input has none."""
    learning_rate: Annotated[float, Gt(0), Traced] = 1e-3
    """Adam learning rate."""
    restart_optimizer: bool = False
    """Whether each fit begins with new moments of Adam. Otherwise they are kept from fit to fit."""
    annealing: bool = False
    """Whether the learning rate follows half a cosine in each fit, from `learning_rate` at the first epoch to 0 after
    `max_epochs` (Loshchilov and Hutter, SGDR, arXiv 1608.03983, equation 5, by epochs)."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Rows per gradient step for each member."""
    max_epochs: Annotated[int, Ge(1)] = 200
    """Largest number of epochs of one fit; the exact number if there is no holdout."""
    patience: Annotated[int, Ge(0)] = 5
    """Consecutive epochs without improvement that are allowed; one more ends the fit."""
    holdout_fraction: Annotated[float, Ge(0), Le(0.9)] = 0.2
    """Share of the data in the holdout of each fit; 0 for no early stopping and no selection of elites."""
    holdout_cap: Annotated[int, Ge(1)] = 5000
    """Largest number of rows in the holdout."""
    termination_hidden: tuple[Annotated[int, Ge(1)], ...] = (64, 64)
    """Units of each hidden layer (swish) of the networks that predict the termination if it is not known."""
    normalize_targets: bool = True
    """Whether targets are shifted and scaled like inputs."""
    input_margin: Annotated[float, Ge(0)] | None = 1.0
    """Inputs are clipped to the range of the training rows, widened on each side by this many times its width. A sensor
    that hardly varied in training and later does then leaves the other predictions as they are. None: inputs are not
    clipped."""
    absolute: tuple[Annotated[int, Ge(0)], ...] = ()
    """Observation dimensions that are predicted as absolute values, not as changes, besides those that the task names."""
    features: bool = True
    """Whether the networks receive the task's features of the observation (`Task.features`), such as sine and cosine of an
    angle, if the task has any. Otherwise they receive the observation itself, and the absolute and constant entries of the
    task's features are ignored."""
    propagation: Propagation = "ts1"
    """How imagined rows are sampled: from a member that changes at every step (ts1) or never (tsinf), as the mean of all
    members (expectation), from their Gaussian (distribution), or from it with the block's next observations refitted to a
    Gaussian (moment_matching)."""
    beta_nll: Annotated[float, Ge(0), Le(1)] = 0.0
    """Exponent of the variance that weights each row's likelihood. 0: no weight; 1: the mean has the gradient of the
    squared error."""
    halt_above: Annotated[float, Gt(0)] | None = None
    """An imagined row terminates if the standard deviation of any predicted dimension, in units of the normalised targets,
    is above this. None: never."""
    bounds_weight: Annotated[float, Ge(0)] = 0.01
    """Weight in the loss of the summed distances between the log-variance bounds."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        layers = len(self.hidden) + 1
        if self.elites > self.members:
            at_most = f"must be at most members ({self.members}), got {self.elites}"
            return "elites", f"{at_most}: set it to {self.members} too, or raise members"
        if self.weight_decay and len(self.weight_decay) != layers:
            return "weight_decay", f"must be empty or have one entry a layer ({layers}), got {len(self.weight_decay)}"
        if self.norms and len(self.norms) != layers - 1:
            return "norms", f"must be empty or have one entry a hidden layer ({layers - 1}), got {len(self.norms)}"
        if self.elites < self.members and self.holdout_fraction == 0:
            return "holdout_fraction", f"must be above 0 to rank {self.elites} elites of {self.members} members"
        if self.beta_nll > 0 and not self.probabilistic:
            return "beta_nll", f"must be 0 for deterministic members, which have no likelihood, got {self.beta_nll}"
        if self.head == "mixture" and not self.probabilistic:
            return "head", "must be gaussian for deterministic members, which predict no distribution, got mixture"
        if self.head == "mixture" and self.beta_nll > 0:
            return "beta_nll", f"must be 0 for a mixture, which has no single variance to weight by, got {self.beta_nll}"
        if self.kind != "bootstrap":
            return self._problem_of_posterior()
        if self.halt_above is not None and not self.probabilistic and self.propagation in ("ts1", "tsinf"):
            return "halt_above", f"must be None for deterministic members under {self.propagation}: there is no variance"
        return None

    def _problem_of_posterior(self) -> tuple[str, str] | None:
        """The same for the rules of a distribution over weights."""
        if self.elites < self.members:
            return (
                "elites",
                f"must be members ({self.members}) for {self.kind}, whose draws have no order, got {self.elites}",
            )
        if not self.probabilistic:
            return "probabilistic", f"must be true for {self.kind}, which needs a likelihood"
        if self.weight_decay:
            return (
                "weight_decay",
                f"must be empty for {self.kind}, which has a prior instead, got {list(self.weight_decay)}",
            )
        if self.noise_decay:
            return "noise_decay", f"must be 0 for {self.kind}, got {self.noise_decay}"
        if self.beta_nll > 0:
            return "beta_nll", f"must be 0 for {self.kind}, which needs the likelihood itself, got {self.beta_nll}"
        if self.kind == "concrete-dropout" and self.bayesian.rate == 0:
            return "bayesian.rate", "must be above 0 for concrete-dropout, which learns its logit"
        return None
