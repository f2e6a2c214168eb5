"""Write the tables of speed and returns in the README and the pages of `docs` from `benchmarks/results`.

    python benchmarks/readme.py [--check]

With `--check` nothing is written; the script fails if a page differs from the results.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxmbrl import algorithms
from jaxmbrl.algorithms import Card, Goal

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Row = tuple[str, ...]

PEERS = {
    "plan-cartpole": ("one plan of CEM, 350 candidates x 20 particles x 15 steps x 5 iterations", "seconds", "s"),
    "plan-cartpole-bfloat16": ("the same with our products between hidden layers in bfloat16", "seconds", "s"),
    "plan-halfcheetah": ("one plan of CEM, 400 x 20 x 30 x 5, 18 observations", "seconds", "s"),
    "fit": ("ensemble fit, 7 members of 4 x 200, batch 256", "updates a second", "updates/s"),
    "fit-bfloat16": ("the same with our products between hidden layers in bfloat16", "updates a second", "updates/s"),
    "sac": ("SAC, 2 x 256, batch 256", "updates a second", "updates/s"),
    "sac-bfloat16": ("the same with our products between hidden layers in bfloat16", "updates a second", "updates/s"),
    "mbpo": ("MBPO on InvertedPendulum, each fit by its own early stopping", "environment steps a second", "steps/s"),
    "mbpo-fixed": ("MBPO on InvertedPendulum, 20 epochs per fit", "environment steps a second", "steps/s"),
    "mbpo-fixed-bfloat16": (
        "the same with our products between hidden layers in bfloat16",
        "environment steps a second",
        "steps/s",
    ),
    "pets": ("PETS on cartpole until a return of 195, time per seed", "seconds a seed", "s"),
    "brax-ppo": (
        "PPO with Brax's inverted pendulum, 64 environments x 32 steps",
        "environment steps a second",
        "steps/s",
    ),
    "brax-sac": ("SAC with Brax's inverted pendulum, 16 environments", "updates a second", "updates/s"),
}
"""Case of `peers.py` -> (description, name of the displayed number, its unit)."""


LATENT_PEERS = {
    "dreamer-small": ("Dreamer, an update at the widths of `small`", "update"),
    "dreamer-1m": ("Dreamer, an update at the widths of `size1m`", "update"),
    "dreamer": ("Dreamer, an update at the size of `v3-2023`", "update"),
    "dreamer-act-small": ("Dreamer, an action at the widths of `small`", "environment step"),
    "dreamer-act": ("Dreamer, an action at the size of `v3-2023`", "environment step"),
    "td-mpc2-small": ("TD-MPC2, an update at the size of `small`", "update"),
    "td-mpc2": ("TD-MPC2, an update at the size of `size5m`", "update"),
    "td-mpc2-plan-small": ("TD-MPC2, a plan at the size of `small`", "plan"),
    "td-mpc2-plan": ("TD-MPC2, a plan at the size of `size5m`", "plan"),
}
"""Case of `peers.py` that compares CPU time -> (description, unit)."""


def read(name: str) -> dict[str, Any]:
    """The results of one file."""
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def table(head: Row, rows: Iterable[Row]) -> list[str]:
    """Lines of a Markdown table. The columns after the first have numbers."""
    return [f"| {' | '.join(row)} |" for row in (head, ("---", *["---:"] * (len(head) - 1)), *rows)]


def number(value: float) -> str:
    """Three significant digits, or a whole number from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def beside_peers() -> list[str]:
    """The table of the results of `peers.py`."""
    found, rows = read("peers-cpu"), []
    for name, (about, figure, unit) in PEERS.items():
        if name not in found:
            continue
        case = found[name]
        peer, ratio = case["peer"]["name"], case["times as fast"]
        span = f" ({number(ratio['least'])} to {number(ratio['most'])})" if len(case["pairs"]) > 1 else ""
        rows.append(
            (
                about,
                f"{number(case['jaxmbrl'][figure])} {unit}",
                f"{peer}: {number(case[peer][figure])} {unit}",
                f"{number(ratio['median'])}{span}",
            )
        )
    return table(("on two CPU cores", "jaxmbrl", "other package", "speedup"), rows)


