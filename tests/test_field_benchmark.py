"""The benchmark of all methods: its list of cases, resuming, and the report."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxmbrl import algorithms, envs
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.stopping import Stopped, Stopping

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import field  # noqa: E402
import field_report  # noqa: E402


@pytest.fixture(scope="module")
def planned():
    return field.all_cases(list(algorithms.METHODS), field.TASKS, field.STEPS, 8)


def test_every_method_on_every_task_has_a_state_or_a_reason(planned, tmp_path):
    cases, apart = planned
    named = {(case.method, case.task) for case in cases}
    reasons = {(method, task): why for task, of in apart.items() for method, why in of.items()}
    assert named | reasons.keys() == {(method, task) for method in algorithms.METHODS for task in field.TASKS}
    assert not named & reasons.keys()
    assert all(reasons.values())
    for (method, _), why in reasons.items():
        assert " takes " not in why or why.startswith(f"{method} takes "), "a refusal has the name that the user gave"
    lines = field.listed(cases, apart, field.Place(tmp_path, tmp_path))
    for method in algorithms.METHODS:
        for task in field.TASKS:
            (line,) = (line for line in lines if line.split()[0] == field_report.name_of(method, task))
            assert " to do, about " in line or " does not apply: " in line


def test_methods_that_need_more_than_real_steps_are_apart(planned):
    cases, apart = planned
    for task in field.TASKS:
        assert "file of transitions" in apart[task]["mopo"]
        assert "--data FILE" in apart[task]["bc"]
        assert "no policy to imitate" in apart[task]["distillation"]
    assert "true simulator" in apart["CartPole-v1"]["alphazero"]
    assert "needs images" in apart["pendulum"]["drq-v2"]
    assert next(case for case in cases if case.method == "uct").settings == {"model": "learned"}
    assert {"sac", "dqn", "pets"} <= {case.method for case in cases if case.task == "CartPole-v1"}
    assert "dqn" in apart["pendulum"]


def test_evaluations_are_at_whole_updates_and_epochs(planned):
    for case in planned[0]:
        ends = case.method in field.ENDS
        assert ends or all(steps <= at < 1.3 * steps for steps, at in case.at.items()), case
        assert all(at % case.epoch == 0 for at in case.at.values())


def test_a_method_that_ends_keeps_its_last_policy(tmp_path, monkeypatch):
    case = field.case_of("pilco", envs.make("pendulum"), (100, 2_000, 5_000), 8)
    assert case.at == {100: 120, 2_000: 200, 5_000: 200}, "trials of 40 steps, 200 in the preset"
    place, taken = field.Place(tmp_path, tmp_path / "runs"), []

    def train(*_, steps, **__):
        taken.append(steps)
        return SimpleNamespace(env_steps=steps, frozen={})

    monkeypatch.setattr(field.jaxmbrl, "train", train)
    monkeypatch.setattr(field, "stage_of", lambda case, steps, result, ledger: stage(steps, result.env_steps))
    assert field.work(case, place) == "done"
    assert taken == [120, 200]
    stages = place.read(case)["stages"]
    assert [(of["steps"], of["env_steps"]) for of in stages] == [(100, 120), (2_000, 200), (5_000, 200)]


def stage(steps, env_steps):
    """An evaluation without its times."""
    return {"per_seed": [float(env_steps)], "frozen": [], "env_steps": env_steps, "steps": steps}


def test_planners_have_fewer_evaluated_episodes_where_start_states_are_alike(planned, tmp_path):
    episodes = {(case.method, case.task): case.episodes for case in planned[0]}
    assert episodes["pets", "pendulum"] == episodes["sac", "CartPole-v1"] == 20
    assert episodes["pets", "CartPole-v1"] == episodes["td-mpc2", "InvertedPendulum-v5"] == 5
    for method in field.PLANNERS:
        assert any(name == method for name, _ in episodes), f"{method} is no method"
    case = field.case_of("pets", envs.make("CartPole-v1"), (2_000,), 8)
    place = field.Place(tmp_path, tmp_path)
    place.write(case, "done", [stage(2_000, 2_000)])
    assert not place.is_open(case)
    assert place.is_open(case._replace(episodes=20)), "other numbers of episodes are other results"
    assert "--episodes" not in case.words and "--episodes" in case._replace(episodes=20).words


def test_a_preset_for_much_longer_runs_is_not_taken():
    ppo, sac = algorithms.get("ppo"), algorithms.get("sac")
    assert field.small_preset(ppo, "InvertedPendulum-v5", 10_000) == "small"
    assert field.small_preset(sac, "CartPole-v1", 10_000) == "choices"
    assert field.small_preset(sac, "cartpole-swingup", 10_000) == "small"
    assert field.small_preset(algorithms.get("td3"), "cartpole-swingup", 10_000) == "pendulum"


def test_a_long_run_has_the_preset_and_the_changes_that_are_asked_for(tmp_path, monkeypatch):
    changed = dict(map(field.setting, ("replay_capacity=50000", "agent.hidden=[16, 16]")))
    assert changed == {"replay_capacity": 50_000, "agent.hidden": [16, 16]}
    case = field.case_of("sac", envs.make("Hopper-v5"), (25_000, 50_000), 4, 10, "default", changed)
    assert (case.preset, case.settings) == ("default", changed)
    case = case._replace(rescored=True, at_once=1)
    assert "agent.hidden=[16,16]" in case.words
    options = field.parsed(case.words)
    assert (options.preset, dict(options.set), options.rescore) == ("default", changed, True)
    assert (options.tasks, options.methods, options.steps, options.seeds) == (["Hopper-v5"], ["sac"], [25_000, 50_000], 4)
    assert options.episodes == 10
    with pytest.raises(field.DoesNotApply, match="did you mean 'replay_capacity'"):
        field.case_of("sac", envs.make("Hopper-v5"), (25_000,), 4, 10, "default", {"replay_kapacity": 1})
    found = SimpleNamespace(rows=[{"seed": 0, "env_steps": 5, "eval/return": 1.0}], env_steps=5, frozen=[])
    monkeypatch.setattr(
        field.jaxmbrl, "evaluate", lambda result, episodes, backend: SimpleNamespace(per_seed=[float(episodes)])
    )
    stage = field.stage_of(case, 25_000, found, field.Ledger(tmp_path / "seconds"))
    assert (stage["per_seed"], stage["gymnasium"]) == ([1.0], [10.0])
    assert field.merge([stage, {**stage, "gymnasium": [9.0]}])["gymnasium"] == [10.0, 9.0]


def of_cliff():
    return field.case_of("q-learning", envs.make("CliffWalking"), (100, 200), 2, 3)


def learned(case, place):
    """The rows of the run, without times."""
    rows = RunFolder.open(place.runs / case.name).read_metrics()
    return [{name: of for name, of in row.items() if not name.startswith(("time/", "wall_time"))} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a case without an interruption."""
    folder = tmp_path_factory.mktemp("whole")
    place = field.Place(folder / "out", folder / "runs")
    assert field.work(of_cliff(), place) == "done"
    return place


