"""The deadly triad: function approximation, bootstrapping and off-policy updates together may diverge (Sutton and Barto,
Reinforcement Learning, 2nd edition, section 11.3). Two linear examples in which they do, and what stops them.

    two states  V(s1) = w, V(s2) = 2 w; s1 leads to s2 with reward 0, and only s1 is updated (Tsitsiklis and Van Roy,
                Machine Learning 22, 1996):   w <- w (1 + alpha (2 gamma - 1)),   which grows for every gamma > 1/2
    Baird       seven states with eight weights: V(s_i) = 2 w_i + w_8 for i <= 6, V(s_7) = w_7 + 2 w_8 (Baird, ICML 1995;
                Sutton and Barto, example 11.1). The target policy leads from every state to s_7, all rewards are 0, and all
                states are updated equally often, as the behaviour policy visits them. Expected updates.

The true values are 0. In each case the update is w <- w + alpha mean over updated s of delta(s) grad V(s), with
delta(s) = r + gamma V'(s') - V(s). Variants:

    target network  V' has the weights of the last multiple of C updates
    double          two sets of weights, each with the other's value in its target
    on-policy       the updated states are those that the target policy visits
    Monte Carlo     the return, 0, in place of r + gamma V'(s')
    penalty         learned features phi(s) = relu(F x(s)), V(s) = u^T phi(s), and the loss
                    c mean of phi(s)^T phi(s') (Kumar et al., DR3, arXiv 2112.04716). They begin as F = 1, u = w

    python experiments/deadly_triad.py [--out FOLDER]

Writes `deadly-triad.png` and `deadly-triad.json`, with command, commit, versions and machine.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxmbrl.training.run_folder import environment

UNBOUNDED = 1e9
"""A run ends where the values are this large."""


class Example(NamedTuple):
    """A task in which one action leads from each of S states to another, with values linear in K features."""

    features: Float[np.ndarray, "S K"]
    next: Float[np.ndarray, "S S"]
    """next[s, t] = 1 if s leads to t; a row of zeros ends the episode."""
    updated: Float[np.ndarray, "S"]
    """Share of each state among the updates."""
    on_policy: Float[np.ndarray, "S"]
    """Share of each state among the states that the target policy visits."""
    first: Float[np.ndarray, "K"]
    """Initial weights."""
    gamma: float
    alpha: float


def two_states(gamma: float = 0.9, alpha: float = 0.1) -> Example:
    """V = (w, 2 w). The second state ends the episode."""
    none = np.zeros(2)
    return Example(
        features=np.array([[1.0], [2.0]]),
        next=np.stack([np.array([0.0, 1.0]), none]),
        updated=np.array([1.0, 0.0]),
        on_policy=np.array([0.5, 0.5]),
        first=np.ones(1),
        gamma=gamma,
        alpha=alpha,
    )


def baird(gamma: float = 0.99, alpha: float = 0.01) -> Example:
    """Seven states, eight weights."""
    features = np.zeros((7, 8))
    features[:6, :6], features[:6, 7] = 2 * np.eye(6), 1
    features[6, 6:] = 1, 2
    last = np.eye(7)[6]
    return Example(
        features, np.tile(last, (7, 1)), np.full(7, 1 / 7), last, np.array([1.0] * 6 + [10.0, 1.0]), gamma, alpha
    )


Rule = Callable[[Any, int], Any]
"""(parameters, number of earlier updates) -> parameters."""


def step(
    example: Example, w: Float[np.ndarray, "K"], target: Float[np.ndarray, "K"], shares: Float[np.ndarray, "S"]
) -> Float[np.ndarray, "K"]:
    """The weights after one expected update, with the values of the weights `target` in the targets."""
    error = example.gamma * example.next @ example.features @ target - example.features @ w
    return w + example.alpha * (shares * error) @ example.features


def temporal_difference(example: Example) -> Rule:
    """Semi-gradient TD."""
    return lambda w, i: step(example, w, w, example.updated)


def on_policy(example: Example) -> Rule:
    """TD on the states that the target policy visits."""
    return lambda w, i: step(example, w, w, example.on_policy)


def monte_carlo(example: Example) -> Rule:
    """Regression to the return, which is 0."""
    return lambda w, i: step(example, w, 0 * w, example.updated)


def target_network(example: Example, period: int) -> tuple[Rule, Any]:
    """(rule, initial parameters) of TD with a target network that is copied every `period` updates."""

    def rule(parameters: tuple[Any, Any], i: int) -> tuple[Any, Any]:
        w, target = parameters
        target = w if i % period == 0 else target
        return step(example, w, target, example.updated), target

    return rule, (example.first, example.first)


def double(example: Example, apart: float = 0.5) -> tuple[Rule, Any]:
    """(rule, initial parameters) of two sets of weights, which are (1 +- apart) times the initial ones."""

    def rule(parameters: tuple[Any, Any], i: int) -> tuple[Any, Any]:
        a, b = parameters
        return step(example, a, b, example.updated), step(example, b, a, example.updated)

    return rule, ((1 + apart) * example.first, (1 - apart) * example.first)


def penalised(example: Example, c: float) -> tuple[Rule, Any]:
    """(rule, initial parameters) of TD with learned features and the penalty `c` mean phi(s)^T phi(s')."""

    def rule(parameters: tuple[Any, Any], i: int) -> tuple[Any, Any]:
        u, matrix = parameters
        before = example.features @ matrix.T
        on, phi = before > 0, np.maximum(before, 0.0)
        value = phi @ u
        error = example.updated * (example.gamma * example.next @ value - value)
        # The penalty's gradient with respect to phi: of both factors of phi(s)^T phi(s').
        shared = example.updated[:, None] * example.next
        of_penalty = shared @ phi + shared.T @ phi
        by_matrix = (on * (np.outer(error, u) - c * of_penalty)).T @ example.features
        return u + example.alpha * error @ phi, matrix + example.alpha * by_matrix

    return rule, (example.first, np.eye(len(example.first)))


def values(example: Example, parameters: Any) -> Float[np.ndarray, "S"]:
    """V of all states, of the first set of weights or of learned features."""
    if not isinstance(parameters, tuple):
        return example.features @ parameters
    first, second = parameters
    if second.ndim == 2:
        return np.maximum(example.features @ second.T, 0.0) @ first
    return example.features @ first


def course(example: Example, rule: Rule, first: Any, updates: int) -> list[float]:
    """The root mean square of the values before each update and after the last, until it is `UNBOUNDED`."""
    parameters, found = first, []
    for i in range(updates + 1):
        found.append(float(np.sqrt(np.mean(values(example, parameters) ** 2))))
        if found[-1] > UNBOUNDED:
            break
        parameters = rule(parameters, i)
    return found


def growth(example: Example, period: int) -> float:
    """The factor by which values finally grow between two copies of a target network that is copied every `period` updates:
    the largest absolute eigenvalue of the linear map of the values by one period. A period of 1 is TD."""
    gram = example.features @ example.features.T * example.updated
    keep = np.eye(len(gram)) - example.alpha * gram
    power, total = np.eye(len(gram)), np.zeros_like(gram)
    for _ in range(period):
        total += power
        power = power @ keep
    whole = power + example.alpha * example.gamma * total @ gram @ example.next
    # Values that no weights have are left out.
    basis, scale, _ = np.linalg.svd(example.features, full_matrices=False)
    basis = basis[:, scale > 1e-9]
    return float(np.abs(np.linalg.eigvals(basis.T @ whole @ basis)).max())


def critical_penalty(gamma: float) -> float:
    """The smallest c that stops the divergence with two states as alpha -> 0, e (2 gamma - 1) / 4, if u = f = 1 at first.

    With k = 4 c / (2 gamma - 1), u^2 - k ln u^2 - f^2 does not change, where f is the feature of s1, and f reaches 0 if
    the minimum of u^2 - k ln u^2, which is k (1 - ln k), is at most 0.
    """
    return math.e * (2 * gamma - 1) / 4


PENALTY = 1.0
PERIODS = (20, 150)
"""Updates between two copies of the target network, with two states and in Baird's example."""
UPDATES = (100, 10_000)


def cases(example: Example, period: int) -> dict[str, tuple[Rule, Any]]:
    """The variants by name."""
    w = example.first
    return {
        "TD": (temporal_difference(example), w),
        "target network": target_network(example, period),
        "double": double(example),
        f"learned features, penalty {PENALTY:g}": penalised(example, PENALTY),
        "learned features, penalty 0": penalised(example, 0.0),
        "on-policy": (on_policy(example), w),
        "Monte Carlo": (monte_carlo(example), w),
    }


COLORS = ("#c1440e", "#0b3d91", "#e3a018", "#2a9d4f", "#9bcf9f", "0.45", "0.7")


def draw(found: dict[str, dict[str, list[float]]], factors: dict[str, dict[int, float]], path: Path) -> None:
    """Write the picture: the size of the values by update in both examples, and the growth by the period of copies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), dpi=120, layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (name, courses), period in zip(panels, found.items(), PERIODS, strict=False):
        for color, (case, sizes) in zip(COLORS, courses.items(), strict=True):
            dashed = case in ("double", "learned features, penalty 0")
            axes.plot(np.maximum(sizes, 1e-12), "--" if dashed else "-", color=color, linewidth=2, label=case)
        axes.set(title=f"{name}, C = {period}", xlabel="update", yscale="log", ylim=(1e-3, 1e5))
        axes.set(ylabel="root mean square of the values")
    for color, (name, by_period) in zip(COLORS, factors.items(), strict=False):
        panels[2].plot(list(by_period), list(by_period.values()), color=color, linewidth=2, label=name)
    panels[2].axhline(1, color="0.4", linewidth=1.2, linestyle=":")
    panels[2].set(title="target network", xlabel="updates between two copies, C", xscale="log")
    panels[2].set(ylabel="growth from copy to copy", ylim=(0.96, 1.1))
    panels[2].legend(frameon=False, fontsize=9, loc="upper right")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncol=7, frameon=False, fontsize=9)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Compute, print the table, and write the picture and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/deadly_triad"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    examples = {"two states, gamma 0.9": two_states(), "Baird's counterexample, gamma 0.99": baird()}
    found: dict[str, dict[str, list[float]]] = {}
    for (name, example), period, updates in zip(examples.items(), PERIODS, UPDATES, strict=True):
        found[name] = {
            case: course(example, rule, first, updates) for case, (rule, first) in cases(example, period).items()
        }
    periods = sorted({round(1.15**i) for i in range(50)})
    factors = {
        "two states, gamma 0.9": {period: growth(two_states(), period) for period in periods},
        "Baird": {period: growth(baird(), period) for period in periods},
    }
    for name, courses in found.items():
        print(f"{name}{'values at first':>35}{'largest':>12}{'last':>12}{'updates':>10}")
        for case, sizes in courses.items():
            print(f"  {case:<32}{sizes[0]:>20.2f}{max(sizes):>12.3g}{sizes[-1]:>12.3g}{len(sizes) - 1:>10}")
    stops = next(period for period in range(1, 1000) if growth(baird(), period) < 1)
    print(f"growth in Baird's example is below 1 from C = {stops} on")
    picture, numbers = args.out / "deadly-triad.png", args.out / "deadly-triad.json"
    draw(found, factors, picture)
    written = {
        "root_mean_square_values": {
            name: {case: sizes[:: max(1, len(sizes) // 100)] for case, sizes in courses.items()}
            for name, courses in found.items()
        },
        "growth_by_period": factors,
        "environment": environment("python experiments/deadly_triad.py"),
    }
    numbers.write_text(json.dumps(written, indent=1) + "\n")
    print(f"picture  {picture}\nnumbers  {numbers}")
    return written


if __name__ == "__main__":
    main()
