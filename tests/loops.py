"""Copies of a buffer in the loops of compiled programs."""

import re

import jax


def loop_bodies(compiled):
    """The text of every computation that a while loop of the compiled program runs, transitively."""
    text = compiled.as_text()
    computations = {m[1]: m[0] for m in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n.*?^\}", text, re.M | re.S)}
    waiting = re.findall(r"body=%?([\w.\-]+)", text)
    assert waiting, "the program has no loop"
    seen = set()
    while waiting:
        name = waiting.pop()
        if name not in seen and name in computations:
            seen.add(name)
            waiting += re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", computations[name])
    return "\n".join(computations[name] for name in seen)


def copies(loop, buffer, rows, sizes=(4096,)):
    """Copies of leaves with an axis of one of these `sizes` inside the compiled `loop(buffer, rows, key)`."""
    compiled = jax.jit(loop, donate_argnums=0).lower(buffer, rows, jax.random.key(0)).compile()
    bodies, found = loop_bodies(compiled), []
    for size in sizes:
        assert re.search(rf"\[(\d+,)*{size}[,\]]", bodies)
        found += re.findall(rf"= \w+\[(?:\d+,)*{size}[\d,]*\]\S* copy\(", bodies)
    return found