def test_a_case_that_is_interrupted_equals_one_that_is_not(tmp_path, monkeypatch, whole):
    case, parts = of_cliff(), field.Place(tmp_path / "out", tmp_path / "runs")
    assert field.work(case, parts, give_way=-math.inf) == "at 100 steps"
    assert parts.read(case)["state"] == "at 100 steps"
    stopping = Stopping(print)

    class Interrupting(field.Meter):
        def update(self, env_steps, message=None):
            super().update(env_steps, message)
            stopping.asked = env_steps > 100

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(field, "Meter", Interrupting)
        field.work(case, parts, stopping)
    assert parts.ledger(case).last() == 101
    assert field.work(case, parts) == "done"
    expected, found = whole.read(case), parts.read(case)
    assert [stage["per_seed"] for stage in found["stages"]] == [stage["per_seed"] for stage in expected["stages"]]
    assert learned(case, parts) == learned(case, whole)
    errors = [row["table/value_error"] for row in learned(case, parts)]
    assert len(set(errors)) == 4, "two seeds at two evaluations"
    assert [stage["env_steps"] for stage in found["stages"]] == [100, 200]
    assert found["state"] == "done"
    for stage in found["stages"]:
        assert stage["cpu_seconds"]["training"] > 0 and stage["cpu_seconds"]["compilation"] > 0
    assert parts.ledger(case).left(case) == 0
    assert field.work(case, parts) == "done", "nothing is left"
    assert parts.read(case) == found


