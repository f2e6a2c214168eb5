"""`jaxmbrl.train` from Python: warnings of frozen seeds, what it takes as a task, hints for words of other libraries."""

import copy
import dataclasses
import functools
import io
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmbrl
from jaxmbrl import UserError, algorithms, envs
from jaxmbrl.core.config import to_dict
from jaxmbrl.diagnostics import video
from jaxmbrl.envs.base import initial_state
from jaxmbrl.envs.given import resolve
from jaxmbrl.sweeping import status
from jaxmbrl.training import programs
from jaxmbrl.training.console import Progress
from jaxmbrl.training.run_folder import RunFolder
from jaxmbrl.training.session import Frozen, Session

pytestmark = pytest.mark.usefixtures("compile_cache")
SETTINGS = {"warmup_steps": 20, "replay_capacity": 100, "epoch_steps": 20, "batch_size": 8, "eval_every": 0}


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    monkeypatch.setattr(envs, "TASKS", dict(envs.TASKS))


class Fuse:
    """Burns for twelve steps; the reward of the thirteenth is not a number."""

    observation_size = action_size = 1

    def reset(self, rng):
        return initial_state(jnp.zeros((), jnp.int32), jnp.zeros(1))

    def step(self, state, action):
        burnt = state.pipeline_state + 1
        reward = jnp.where(burnt == 13, jnp.nan, 1.0)
        return state.replace(pipeline_state=burnt, obs=burnt[None] / 13, reward=reward)


def fuse(name="fuse"):
    return envs.make_task(name, Fuse(), episode_length=20)


def train(task, **more):
    return jaxmbrl.train("linear", task, steps=60, seeds=2, seed=3, settings=SETTINGS, **more)


FROZEN = {3: Frozen("transition/reward", 13), 4: Frozen("transition/reward", 13)}
END = "all seeds had a value that is not finite; the run ends at 20 of 60 steps"
SAID = [f"seed {seed} is frozen: 'transition/reward' was not finite in epoch 1, at step 13" for seed in (3, 4)] + [END]


def test_frozen_seeds_and_an_early_end_are_warned_of():
    with pytest.warns(jaxmbrl.RunWarning) as heard:
        result = train(fuse())
    assert [str(warning.message) for warning in heard] == SAID
    package = str(Path(jaxmbrl.__file__).parent)
    assert not any(warning.filename.startswith(package) for warning in heard), "they are at the caller's line"
    assert (result.env_steps, result.config.total_steps) == (20, 60)
    assert dict(result.frozen) == FROZEN
    assert "fuse" not in envs.names()


@pytest.mark.promises
def test_a_console_says_it_alone_and_resuming_says_that_it_has_ended(tmp_path):
    said, task = io.StringIO(), fuse()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = train(task, out=tmp_path / "run", progress=Progress(60, 2, out=said))
    assert [line for line in said.getvalue().splitlines() if "warning" in line] == [f"warning: {text}" for text in SAID]
    assert result.frozen == FROZEN
    # The task is found again by its name.
    with pytest.warns(jaxmbrl.RunWarning) as heard:
        result = jaxmbrl.resume(tmp_path / "run")
    assert [str(warning.message) for warning in heard] == [END]
    assert (result.env_steps, result.frozen) == (20, FROZEN)
    events = [event["text"] for event in RunFolder.open(tmp_path / "run").read_events() if event["kind"] == "warning"]
    assert events == [*SAID, END]


def test_a_task_given_to_a_run_in_a_folder_is_registered():
    task = fuse()
    assert resolve(task) == ("fuse", task) and "fuse" not in envs.TASKS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert resolve(task, keep=True) == ("fuse", task)
            assert envs.make("fuse") is task
    with pytest.warns(UserWarning, match="the task 'fuse' was registered before and is replaced"):
        resolve(fuse(), keep=True)
    for name in ("pendulum", "gymnasium/Pendulum-v1"):
        with pytest.raises(UserError, match=f"with out, give '{name}', or a task with another name"):
            resolve(task._replace(name=name), keep=True)
    envs.register("mine", fuse)
    with pytest.raises(UserError, match="with out, give 'mine', or a task with another name"):
        resolve(task._replace(name="mine"), keep=True)
    with pytest.raises(UserError, match="a task's name must be a letter, then"):
        resolve(task._replace(name="my task"), keep=True)