def beside_latent_peers() -> list[str]:
    """The table of the results of `peers.py` with latent models, on one core."""
    found, rows = read("peers-latent-cpu"), []
    for name, (about, unit) in LATENT_PEERS.items():
        if name not in found:
            continue
        case = found[name]
        peer, ratio = case["peer"]["name"], case["times as fast"]
        sides = case["jaxmbrl"], case[peer]
        cpu = (f"{number(side[f'CPU ms for each {unit}'])} ms" for side in sides)
        parameters = (f"{side['parameters']:,.0f}" for side in sides)
        span = f"{number(ratio['median'])} ({number(ratio['least'])} to {number(ratio['most'])}, {len(case['pairs'])})"
        rows.append((about, *parameters, next(cpu), f"{peer}: {next(cpu)}", span))
    head = ("on one core", "our parameters", "theirs", "jaxmbrl", "other package", "speedup (range, pairs)")
    return table(head, rows)


def beside_limits() -> list[str]:
    """The table of the results of `limits.py`."""
    rows = []
    for about, figures in read("limits-cpu").items():
        unit = "GFLOP/s" if "GFLOP/s" in figures else "GB/s"
        limit = "peak" if unit == "GFLOP/s" else "memory's"
        cells = (number(figures[unit]), number(figures[f"{limit} {unit}"]))
        rows.append((about, *(f"{cell} {unit}" for cell in cells), f"{figures[f'share of {limit}']:#.2g}"))
    return table(("compared with the machine's limit", "reached", "limit", "share of limit"), rows)


MOST = {
    "CartPole-v1": 500,
    "CliffWalking": -13,
    "bsuite/Catch": 1,
    "cartpole-continuous": 200,
    "cartpole-swingup": 40,
    "cartpole-swingup/angle": 40,
    "pilco-pendulum": 40,
    "InvertedPendulum-v5": 1000,
}
"""Highest possible return of a task."""


@functools.cache
def records() -> Mapping[str, Card]:
    """The records of all methods, read once."""
    return algorithms.cards()


def cases(*methods: str) -> list[tuple[dict[str, Any], Goal]]:
    """(results of `learning.py`, goal in the record) of each case of these methods, or of all. They are sorted by the order
    of the registry, by task, by steps, and then by the order of the method's goals."""
    cards, found = records(), []
    for number, (method, card) in enumerate(cards.items()):
        for place, goal in enumerate(card.goals):
            file = RESULTS / f"{goal.name}.json"
            if file.exists() and (not methods or method in methods):
                case = json.loads(file.read_text())
                found.append(((number, case["env"], case["steps"], place), case, goal))
    return [(case, goal) for _, case, goal in sorted(found, key=lambda entry: entry[0])]


def value(number: float, digits: int = 1) -> str:
    """A return with so many digits after the point; those of tasks whose returns are below 1 have two."""
    return f"{number:,.{digits}f}" if abs(number) >= 1 or number == 0 else f"{number:.2f}"


def games() -> list[str]:
    """The table of the results of `tic_tac_toe.py`: games won, drawn and lost by UCT."""
    rows = []
    for of in read("tic-tac-toe")["rows"]:
        results = (
            " / ".join(str(of[player][what]) for what in ("won", "drawn", "lost")) for player in ("perfect", "random")
        )
        rows.append((f"{of['simulations']:,}", f"{of['exploration']:g}", *results))
    return table(("simulations", "C", "against a perfect player: won / drawn / lost", "against a random player"), rows)


def returns(*methods: str, tasks: str = "") -> list[str]:
    """The table of the results of `learning.py`, of tasks with `tasks` in their names. With `methods`, it also has the mean
    of each seed."""
    rows: list[Row] = []
    for case, goal in [found for found in cases(*methods) if tasks in found[0]["env"]]:
        words = [f"`{case['algorithm']}`", goal.about]
        about = [f"{case['episodes']} start states"]
        about += [f"at most {MOST[case['env']]:,}"] if case["env"] in MOST else []
        if "oracle" in case:
            about.append(f"planner in the true simulator {case['oracle']:,.1f}, random policy {case['random']:,.1f}")
        low, high = case["interval"]
        rows.append(
            (
                ", ".join(words),
                f"`{case['env']}` ({'; '.join(about)})",
                f"{case['steps']:,}",
                value(case["mean"]),
                f"{value(case['iqm'])} [{value(low)}, {value(high)}]",
                *([", ".join(map(value, case["per_seed"]))] if methods else []),
                at_goal(case, goal),
            )
        )
    each = ["each seed"] if methods else []
    head = ("method", "task", "steps", "mean return", "interquartile mean [95% interval]", *each, "seeds at the goal")
    # The first two columns are text, the others numbers.
    return [line.replace("| --- | ---: |", "| --- | --- |", 1) for line in table(head, rows)]