def test_the_results_of_a_case_are_of_one_training(tmp_path, whole):
    """A run that begins anew, since its folder is gone, replaces the results before as soon as it has as many."""
    case, place = of_cliff(), field.Place(tmp_path / "out", tmp_path / "runs")
    assert field.work(case, place, give_way=-math.inf) == "at 100 steps"
    first = place.read(case)["stages"][0]
    of_another = {**first, "per_seed": [123.0, 456.0], "commit": "another"}
    place.write(case, "at 100 steps", [of_another, {**of_another, "steps": 150, "env_steps": 150}])
    elsewhere = place._replace(runs=tmp_path / "elsewhere")
    assert field.work(case, elsewhere, give_way=-math.inf) == "at 100 steps"
    assert [stage["per_seed"] for stage in place.read(case)["stages"]] == [[123.0, 456.0]] * 2, "two are more than one"
    assert field.work(case, elsewhere) == "done"
    found, expected = place.read(case)["stages"], whole.read(case)["stages"]
    assert [stage["per_seed"] for stage in found] == [stage["per_seed"] for stage in expected]


def test_a_case_that_is_left_at_some_steps_goes_on_without_its_run_folder(tmp_path, monkeypatch, whole):
    """As on another machine, which has the results alone."""
    case, place = of_cliff()._replace(until=100), field.Place(tmp_path / "out", tmp_path / "runs")
    begun = []

    def in_this_process(command, deadline):
        begun.append(case.group)
        field.work(case, place)
        return 0

    with monkeypatch.context() as patched:
        patched.setattr(field, "run", in_this_process)
        field.measure([case], place, 1.0, [])
    assert begun == [case.group], "it is not begun again"
    assert place.ledger(case).left(case) == 0 and not place.is_open(case)
    assert place.read(case)["state"] == "at 100 steps" and "left" not in field.listed([case], {}, place)[0]
    whole_case = case._replace(until=None)
    assert place.is_open(whole_case) and place.ledger(whole_case).left(whole_case) > 0
    elsewhere = place._replace(runs=tmp_path / "elsewhere")
    assert f"{case.name:<40} at 100 steps, about " in field.listed([whole_case], {}, elsewhere)[0]
    assert field.work(whole_case, elsewhere) == "done"
    expected, found = whole.read(case)["stages"], elsewhere.read(case)["stages"]
    assert [stage["per_seed"] for stage in found] == [stage["per_seed"] for stage in expected]


def test_groups_of_seeds_give_the_results_of_all_seeds_at_once(tmp_path, whole):
    case, place = of_cliff(), field.Place(tmp_path / "out", tmp_path / "runs")
    first, second = groups = case.groups(1)
    assert [(group.first, group.trained) for group in groups] == [(0, 1), (1, 1)]
    assert first.group != case._replace(seeds=4).groups(2)[0].group, "groups of other sizes have other files"
    assert field.work(first, place) == "done"
    assert not (place.out / f"{case.name}.json").exists(), "the other seed has no results"
    assert field.work(second, place) == "done"
    expected, found = whole.read(case), place.read(case)
    assert found["state"] == "done" and found["seeds"] == 2 and not list((place.out / "groups").iterdir())
    for one, other in zip(found["stages"], expected["stages"], strict=True):
        same = ("steps", "env_steps", "per_seed", "mean", "iqm", "interval", "frozen")
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
        seconds = [group_seconds(place, group, other["steps"]) for group in groups]
        assert one["cpu_seconds"]["training"] == pytest.approx(sum(seconds), abs=0.02)
    assert [place.read(group) for group in groups] == [found, found], "a group of a case that is done is done"


