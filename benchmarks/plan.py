"""Speed of one full-size plan of PETS through its policy: 350 candidates x 20 particles x 15 steps x 5 iterations, 5 elites
of 7 members, 4 x 200 hidden units, trajectory sampling, learned reward and termination, and full CEM.

    python benchmarks/plan.py [--repeats 9] [--out results.json]
    python benchmarks/plan.py --latent small size5m [--repeats 9] [--out results.json]

With `--latent` the speed of plans in the latent model of TD-MPC2 at the sizes of these presets, on 17 observations and 6
actions: by MPPI with the prior's proposals and the terminal value, and by CEM with as many candidates, iterations and
steps. They are measured in turn, and compared by the CPU time of all threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ensemble import flops_per_row
from measure import in_turn, measure, report

from jaxmbrl.agents import policy_prior
from jaxmbrl.algorithms.latent import td_mpc2
from jaxmbrl.algorithms.shooting import pets
from jaxmbrl.core.types import Policy
from jaxmbrl.envs import make
from jaxmbrl.models import EnsembleConfig
from jaxmbrl.models.latent import believing, consistency, repeated
from jaxmbrl.planning import PlannerConfig, planning_policy
from jaxmbrl.planning import make as make_planner
from jaxmbrl.planning.cem import CEMConfig
from jaxmbrl.training import programs
from jaxmbrl.training.loop import clock_at


def planning() -> tuple[Callable[[], Any], int, int]:
    """(a plan, its floating-point operations, its number of model evaluations)."""
    config = pets.Config(
        ensemble=EnsembleConfig(members=7, elites=5, hidden=(200, 200, 200, 200)),
        # A variance of 0 is never reached, so every plan runs all iterations.
        planner=PlannerConfig(cem=CEMConfig(horizon=15, population=350, elites=35, iterations=5, min_variance=0.0)),
        particles=20,
        learn_reward=True,
        learn_termination=True,
        replay_capacity=1000,
    )
    task = make("cartpole-continuous")
    algorithm = pets.make(config, task)
    state = jax.jit(lambda key: algorithm.init(key, {}))(jax.random.key(0))
    observation = task.env.reset(jax.random.key(1)).obs

    @partial(jax.jit, compiler_options=dict(algorithm.compiler_options))
    def plan(state: pets.State, key: jax.Array) -> jax.Array:
        policy = algorithm.policy(state, clock_at(config.warmup_steps), True)
        return policy.act(policy.init(key), observation, key)[0]

    planner = config.planner.cem
    evaluations = planner.population * config.particles * planner.horizon * planner.iterations
    # Inputs: observation, action. Outputs: mean and log-variance of change and reward. Then next observation -> logit.
    dynamics = flops_per_row(config.ensemble.hidden, 4 + 1, 2 * (4 + 1))
    flops = evaluations * (dynamics + flops_per_row(config.ensemble.termination_hidden, 4, 1))
    key = jax.random.key(2)
    return lambda: plan(state, key), flops, evaluations


def latent_planning(preset: str) -> dict[str, Callable[[], Any]]:
    """Plans from one observation in the same model, by their description."""
    task = make("HalfCheetah-v5")
    changes = {"model.learn_continuation": False}
    config = programs.configure("td-mpc2", "HalfCheetah-v5", preset, changes).settings
    algorithm, search = td_mpc2.make(config, task), config.planner
    state = jax.jit(lambda key: algorithm.init(key, {}))(jax.random.key(0))
    model = consistency.make(config.model, task.observation, task.action)
    prior = policy_prior.make(config.agent, config.model.size, task.action.shape[0])
    candidates = search.population + config.proposals
    cem = CEMConfig(search.horizon, candidates, search.elites, search.iterations, min_variance=0.0)
    planner = make_planner(PlannerConfig("cem", cem=cem), task.action)

    def by_cem(valued: bool, state: td_mpc2.State) -> Policy:
        params, critics, actor = (part.params for part in state.learned[:3])
        value = (lambda belief: prior.value(actor, critics, belief.stoch)) if valued else None
        world, origin = model.world(params), partial(repeated, number=1)
        return believing(model, params, planning_policy(planner, world, origin, task.action, terminal_value=value))

    def plan(policy_of: Callable[[td_mpc2.State], Policy]) -> Callable[[], Any]:
        @jax.jit
        def act(state: td_mpc2.State, observation: jax.Array, key: jax.Array) -> jax.Array:
            policy = policy_of(state)
            return policy.act(policy.init(key), observation, key)[0]

        return partial(act, state, jax.random.normal(jax.random.key(1), task.observation.shape), jax.random.key(2))

    about = f"{preset}, {candidates} candidates x {search.iterations} x {search.horizon} steps"
    return {
        f"{about}: MPPI, {config.proposals} of the prior, terminal value": plan(
            lambda state: algorithm.policy(state, clock_at(config.warmup_steps), False)
        ),
        f"{about}: CEM": plan(partial(by_cem, False)),
        f"{about}: CEM, terminal value": plan(partial(by_cem, True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--latent", nargs="+", metavar="PRESET", help="presets of td-mpc2")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.latent:
        tables = {}
        for preset in args.latent:
            tables |= in_turn(latent_planning(preset), args.repeats)
        report(tables, args.out, "--latent", *args.latent, "--repeats", str(args.repeats))
        return
    run, flops, evaluations = planning()
    figures = measure(run, flops, args.repeats)
    figures["model evaluations a second"] = evaluations / figures["seconds"]
    report({"one plan of PETS, 350 x 20 x 15 x 5, 5 of 7 members, 4 x 200": figures}, args.out)


if __name__ == "__main__":
    main()
