"""Learning tier: every method reaches the first goal of its record, with as many seeds as the goal asks for."""

import pytest

import jaxmbrl
from jaxmbrl import algorithms


@pytest.mark.slow
@pytest.mark.parametrize("name", algorithms.METHODS)
def test_it_reaches_the_first_goal_of_its_record(name, tmp_path):
    goal = algorithms.get(name).goals[0]
    fields = {"steps": goal.steps, "seeds": goal.seeds, "preset": goal.preset, "settings": dict(goal.settings)}
    jaxmbrl.train(name, goal.task, out=tmp_path / "run", **fields)
    found = jaxmbrl.evaluate(tmp_path / "run", goal.episodes)
    print(f"{goal.name}: {found.per_seed}, goal {goal.at_least}")
    assert found.frozen == () and sum(value >= goal.at_least for value in found.per_seed) >= goal.seeds_at_goal
