"""Settings and steps of methods that learn a latent world model from windows of rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt

from jaxmbrl.algorithms.shared import LoopSettings, windows_fit
from jaxmbrl.core.config import Traced
from jaxmbrl.core.spaces import Space
from jaxmbrl.core.types import Key
from jaxmbrl.data import sequences
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.models.latent import RSSMConfig, Window, by_successor
from jaxmbrl.nn.rules import RuleConfig


@dataclass(frozen=True)
class LatentSettings(LoopSettings):
    """Settings of methods that learn a recurrent state-space model."""

    model: RSSMConfig = field(default_factory=RSSMConfig)
    """The world model."""
    learning_rate: Annotated[float, Gt(0), Traced] = 4e-5
    """Learning rate of the model."""
    optimizer: RuleConfig = field(default_factory=RuleConfig)
    """The rule of all updates."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Windows in each update."""
    sequence_length: Annotated[int, Ge(1)] = 64
    """Consecutive rows of a window."""
    train_every: Annotated[int, Ge(1)] = 1
    """Steps of each environment between updates."""
    updates: Annotated[int, Ge(1)] = 1
    """Updates then. The replay ratio of the papers is updates * batch_size * sequence_length / (train_every * num_envs)."""
    replay_capacity: Annotated[int, Ge(1)] = 1_000_000
    """Transitions in the replay buffer; the oldest are overwritten first."""

    def problem(self) -> tuple[str, str] | None:
        """(field, message) of the first violated rule that involves several fields, or None."""
        return windows_fit(self)


def draw(config: LatentSettings, buffer: Sequences, action: Space, key: Key) -> Window:
    """A batch of windows from the buffer, as positions."""
    rows, is_first, _ = sequences.sample(buffer, key, config.batch_size, config.sequence_length)
    return by_successor(rows, is_first, action)