def test_a_function_that_makes_a_task_is_one():
    name, task = resolve(fuse)
    assert (name, task.name, task.episode_length) == ("fuse", "fuse", 20)
    resolve(fuse, keep=True)
    assert envs.make("fuse").name == "fuse"
    envs.register("other", lambda: fuse("other"))
    envs.TASKS["fuse"] = fuse
    assert resolve(fuse, keep=True)[0] == "fuse", "it is registered itself"

    def broken():
        raise OSError("no port")

    for wrong, message in (
        (broken, "task 'broken': making the environment fails with OSError: no port"),
        (
            Fuse,
            r"Fuse\(\) must return a Task, got an object of type Fuse; envs.make_task\(name, env, episode_length\) makes",
        ),
        (lambda task: task, r"making the environment fails with TypeError: .*missing 1 required positional"),
        (Fuse(), "a task must be a name or a Task, got an object of type Fuse; envs.make_task"),
        (3, "a task must be a name, a Task or a function that makes one, got an object of type int; envs.make_task"),
        (None, "a task must be a name, a Task or a function that makes one, got an object of type NoneType"),
    ):
        with pytest.raises(UserError, match=message) as error:
            resolve(wrong)
        assert "\n" not in str(error.value)


def test_gymnasiums_environments_are_tasks_where_they_can_be_made_again():
    gymnasium = pytest.importorskip("gymnasium")
    name = ("gymnasium/Pendulum-v1", None)
    assert resolve(gymnasium.make("Pendulum-v1")) == resolve(gymnasium.make("Pendulum-v1", render_mode="rgb_array")) == name
    assert resolve(gymnasium.spec("Pendulum-v1"), keep=True) == name

    class Heater(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Box(0, 2, (1,))

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    for given in (Heater, lambda: envs.from_gymnasium(Heater, "Heater")):
        called, task = resolve(given)
        assert (called, task.name, task.observation.shape, task.episode_length) == ("Heater", "Heater", (2,), 1000)
    resolve(Heater, keep=True)
    assert envs.make("Heater").host().reset(0).shape == (2,)
    made = r": give a function that makes it, envs.from_gymnasium\(lambda: gymnasium.make\('Pendulum-v1', "
    no_limit = (
        "the environment 'Pendulum-v1' has no time limit, as env.unwrapped has none: give 'gymnasium/Pendulum-v1', or"
    )
    unwrapped = r", for other .* 200 steps, a function .*make\('Pendulum-v1'\).unwrapped, name='mine', episode_length=N\)"
    other = copy.deepcopy(gymnasium.spec("Pendulum-v1"))
    other.id = "Pendulum-v7"
    for wrong, message in (
        (gymnasium.make("Pendulum-v1", g=3.0), r"has settings of its own \(g=3.0\)" + made + r"g=3.0\), name='mine'\)"),
        (
            gymnasium.make("Pendulum-v1", max_episode_steps=30),
            "has a time limit of its own" + made + r"max_episode_steps=30\), name='mine'\)",
        ),
        (
            gymnasium.wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), 0, 1),
            r"has wrappers of its own \(RescaleAction\)" + made + r"...\), name='mine'\)",
        ),
        (gymnasium.make("Pendulum-v1").unwrapped, no_limit + unwrapped),
        (gymnasium.make("Pendulum-v1").unwrapped.spec, no_limit),
        (gymnasium.make("Pendulum-v1", g=3.0).unwrapped, r"has settings of its own \(g=3.0\)"),
        (other, "the environment 'Pendulum-v7' is not the one that Gymnasium makes by this name: give a function"),
        (gymnasium.make_vec("Pendulum-v1", 2), "give a single environment and not a vector"),
        (
            Heater(),
            "training makes several environments, got one, an object of type Heater: give a function that makes them",
        ),
        (functools.partial(Heater), "a function without a name makes the environments: give envs.from_gymnasium"),
    ):
        with pytest.raises(UserError, match=message):
            resolve(wrong)
    env = gymnasium.make("Pendulum-v1")
    for wrong, kind in (
        (env, "an object of type TimeLimit"),
        (env.unwrapped, "an object of type PendulumEnv"),
        (env.spec, "an object of type EnvSpec"),
        ("Pendulum-v1", "the name 'Pendulum-v1'"),
    ):
        with pytest.raises(UserError) as error:
            envs.from_gymnasium(wrong, "mine")
        assert str(error.value) == (
            f"task 'mine': from_gymnasium takes a function that makes an environment at each call, got {kind}: write "
            "from_gymnasium(lambda: gymnasium.make('Pendulum-v1'), 'mine')"
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"lr": 1e-3}, "unknown field 'lr': it is one of the settings, settings={'agent.learning_rate': 0.001}"),
        ({"batch_size": 8}, "unknown field 'batch_size': it is one of the settings, settings={'batch_size': 8}"),
        ({"n_envs": 4}, "unknown field 'n_envs': it is one of the settings, settings={'num_envs': 4}"),
        ({"gamma": 0.9}, "unknown field 'gamma': it is one of the settings, settings={'agent.discount': 0.9}"),
        ({"total_timesteps": 1000}, "unknown field 'total_timesteps': it is called 'steps' here"),
        ({"tensorboard_log": "x"}, "unknown field 'tensorboard_log': it is called 'log' here"),
        ({"policy_kwargs": {"net_arch": [9]}}, "unknown field 'policy_kwargs': write settings={'agent.hidden': [9]}"),
        ({"task": "pendulum"}, "unknown field 'task': the task is the second argument"),
        ({"hyper": {"lr": 1}}, "unknown hyper 'lr' of sac; did you mean 'learning_rate'?"),
        ({"data": {}}, "data must be the path of a file of transitions, as jaxmbrl.data.dataset.save writes it, got {}"),
        ({"out": 3}, "out must be the path of a new folder, got 3"),
        ({"preset": 3}, "preset must be the name of a preset, got 3"),
        ({"hyper": 3}, "hyper must be a mapping such as {'learning_rate': [1e-3, 3e-4]}, got 3"),
        ({"stopping": 3}, "stopping must be a jaxmbrl.training.stopping.Stopping, got 3"),
        ({"callback": lambda: 0}, "callback must take one argument, the rows of an epoch: 'def callback(rows)', got one"),
        ({"settings": {"agent.learning-rate": 1}}, "unknown field 'agent.learning-rate'; did you mean 'agent.learning_ra"),
        ({"settings": {"lerning_rate": 1}}, "unknown field 'lerning_rate'; did you mean 'agent.learning_rate'?"),
        ({"policy": "MlpPolicy"}, "unknown field 'policy': each algorithm has its own policy"),
        ({"verbose": 1}, "unknown field 'verbose': progress=jaxmbrl.training.console.Progress(steps, seeds) shows a run"),
        ({"progres": 1}, "unknown field 'progres'; did you mean 'progress'?"),
        ({"progress": True}, "progress must be a console, got True: progress=jaxmbrl.training.console.Progress("),
        ({"settings": {"learning_rate": 1}}, "unknown field 'learning_rate'; did you mean 'agent.learning_rate'?"),
        ({"settings": {"agent.gamma": 1}}, "unknown field 'agent.gamma'; did you mean 'agent.discount'?"),
        ({"settings": {"buffer_size": 1}}, "unknown field 'buffer_size'; did you mean 'replay_capacity'?"),
        ({"max_episode_steps": 9}, "unknown field 'max_episode_steps': the length of an episode is an argument of en"),
        ({"settings": {"device": "cpu"}}, "unknown field 'device': JAX chooses the device"),
    ],
)  # fmt: skip
def test_words_of_other_libraries_get_a_hint(words, message, monkeypatch):
    monkeypatch.setattr(Session, "begin", None)
    with pytest.raises(UserError) as error:
        jaxmbrl.train("sac", "pendulum", **words)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "what", "instead"),
    [
        ({"seeds": 4}, "'seeds': it is an argument of train", "write seeds=4 beside settings"),
        ({"steps": 900}, "'steps': it is an argument of train", "write steps=900 beside settings"),
        ({"out": "runs/x"}, "'out': it is an argument of train", "write out='runs/x' beside settings"),
        ({"env": "pendulum"}, "'env': it is an argument of train", "write env='pendulum' beside settings"),
        ({"preset": "sac"}, "'preset': it is an argument of train", "write preset='sac' beside settings"),
        ({"agent": {"seed": 1}}, "'agent.seed': it is an argument of train", "write seed=1 beside settings"),
        ({"hyper": {}}, "'hyper': it is an argument of train", "write hyper={} beside settings"),
        ({"total_timesteps": 9}, "'total_timesteps': it is the argument 'steps' of train", "write steps=9 beside settings"),
        (
            {"verbose": 1},
            "'verbose': it is the argument 'progress' of train",
            "progress=jaxmbrl.training.console.Progress(steps, seeds) shows a run",
        ),
    ],
)
def test_an_argument_of_train_among_the_settings_is_told(settings, what, instead):
    with pytest.raises(UserError) as error:
        jaxmbrl.train("sac", "pendulum", settings=settings)
    assert str(error.value) == f"unknown field {what}, not a setting: {instead}"