def group_seconds(place, group, steps):
    """CPU seconds of training up to `steps`."""
    return sum(
        line["cpu"] for line in place.ledger(group).lines if line["what"] == "training" and line["env_steps"] <= steps
    )


def test_a_failed_group_is_the_state_of_the_case(tmp_path):
    place = field.Place(tmp_path, tmp_path / "runs")
    groups = of_cliff().groups(1)
    returns = stage(100, 100) | {"per_seed": [1.0], "cpu_seconds": {}, "wall_seconds": {}}
    place.write(groups[0], "done", [returns, returns])
    place.write(groups[1], "failed: no seed is finite after 150 steps", [returns])
    found = place.read(of_cliff())
    assert found["state"] == "failed: no seed is finite after 150 steps"
    assert [stage["per_seed"] for stage in found["stages"]] == [[1.0, 1.0]]


def test_the_ledger_forgets_what_is_done_again(tmp_path):
    ledger = field.Ledger(tmp_path / "seconds.jsonl")
    for steps, what, cpu in (
        (0, "compilation", 9.0),
        (100, "training", 1.0),
        (200, "training", 2.0),
        (200, "evaluation", 4.0),
    ):
        ledger.add(steps, what, cpu, cpu)
    case = of_cliff()._replace(at={200: 200, 500: 500})
    assert case.epoch == 100
    # An epoch has 100 steps. The last 100 took 2 s, 300 are left, and one evaluation of 4 s.
    assert ledger.left(case) == 2.0 * 3 + 4.0
    ledger.begin(100)
    again = field.Ledger(tmp_path / "seconds.jsonl")
    assert [again.seconds(what) for what in ("training", "evaluation", "compilation")] == [1.0, 0.0, 9.0]


def test_the_cheapest_case_is_first_and_a_failure_costs_no_other(tmp_path, monkeypatch):
    cases = [of_cliff()._replace(method=name, at={100: 100, 500: 500}) for name in ("q-learning", "dyna-q", "q-planning")]
    place = field.Place(tmp_path / "out", tmp_path / "runs")
    for case, seconds in zip(cases, (3.0, 1.0, 2.0), strict=True):
        place.ledger(case).add(100, "training", seconds, seconds)
    order = []

    def pretend(command, deadline):
        case = next(case for case in cases if case.method == command[command.index("--case") + 1])
        order.append((case.method, command[-1]))
        if case.method == "q-planning":
            return 1
        place.write(case, "done", [])
        return 0

    monkeypatch.setattr(field, "run", pretend)
    field.measure(cases, place, 1.0, [])
    assert order == [("dyna-q", "8.0"), ("q-planning", "12.0"), ("q-learning", "inf")]
    assert place.read(cases[2])["state"] == "failed: its process ended with exit code 1"


def test_a_case_that_is_not_begun_is_estimated_by_the_results_of_its_method(tmp_path):
    done, ahead = of_cliff(), of_cliff()._replace(task="another")
    place = field.Place(tmp_path / "out", tmp_path / "runs")
    spent = {"training": 6.0, "evaluation": 1.0, "compilation": 20.0}
    returns = [1.0] * done.seeds
    stage = {"steps": 100, "env_steps": 100, "per_seed": returns, **field.field_report.summary(returns)}
    place.write(done, "done", [{**stage, "frozen": [], "cpu_seconds": spent}])
    assert field.estimate(ahead._replace(at={500: 500}), place, [ahead]) == pytest.approx(5 * 6.0)


def test_a_process_is_asked_to_stop_at_the_limit():
    lines = (
        "import signal, sys, time",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))",
        "time.sleep(60)",
    )
    assert field.run([sys.executable, "-c", "\n".join(lines)], time.monotonic() + 1.0) == 75


def fixture(out, method, task, *stages, state="done"):
    """A file of results with (steps, return of each of four seeds)."""
    found = [
        {
            **{"steps": steps, "env_steps": steps, "per_seed": seeds, "frozen": []},
            **field_report.summary(seeds),
            "cpu_seconds": {"training": steps / 100, "evaluation": 1.0, "compilation": 5.0},
        }
        for steps, seeds in stages
    ]
    card = algorithms.METHODS.card(method)
    text = {
        **{"method": method, "task": task, "family": card.family, "preset": "small", "seeds": 4},
        **{"steps": [200, 500], "state": state, "stages": found},
    }
    out.mkdir(exist_ok=True)
    (out / f"{method}-{task}.json").write_text(json.dumps(text))


