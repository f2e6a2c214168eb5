"""The command that exports a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxmbrl.commands import options

if TYPE_CHECKING:
    from jaxmbrl.exporting.exporter import PolicyFile


def export(words: list[str]) -> int:
    """`jaxmbrl export`: write a run's policy to a file that is used without this package."""
    from jaxmbrl.exporting import exporter

    parser = options.parser(
        "export", description="Write a run's deterministic policy to a file that is used without this package."
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    kinds = "'stablehlo' (any policy, loaded with JAX), 'onnx' (with ONNX Runtime) or 'numpy' (with NumPy)"
    parser.add_argument("--to", required=True, metavar="FORMAT", help=kinds)
    parser.add_argument("--seed", type=options.whole, metavar="S", help="the seed (default: the run's first)")
    parser.add_argument("--out", metavar="FILE", help="a new file (default: 'policy' in RUN, overwritten)")
    batch = "observations that it takes at once, [N, ...] (default: one, without this axis)"
    parser.add_argument("--batch", type=options.whole, metavar="N", help=batch)
    args = parser.parse_args(words)
    with options.warnings_in_a_line():
        written = exporter.export(args.run, args.to, args.out, args.seed, args.batch)
    for line in describe(written):
        print(line)
    print(f"\nThis program loads it, without jaxmbrl:\n\n{written.loader}", end="")
    return 0


def describe(written: PolicyFile) -> list[str]:
    """What was written, and what the file takes and returns, as lines for the user."""
    about = written.about
    lines = [
        f"policy   {about['algorithm']} on {about['task']}, seed {about['seed']}, after {about['env_steps']:,} steps",
        f"file     {written.path}, {written.size:,} bytes",
        f"input    observation {_array(about['observation'])}",
        f"output   action {_array(about['action'])}",
    ]
    if about["memory"]:
        lines.append("memory   " + ", ".join(f"{entry['name']} {_array(entry)}" for entry in about["memory"]))
    if "actuator_low" in about["action"]:
        low, high = (_numbers(about["action"][name]) for name in ("actuator_low", "actuator_high"))
        lines.append(f"actuator low {low}, high {high}")
    lines += [f"         {note}" for note in about["notes"]]
    if written.difference is not None:
        lines.append(f"checked  largest difference to the policy on random observations: {written.difference:.1e}")
    return lines


def _array(of: dict[str, Any]) -> str:
    text = f"{of['dtype']} {of['shape']}"
    if "choices" in of:
        return f"{text}, 0 to {of['choices'] - 1}"
    if of.get("low") is None or of.get("high") is None:
        return text
    return f"{text} in [{of['low']:g}, {of['high']:g}]"


def _numbers(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