@pytest.mark.parametrize(
    ("algorithm", "path", "schedules"),
    [
        ("sac", "agent.learning_rate", ""),
        (
            "mbpo",
            "ensemble.learning_rate",
            " (ensemble.annealing is a cosine schedule of the learning rate over each fit; rollout_length is a linear "
            "schedule of its own; schedule is a table of real_ratio, refit_every, updates_per_step and rollout_length over "
            "environment steps)",
        ),
    ],
)
def test_a_schedule_in_the_place_of_a_number_is_told(algorithm, path, schedules):
    with pytest.raises(UserError) as error:
        jaxmbrl.train(algorithm, "pendulum", settings={path: optax.linear_schedule(1e-3, 1e-4, 1000)})
    assert str(error.value) == (
        f"{path} must be a constant, got a function: no setting takes one as its schedule{schedules}; a method of your own "
        "can have a schedule in its optax chain (nn.optimizer)"
    )


def test_a_field_of_the_run_among_the_settings_of_a_file_or_a_resume_is_told():
    config = programs.configure("sac", "pendulum")
    values = to_dict(config)
    values["settings"]["seeds"] = 4
    with pytest.raises(UserError) as error:
        programs.parse(values)
    assert str(error.value) == "unknown field 'settings.seeds': it is a field of the run: move it out of settings"
    for settings, message in (
        ({"steps": 9}, "unknown field 'steps': it is an argument of resume, not a setting: write steps=9 beside settings"),
        ({"out": "x"}, "unknown field 'out'; there is: actor_delay"),
    ):
        with pytest.raises(UserError) as error:
            programs.changed(config, settings, {})
        assert str(error.value).startswith(message)


