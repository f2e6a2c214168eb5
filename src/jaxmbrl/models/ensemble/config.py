"""Settings of the probabilistic ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from jaxmbrl.core.config import Traced
from jaxmbrl.models.propagation import Propagation
from jaxmbrl.nn.networks import Precision


@dataclass(frozen=True)
class EnsembleConfig:
    """Settings of the ensemble. By default members and batch size are PETS's, layers, holdout and patience MBPO's."""

    members: Annotated[int, Ge(1)] = 5
    """Networks that are fitted."""
    elites: Annotated[int, Ge(1)] = 5
    """Members with the smallest holdout error; only these are used to imagine."""
    probabilistic: bool = True
    """Whether members predict a variance too; without, they fit the squared error and imagine no noise of their own."""
    noise: Literal["input", "constant"] = "input"
    """What a member's variance depends on: the input, or nothing."""
    reward_noise: bool = True
    """Whether an imagined reward that is learned is sampled; otherwise it is the mean."""
    hidden: tuple[Annotated[int, Ge(1)], ...] = (200, 200, 200, 200)
    """Units of each hidden layer (swish)."""
    precision: Precision = "default"
    """Precision of the products between hidden layers: JAX's default, or bfloat16 for devices with matrix units for it."""
    norms: tuple[Annotated[float, Gt(0)], ...] = ()
    """Epsilon of a layer norm without learned scale and shift after each hidden layer's swish; empty for none."""
    weight_decay: tuple[Annotated[float, Ge(0)], ...] = ()
    """Weight of half the squared kernel of each layer, hidden and last, in the loss; empty for none."""
    learning_rate: Annotated[float, Gt(0), Traced] = 1e-3
    """Adam learning rate."""
    annealing: bool = False
    """Whether the learning rate follows half a cosine in each fit, from `learning_rate` at the first epoch to 0 after
    `max_epochs` (Loshchilov and Hutter, SGDR, arXiv 1608.03983, equation 5, by epochs)."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Rows per gradient step for each member."""
    max_epochs: Annotated[int, Ge(1)] = 200
    """Largest number of epochs of one fit, and the exact number where there is no holdout."""
    patience: Annotated[int, Ge(0)] = 5
    """Epochs in a row without improvement after which a fit continues; one more ends it."""
    holdout_fraction: Annotated[float, Ge(0), Le(0.9)] = 0.2
    """Share of the data in the holdout of each fit; 0 for no early stopping and no selection of elites."""
    holdout_cap: Annotated[int, Ge(1)] = 5000
    """Largest number of rows in the holdout."""
    termination_hidden: tuple[Annotated[int, Ge(1)], ...] = (64, 64)
    """Units of each hidden layer (swish) of the networks that learn the termination, where it is not known."""
    normalize_targets: bool = True
    """Whether targets are shifted and scaled like inputs."""
    absolute: tuple[Annotated[int, Ge(0)], ...] = ()
    """Observation dimensions that are predicted themselves and not as changes, besides those that the task names."""
    features: bool = True
    """Whether the networks see the task's features of the observation (`Task.features`), such as sine and cosine of an
    angle, where the task has some; without, they see the observation itself, and the task makes no entry absolute or
    constant."""
    propagation: Propagation = "ts1"
    """What an imagined row is sampled from: a member that changes at every step (ts1) or never (tsinf), the mean of all
    members (expectation) or their Gaussian (distribution), refitted to the block's next observations (moment_matching)."""
    beta_nll: Annotated[float, Ge(0), Le(1)] = 0.0
    """Exponent of the variance that weights each row's likelihood: 0 none, 1 the squared error's gradient for the mean."""
    halt_above: Annotated[float, Gt(0)] | None = None
    """An imagined row terminates where the standard deviation predicted for any dimension, in units of the normalised
    targets, is above this; None for never."""
    bounds_weight: Annotated[float, Ge(0)] = 0.01
    """Weight of the sum of the log-variance bounds' distances in the loss."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
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
            return "halt_above", f"must be None for deterministic members under {self.propagation}: there is no variance"
        return None