FAMILIES = {
    "tabular": "tabular Dyna",
    "shooting": "planning with a learned model",
    "dyna": "learning in imagined transitions",
    "value_expansion": "value expansion",
    "value_gradients": "gradients through the model",
    "trajectory": "guided policy search",
    "latent": "latent world models",
    "search": "tree search",
    "on_policy": "on-policy, in the task or in a model",
    "model_free": "model-free, off-policy",
    "imitation": "imitation",
}
"""Family in the records -> its title, in the order of the README."""


def by_family() -> list[str]:
    """The table of all methods by family: of each the first measured case with a goal, or else the first measured one."""
    cards, rows = records(), []
    if {card.family for card in cards.values()} != {*FAMILIES}:
        raise SystemExit("the families of readme.py are not those of the records")
    pages = {method: page for page, methods in PAGES.items() for method in methods}
    measured = {goal.name: (case, goal) for case, goal in cases()}
    for family, title in FAMILIES.items():
        names = [name for name, card in cards.items() if card.family == family]
        for method in names:
            in_order = [measured[goal.name] for goal in cards[method].goals if goal.name in measured]
            case, goal = next((found for found in in_order if found[1].seeds_at_goal), in_order[0])
            low, high = case["interval"]
            rows.append(
                (
                    title if method == names[0] else "",
                    f"[`{method}`]({pages[method]})",
                    f"`{case['env']}`",
                    f"{case['steps']:,}",
                    f"{value(case['iqm'])} [{value(low)}, {value(high)}]",
                    at_goal(case, goal),
                )
            )
    head = ("family", "method", "task", "steps", "return: interquartile mean [95% interval]", "seeds at the goal")
    return [line.replace("| --- | ---: | ---: |", "| --- | --- | --- |", 1) for line in table(head, rows)]


def at_goal(case: dict[str, Any], goal: Goal) -> str:
    """How many seeds of a case reached its goal."""
    if not goal.seeds_at_goal:
        return "no goal"
    best = " in their best evaluation" if "best_per_seed" in case else ""
    return f"{case['seeds_at_goal']} of {case['seeds']} at {value(case['goal'], 0)}{best}"


def in_bfloat16() -> list[str]:
    """The returns of cases with matrix products in bfloat16, and of the same cases in float32."""
    found = {case["case"]: case for case, _ in cases()}
    rows = []
    for name, case in found.items():
        if name.endswith("-bfloat16"):
            both = [found[name.removesuffix("-bfloat16")], case]
            cells = ("{iqm:,.1f} [{interval[0]:,.1f}, {interval[1]:,.1f}]".format_map(of) for of in both)
            rows.append(
                (f"`{case['algorithm']}` on `{case['env']}`, {case['steps']:,} steps, {case['seeds']} seeds", *cells)
            )
    return table(("interquartile mean of the return [95% interval]", "float32", "bfloat16"), rows)


def compiling() -> list[str]:
    """The table of the results of `compiling.py`."""
    rows = []
    for about, figures in read("compiling-cpu").items():
        seconds = (number(figures[f"seconds to compile, {how}"]) for how in ("cold", "cached"))
        memory = (number(figures[f"MB, {of}"]) for of in ("state", "temporary"))
        rows.append((about.removesuffix(", seeds: 1"), *seconds, *memory))
    return table(("one seed", "compile, cold (s)", "compile, cached (s)", "state (MB)", "other memory (MB)"), rows)


def drawing() -> list[str]:
    """The table of the results of `pixels.py`, in thousands a second."""
    columns = [f"images/s, {what}" for what in ("32 x 32, grey", "32 x 32", "64 x 64")]
    columns += [f"steps/s, {what}" for what in ("not drawn", "32 x 32", "64 x 64")]
    rows = [
        (f"`{name}`", *(number(of[at] / 1000) if at in of else "-" for at in columns))
        for name, of in read("pixels-cpu").items()
    ]
    return table(("thousands a second", *columns), rows)


def latent_speed() -> list[str]:
    """The table of the results of `latent.py`."""
    counts, speeds = ("windows of a batch", "rows of a window"), ("updates a second", "GFLOP per update")
    rows = [
        (
            title,
            *(f"{of[name]:.0f}" for name in counts),
            *(number(of[name]) for name in speeds),
            f"{of['share of peak']:.1%}",
            number(1000 * of["ms per environment step"]),
        )
        for title, of in read("latent-cpu").items()
    ]
    return table(("`dreamer`", *counts, *speeds, "share of peak", "us per environment step"), rows)