def test_a_setting_of_several_parts_gets_all_its_paths():
    with pytest.raises(UserError) as error:
        jaxmbrl.train("mbpo", "pendulum", learning_rate=1e-3)
    paths = {"agent.learning_rate", "ensemble.learning_rate"}
    assert all(f"'{path}'" in str(error.value) for path in paths)


def test_arguments_in_another_order_are_told():
    order = "the algorithm comes first and the task second: "
    for given, expected in (
        (("pendulum", "sac"), "jaxmbrl.train('sac', 'pendulum')"),
        ((fuse(), "sac"), "jaxmbrl.train('sac', task)"),
        ((fuse(), fuse()), "jaxmbrl.train('sac', task)"),
    ):
        with pytest.raises(UserError) as error:
            jaxmbrl.train(*given)
        assert str(error.value) == order + expected
    assert set(algorithms.METHODS).isdisjoint(envs.names())


def test_anything_else_in_the_place_of_a_folder_is_told():
    for call in (jaxmbrl.evaluate, jaxmbrl.load, jaxmbrl.resume):
        with pytest.raises(UserError, match="give the folder of a run, got a dict: "):
            call({})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jaxmbrl.evaluate("x", n_eval_episodes=3), "unknown argument 'n_eval_episodes' of evaluate: it is called"),
        (lambda: jaxmbrl.evaluate("x", deterministic=True), "unknown argument 'deterministic' of evaluate: an evaluation"),
        (lambda: jaxmbrl.evaluate("x", episode=3), "unknown argument 'episode' of evaluate; did you mean 'episodes'?"),
        (lambda: jaxmbrl.evaluate("x", "3"), "episodes must be a whole number, got '3'"),
        (lambda: jaxmbrl.evaluate("x", 2.5), "episodes must be a whole number, got 2.5"),
        (lambda: jaxmbrl.evaluate("x", True), "episodes must be a whole number, got True"),
        (lambda: jaxmbrl.evaluate("x", "pendulum"), "episodes must be a whole number, got 'pendulum': a run is evaluated"),
        (lambda: jaxmbrl.evaluate("x", fuse()), "episodes must be a whole number, got an object of type Task: a run is e"),
        (lambda: jaxmbrl.evaluate("x", progress=3), "progress must be True, False or a jaxmbrl.training.console.Work, go"),
        (lambda: jaxmbrl.resume("x", 300), "resume takes run by position, got 2 values; give the others by name: steps=."),
        (lambda: jaxmbrl.resume("x", settings=3), "settings must be a mapping such as {'eval_every': 2}, got 3"),
        (lambda: jaxmbrl.train("sac", task="pendulum"), "unknown argument 'task' of train: it is called 'env' here"),
        (lambda: jaxmbrl.train("sac"), "train: missing a required argument: 'env'; it takes algorithm, env, steps, "),
        (lambda: jaxmbrl.load(3), "give the folder of a run, got a int: "),
        (lambda: jaxmbrl.export("x", format="numpy"), "unknown argument 'format' of export: it is called 'to' here"),
        (lambda: video.film("x", "film.mp4"), "a video is written as a GIF: name it film.gif, got 'film.mp4'"),
        (lambda: envs.make_task("x", Fuse(), 0), "task 'x': episode_length must be a whole number of steps, at least 1,"),
        (lambda: envs.make_task("x", Fuse(), max_episode_steps=60), "unknown argument 'max_episode_steps' of make_task: it "
         "is called 'episode_length' here"),
        (lambda: envs.make_task("x", Fuse(), 9, reward_fn=abs), "unknown argument 'reward_fn' of make_task: it is called"),
        (lambda: envs.from_gymnasium(Fuse, "x", max_episode_steps=30), "unknown argument 'max_episode_steps' of from_gymnas"
         "ium: it is called 'episode_length' here"),
        (lambda: envs.from_gymnasium(Fuse, "x", reward=abs), "unknown argument 'reward' of from_gymnasium: the step of"),
        (lambda: envs.make_task("x", Fuse(), 2.5), "task 'x': episode_length must be a whole number of steps, at least 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_told_in_a_line(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_what_cannot_change_on_resuming_is_told():
    config = programs.configure("sac", "pendulum")
    for fields, message in (
        (
            {"learning_rate": 3},
            "agent.learning_rate cannot change when a run is resumed, because learning depends on it (ste",
        ),
        ({"lr": 3}, "agent.learning_rate cannot change when a run is resumed"),
        ({"eval_freq": 3}, "unknown field 'eval_freq': it is one of the settings, settings={'eval_every': 3}"),
        ({"total_timesteps": 3}, "unknown field 'total_timesteps': it is called 'steps' here"),
        ({"out": "x"}, "unknown argument 'out' of resume: a run that is resumed keeps its own"),
    ):
        with pytest.raises(UserError) as error:
            programs.changed(config, {}, fields)
        assert str(error.value).startswith(message)


def test_a_result_is_evaluated_loaded_and_exported_as_its_folder_is(tmp_path):
    settings = SETTINGS | {"warmup_steps": 10}
    result = jaxmbrl.train("linear", "pendulum", steps=20, seeds=2, settings=settings, out=tmp_path / "run")
    memory = result._replace(path=None)
    assert repr(result) == f"Result(linear on pendulum: 20 of 20 steps, 2 seeds, in {tmp_path / 'run'})"
    assert repr(memory) == "Result(linear on pendulum: 20 of 20 steps, 2 seeds, in memory)"
    ours, theirs = (jaxmbrl.evaluate(run, 2) for run in (memory, tmp_path / "run"))
    np.testing.assert_array_equal(ours.returns, theirs.returns)
    assert ours[1:] == theirs[1:]
    loaded = jaxmbrl.load(memory)
    assert loaded.state is result.state
    assert repr(loaded) == "Loaded(policy, state of 2 seeds, task pendulum)"
    with pytest.raises(UserError, match="policy takes the state of one seed, got that of all seeds: policy"):
        loaded.policy(result.state)
    first = jaxmbrl.load(tmp_path / "run").policy(jax.tree.map(lambda leaf: leaf[0], result.state))
    with pytest.raises(UserError, match=r"act takes \(memory, observation, key\): before the first step"):
        first.act(np.zeros(3))
    with pytest.raises(UserError, match=r"an observation of task 'pendulum' has the shape \[3\], got \[4\]"):
        first.act((), np.zeros(4), jax.random.key(0))
    assert first.act((), np.zeros(3, np.float32), jax.random.key(0))[0].shape == (1,)
    for wrong, hint in (
        (lambda: result.predict, "a Result has no 'predict': policy, state, task = jaxmbrl.load"),
        (lambda: loaded.predict, "a Loaded has no 'predict': policy, state"),
        (lambda: result.save, "a Result has no 'save': jaxmbrl.train"),
        (lambda: result.unknown, "a Result has no 'unknown'$"),
    ):
        with pytest.raises(AttributeError, match=hint):
            wrong()
    written = [
        jaxmbrl.export(run, "numpy", tmp_path / name).about for run, name in ((memory, "a"), (tmp_path / "run", "b"))
    ]
    assert written[0] == written[1]
    with pytest.raises(UserError, match="a result in memory has no folder to write into: give out"):
        jaxmbrl.export(memory, "numpy")
    with pytest.raises(UserError, match="a result in memory cannot be resumed: "):
        jaxmbrl.resume(memory, steps=40)
    assert jaxmbrl.resume(result).env_steps == 20


@pytest.mark.parametrize(
    ("steps", "warmup", "data", "much"),
    [
        (40, 41, False, "nothing"),
        (40, 40, False, "at its last step only"),
        (40, 50, True, "nothing"),
        (41, 40, False, None),
    ],
)
def test_a_warmup_that_leaves_nothing_to_learn_from_is_told(steps, warmup, data, much):
    config = programs.configure("sac", "pendulum", settings={"epoch_steps": 1, "warmup_steps": warmup}, steps=steps)
    config = dataclasses.replace(config, data="x.npz" if data else None)
    unit, advice = ("rows of the data", "") if data else ("steps", " or raise steps")
    end = f"{steps} {unit}, and updates begin after warmup_steps ({warmup}): lower warmup_steps{advice}"
    told = (
        (None, None)
        if much is None
        else (f"the run learns {much}: it takes {end}", f"the run has learned {much}: it took {end}")
    )
    assert (programs.unlearned(config, steps), programs.unlearned(config, steps, over=True)) == told


def test_a_planner_in_the_true_simulator_and_a_method_without_warmup_need_no_updates():
    for algorithm, task, settings in (("pets", "pendulum", {"model": "true"}), ("q-learning", "dyna-maze", {})):
        assert programs.unlearned(programs.configure(algorithm, task, settings=settings), 1) is None


@pytest.mark.parametrize(("steps", "whole", "end"), [(30, 40, ["the run has learned nothing"]), (10, 20, [])])
def test_a_warmup_and_rounded_steps_are_warned_of_in_python(steps, whole, end):
    with pytest.warns(jaxmbrl.RunWarning) as heard:
        jaxmbrl.train("linear", "pendulum", steps=steps, seeds=2, settings=SETTINGS | {"warmup_steps": 50})
    begin = [f"{steps} steps are rounded up to {whole}, whole epochs of 20", "the run learns nothing"]
    assert [str(warning.message).partition(":")[0] for warning in heard] == begin + end
    package = str(Path(jaxmbrl.__file__).parent)
    assert not any(warning.filename.startswith(package) for warning in heard), "they are at the caller's line"


@pytest.mark.parametrize("at", [40, pytest.param(0, marks=pytest.mark.promises)])
def test_an_interrupted_run_says_how_to_go_on(at, tmp_path, monkeypatch):
    """At a KeyboardInterrupt, which Python raises between any two instructions."""
    real = Session.run_to

    def run_to(self, end):
        if self.env_steps == at and not interrupted:
            interrupted.append(at)
            raise KeyboardInterrupt
        real(self, end)

    monkeypatch.setattr(Session, "run_to", run_to)
    interrupted, run = [], tmp_path / "a run"
    with pytest.raises(KeyboardInterrupt) as error:
        train("pendulum", out=run, checkpoint={"every": 100})
    saved = at
    assert error.value.__notes__ == [
        f"jaxmbrl: the run is saved at {saved} of 60 steps; jaxmbrl.resume('{run}') continues it"
    ]
    last = RunFolder.open(run).read_events()[-1]
    assert (last["kind"], last["env_steps"], last["error"]) == ("stop", saved, "KeyboardInterrupt")
    assert jaxmbrl.resume(run).env_steps == 60


def test_a_run_interrupted_before_its_first_checkpoint_starts_again(tmp_path, monkeypatch):
    def save(self, wait=False):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Session, "save", save)
        with pytest.raises(KeyboardInterrupt) as error:
            jaxmbrl.train("linear", "pendulum", steps=40, settings=SETTINGS, out=run, hyper={"discount": 0.5})
    begins = f"jaxmbrl.resume('{run}') starts it from the beginning"
    assert error.value.__notes__ == [f"jaxmbrl: the run is interrupted before its first checkpoint; {begins}"]
    found = status.look(run)
    assert (found.state, found.env_steps) == ("stopped", 0)
    with pytest.raises(UserError, match=r"has no checkpoint yet: .*; to resume it starts it from the beginning"):
        jaxmbrl.evaluate(run)
    result = jaxmbrl.resume(run)
    assert result.env_steps == 40 and float(result.state.discount[0]) == 0.5