def test_the_report_of_two_files(tmp_path):
    fixture(tmp_path, "sac", "pendulum", (200, [-9.0, -8.0, -7.0, -6.0]), (500, [-8.0, -5.0, -3.0, 0.0]))
    fixture(tmp_path, "td3", "pendulum", (200, [-5.0, -4.0, -3.0, -2.0]), state="at 300 steps")
    apart = {"pendulum": {name: "no" for name in algorithms.METHODS if name not in ("sac", "td3", "ddpg")}}
    field_report.keep_apart(tmp_path, apart)
    tables = {name: "\n".join(make()) for name, make in field_report.tables(tmp_path).items()}
    sac, td3 = (line.split(" | ") for line in tables["returns by task"].splitlines()[-2:])
    # Interquartile means: of the middle two of four seeds.
    assert sac[:2] == ["| `sac`, `small`", "-7.5; -7.5 [-9.0, -6.0]"] and sac[2].startswith("-4.0; -4.0 [")
    assert sac[3:] == ["-", "5.00", "5.00 |"]
    assert td3[1] == "-3.5; -3.5 [-5.0, -2.0]" and td3[2] == "-"
    # All seeds of TD3 are above all seeds of SAC at 200 steps.
    assert td3[3] == "1.00 [1.00, 1.00] at 200"
    assert "- `pendulum`: 1 of 3 methods that apply are measured." in tables["not measured"]
    assert "Begun: `td3` (at 300 steps)." in tables["not measured"]
    assert "Not measured: `ddpg`." in tables["not measured"]
    assert "| `pendulum` | `td3` (-3.5); of 2 | `sac` (-4.0); of 1 | `td3` (-3.5); also `sac`; of 2 |" in tables["choices"]
    assert "| `mbpo` | `pendulum` | no |" in tables["does not apply"]
    figure = field_report.draw(field_report.results(tmp_path), ["pendulum"])
    assert len(figure.axes) == 2
    figure.savefig(tmp_path / "field.png")


def test_methods_that_are_not_distinguishable_are_named_beside_the_best(tmp_path):
    fixture(tmp_path, "sac", "pendulum", (200, [1.0, 2.0, 3.0, 4.0]))
    fixture(tmp_path, "td3", "pendulum", (200, [1.5, 2.5, 3.5, 4.5]))
    fixture(tmp_path, "ddpg", "pendulum", (200, [-4.0, -3.0, -2.0, -1.0]))
    found = field_report.results(tmp_path)
    assert field_report.best(found, "pendulum", lambda case: case.at(200)) == "`td3` (3.0); also `sac`; of 3"
    # Training took 2 s.
    assert field_report.best(found, "pendulum", field_report.within(1 / 60)) == "-"
    assert field_report.best(found, "pendulum", field_report.within(3 / 60)).startswith("`td3`")


def test_the_page_has_the_results():
    text = field_report.PAGE.read_text()
    assert field_report.page(text, field_report.RESULTS) == text


@pytest.mark.slow
def test_the_script_stops_at_the_limit_and_goes_on(tmp_path):
    words = ["--tasks", "CliffWalking", "--methods", "q-learning", "--steps", "200", "500", "--seeds", "2"]
    command = [
        sys.executable,
        str(BENCHMARKS / "field.py"),
        *words,
        "--out",
        str(tmp_path),
        "--runs",
        str(tmp_path / "runs"),
    ]
    stopped = subprocess.run([*command, "--limit", "0"], check=True, capture_output=True, text=True)
    assert stopped.stdout == ""
    subprocess.run(command, check=True)
    assert json.loads((tmp_path / "q-learning-CliffWalking.json").read_text())["state"] == "done"
    listed = subprocess.run([*command, "--list"], check=True, capture_output=True, text=True).stdout
    assert listed.splitlines()[0].split() == ["q-learning-CliffWalking", "done"]
