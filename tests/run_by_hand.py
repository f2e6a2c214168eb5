"""Run folders written by hand, so that what a report should say of them is known."""

import json

from jaxmbrl.core.config import to_dict
from jaxmbrl.training import programs
from jaxmbrl.training.run_folder import RunFolder, event_of


def curve(seed, step):
    """The return of a seed at a step."""
    return -1000.0 + step * (1 + 0.1 * seed)


def row(seed, step, **more):
    """A row of metrics in which nothing is odd; `more` has `__` for `/`."""
    found = {"epoch": step // 200, "env_steps": step, "seed": seed, "wall_time": 10 + step / 50}
    found |= {"train/return": curve(seed, step) - 5, "train/episodes": 1, "time/epoch": 4.0, "time/train": 3.0}
    if step % 400 == 0:
        found |= {"eval/return": curve(seed, step), "time/evaluate": 0.5}
    return found | {name.replace("__", "/"): value for name, value in more.items()}


def write(path, algorithm="sac", steps=1200, seeds=3, seed=0, env="pendulum", rows=None, hyper=None, events=(), **settings):
    """A run folder at `path`, with a row for each seed and epoch of 200 steps unless `rows` are given."""
    preset = "small" if algorithm in ("mbpo", "pets") else None
    config = programs.configure(algorithm, env, preset, settings, steps, seeds=seeds, seed=seed)
    folder = RunFolder.create(path)
    folder.write_config(to_dict(config))
    folder.write_environment({"hyper": hyper or {}})
    folder.append_events([event_of("start"), event_of("compile", what="training", seconds=7.5, memory=2_500_000), *events])
    if rows is None:
        rows = [row(seed + k, step) for step in range(200, steps + 1, 200) for k in range(seeds)]
    if rows:
        folder.append_metrics(rows)
    return path


def data_of(made):
    """The charts that a page's script is given."""
    text = made.decode()
    start = text.index('<script type="application/json" id="data">')
    return json.loads(text[text.index(">", start) + 1 : text.index("</script>", start)])