def cart():
    """A class of environments of the user's own."""
    gymnasium = pytest.importorskip("gymnasium")

    class Cart(gymnasium.Env):
        observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 0.0, False, False, {}

    return Cart


@pytest.mark.parametrize(
    ("task", "name", "call"),
    [
        (cart, "Cart", "envs.register('Cart', lambda: envs.from_gymnasium(Cart, name='Cart'))"),
        (fuse, "fuse", "envs.register('fuse', fuse)"),
        (functools.partial(fuse), "fuse", "envs.register('fuse', function)"),
        (fuse(), "fuse", "envs.register('fuse', lambda: task)"),
    ],
)
def test_a_task_that_was_given_to_a_run_is_registered_as_told(task, name, call, tmp_path, monkeypatch):
    def save(self, wait=False):
        raise KeyboardInterrupt

    run, task = tmp_path / "run", cart() if task is cart else task
    monkeypatch.setattr(Session, "save", save)
    with pytest.raises(KeyboardInterrupt) as error:
        jaxmbrl.train("linear", task, steps=40, settings=SETTINGS, out=run)
    assert error.value.__notes__[0].endswith(f"from the beginning; in another process, call {call} before that")
    del envs.TASKS[name]
    with pytest.raises(UserError) as refused:
        jaxmbrl.resume(run)
    begins = f"{run} is a run of the task '{name}', which is not registered in this program: call {call} first"
    assert str(refused.value).startswith(begins)


def test_an_interrupted_run_in_memory_says_that_it_is_lost(monkeypatch):
    def run_to(self, end):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "run_to", run_to)
    with pytest.raises(KeyboardInterrupt) as error:
        train("pendulum")
    assert "the run had no folder and is lost; give train an out" in error.value.__notes__[0]


@pytest.mark.parametrize("given", ["pendulum", object()])
def test_a_check_of_what_is_no_task_says_what_makes_one(given):
    with pytest.raises(
        UserError, match=f"^envs.check takes a task, got {type(given).__name__}: envs.make makes one of a name"
    ):
        envs.check(given)