PARTS = ("collect", "plan", "fit", "imagine", "update")


def split() -> list[str]:
    """The table of the results of `split.py`: shares of the training program's work, then of the time of a whole run."""
    rows = []
    for case in read("split-cpu").values():
        (about, run), (_, program) = case["tables"].items()
        shares = [f"{program[part]:.1%}" if part in program else "-" for part in PARTS]
        rows.append((about.partition(":")[0], *shares, f"{run['evaluate']:.1%}", f"{run['host']:.1%}"))
    head = (*(f"{part} (of work)" for part in PARTS), "evaluate (of time)", "host (of time)")
    return table(("shares of the program's work and of the run's time", *head), rows)


def speed() -> list[str]:
    """Both speed tables."""
    return [*beside_peers(), "", *beside_limits()]


def of(*methods: str, tasks: str = "") -> Callable[[], list[str]]:
    """A function that returns `returns(*methods, tasks=tasks)`."""
    return lambda: returns(*methods, tasks=tasks)


PAGES = {
    "docs/pets.md": ("pets",),
    "docs/mbpo.md": ("mbpo",),
    "docs/bmpo.md": ("bmpo",),
    "docs/ampo.md": ("ampo",),
    "docs/mopo.md": ("mopo", "bc"),
    "docs/dhmbpo.md": ("dhmbpo",),
    "docs/value_expansion.md": ("mve", "steve"),
    "docs/value_gradients.md": ("svg", "maac", "bptt"),
    "docs/pilco.md": ("pilco",),
    "docs/sac.md": ("sac", "redq", "droq"),
    "docs/td3.md": ("td3", "ddpg"),
    "docs/mpo.md": ("mpo",),
    "docs/dqn.md": ("dqn",),
    "docs/pixels.md": ("drq-v2",),
    "docs/partial_observation.md": ("recurrent-sac",),
    "docs/qt_opt_naf.md": ("qt-opt", "naf"),
    "docs/on_policy.md": ("ppo", "trpo", "a2c", "reinforce"),
    "docs/model_policy_optimisation.md": ("me-trpo", "slbo"),
    "docs/distillation.md": ("distillation",),
    "docs/gps.md": ("gps",),
    "docs/search.md": ("uct", "alphazero", "muzero"),
    "docs/latent_models.md": ("dreamer", "plan2explore", "world-models", "planet", "td-mpc2", "alm", "latent-mpc"),
    "docs/tabular.md": ("q-learning", "q-planning", "dyna-q", "dyna-q-plus", "prioritized-sweeping", "linear-dyna"),
}
"""Page -> the methods that it describes."""

TABLES: dict[str, dict[str, Callable[[], list[str]]]] = {page: {"returns": of(*methods)} for page, methods in PAGES.items()}
TABLES |= {
    "README.md": {"methods": by_family, "speed": speed},
    "docs/results.md": {"returns": returns},
    "docs/speed.md": {"latent": beside_latent_peers, "bfloat16": in_bfloat16, "split": split, "compiling": compiling},
    "docs/pixels.md": {"returns": of("sac", "drq-v2", "dqn", "dreamer", tasks="pixels/"), "drawing": drawing},
    "docs/partial_observation.md": {"returns": of("sac", "recurrent-sac", "dreamer", tasks="masked/")},
}
TABLES["docs/search.md"]["games"] = games
TABLES["docs/latent_models.md"]["speed"] = latent_speed
"""Page -> its tables, by name."""


def written(
    page: str, text: str, tables: Mapping[str, Callable[[], list[str]]], script: str = "benchmarks/readme.py"
) -> str:
    """The `text` of a page with its `tables`, by name, which `script` writes. Raises SystemExit if a table has no place."""
    for name, make in tables.items():
        marks = f"<!-- {name}: written by {script} -->", f"<!-- end of {name} -->"
        before, begin, rest = text.partition(marks[0])
        _, end, after = rest.partition(marks[1])
        if not (begin and end):
            raise SystemExit(f"{page} needs the lines {marks[0]} and {marks[1]}")
        text = "\n".join([f"{before}{begin}", "", *make(), "", f"{end}{after}"])
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for page, tables in TABLES.items():
        now = (ROOT / page).read_text()
        then = written(page, now, tables)
        if args.check and now != then:
            raise SystemExit(f"{page} differs from benchmarks/results: run python benchmarks/readme.py")
        if not args.check:
            (ROOT / page).write_text(then)


if __name__ == "__main__":
    main()
