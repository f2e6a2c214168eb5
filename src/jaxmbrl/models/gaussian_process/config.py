"""Settings of the Gaussian process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge


@dataclass(frozen=True)
class GaussianProcessConfig:
    """Settings of the Gaussian process. Defaults: sizes are PILCO's."""

    capacity: Annotated[int, Ge(2)] = 300
    """Rows that are used at most. Of a longer buffer, this many rows at equal distances are used. All arrays have this size
    from the start, so that growing data do not recompile, and all costs are those of this size."""
    inducing: Annotated[int, Ge(2)] = 300
    """Rows up to which the process is exact; with more, it is the sparse approximation FITC with this many inducing
    inputs."""
    evaluations: Annotated[int, Ge(1)] = 100
    """Evaluations of the evidence and its gradient in each fit, at most."""
    absolute: tuple[Annotated[int, Ge(0)], ...] = ()
    """Observation dimensions that are predicted as absolute values, not as changes, besides those that the task names."""
    features: bool = True
    """Whether the process receives the task's features of the observation (`Task.features`), such as sine and cosine of an
    angle, if the task has any."""
    propagation: Literal["expectation", "distribution"] = "distribution"
    """How imagined rows are sampled: as the predicted mean (expectation), which costs N operations a row for N rows of
    data, or from the predicted Gaussian of each step (distribution), which costs N^2."""

    @property
    def basis(self) -> int:
        """Rows of a fitted process: the data, or the inducing inputs."""
        return min(self.capacity, self.inducing)
