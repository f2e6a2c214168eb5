"""The search for the operation that made a value that is not finite."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmbrl.debug import origins
from jaxmbrl.debug.nonfinite import find
from jaxmbrl.debug.origins import ARGUMENT


def line_of(function, text):
    """`FILE:LINE` of the line of a function that holds a text."""
    lines, first = inspect.getsourcelines(function)
    return f"test_nonfinite.py:{first + next(i for i, line in enumerate(lines) if text in line)} in"


def array(*values):
    """Values as an array on the device, without an operation that would have to be compiled."""
    return jax.device_put(np.array(values))


def logarithm(x):
    return jnp.sum(jnp.log(x) * 2)


def test_an_operation_in_a_function_that_is_called():
    found = find(jax.jit(logarithm), array(1.0, -3.0, 2.0))
    assert (found.operation, found.kind, found.type, found.element) == ("log", "nan", "float32[3]", (1,))
    (operand,) = found.operands
    assert operand == origins.Operand("float32[3]", -3.0, 2.0, -3.0, True)
    assert found.path == "jit logarithm / log"
    assert line_of(logarithm, "jnp.log") in found.where[0] and found.where[0].endswith("in logarithm")
    assert not any("/jax/" in line or "debug/nonfinite.py" in line for line in found.where)


def test_a_function_that_is_finite():
    assert find(logarithm, array(1.0, 3.0, 2.0)) is None
    assert find(lambda x: (x, jax.random.key(0), jnp.arange(3)), array(1.0, 1.0, 1.0)) is None


@pytest.mark.parametrize("reverse", [False, True])
def test_a_step_of_a_scan_by_its_carry(reverse):
    def body(carry, x):
        return carry - x, jnp.cos(carry)

    def function(start):
        last, _ = jax.lax.scan(lambda c, x: (jnp.sqrt(body(c, x)[0]), None), start, jnp.full(9, 2.0), reverse=reverse)
        return last

    # 30, 5.29, 1.81, then the root of -0.19 in the fourth step.
    found = find(function, 30.0)
    assert (found.operation, found.path) == ("sqrt", "scan step 2 / sqrt")
    assert found.operands[0].at == pytest.approx(-0.186, abs=0.01)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_row_that_a_scan_returns(reverse):
    rows = array([3.0, 3.0], [2.0, 2.0], [1.0, -1.0], [-5.0, 7.0])

    def function(rows):
        total, found = jax.lax.scan(lambda c, x: (c + x, (x * 2, jnp.log(x))), jnp.zeros(2), rows, reverse=reverse)
        return total, found[1]

    found = find(function, rows)
    assert (found.operation, found.path) == ("log", f"scan step {1 if reverse else 2} / log")
    assert found.operands[0].at == -1.0 and found.element == (1,)


def test_a_row_that_a_scan_reads():
    def function(x):
        return jax.lax.scan(lambda c, row: (c + row.sum(), None), 0.0, jnp.arcsin(x).reshape(3, 2))[0]

    found = find(function, array(0.1, 0.2, 0.3, 0.4, 1.5, 0.6))
    assert (found.operation, found.element, found.operands[0].high) == ("asin", (4,), 1.5)


def test_what_a_scan_closes_over():
    def function(x):
        rate = 1 / x
        return jax.lax.scan(lambda c, _: (c + rate, None), 0.0, None, length=3)[0]

    found = find(function, 0.0)
    assert (found.operation, found.kind, found.path) == ("div", "inf", "div")


def test_a_fault_that_hops_between_the_parts_of_a_carry():
    def function(a, b, c):
        def body(carry, i):
            a, b, c = carry
            return (a + b, b + c, jnp.where(i == 3, jnp.log(c - 5), c)), None

        return jax.lax.scan(body, (a, b, c), jnp.arange(9))[0][0]

    found = find(function, 1.0, 1.0, 1.0)
    assert (found.operation, found.path) == ("log", "scan step 3 / log")


def test_a_step_of_a_while_loop():
    def function(x, steps):
        return jax.lax.fori_loop(0, steps, lambda i, x: jnp.log(x), x)

    found = find(function, 20.0, 7)
    assert (found.operation, found.path) == ("log", "while step 4 / log")
    assert found.operands[0].at == pytest.approx(np.log(np.log(np.log(np.log(20.0)))), rel=1e-4)
    assert find(lambda x: jax.lax.while_loop(lambda x: x < 1e3, lambda x: x * 2, x), 1.0) is None


def test_a_while_loop_whose_rows_end_apart():
    """A row that has ended is left as it is, whatever the loop does for the others."""

    def function(x, limits):
        def halve(x, limit):
            return jax.lax.while_loop(lambda x: x > limit, lambda x: jnp.sqrt(x - 1.0), x)

        return jax.vmap(halve)(x, limits)

    # 5 -> 2 -> 1 -> 0 -> nan; 5 -> 2 ends; 10 -> 3 -> 1.41 -> 0.64 -> nan.
    x, limits = array(5.0, 5.0, 10.0), array(-1.0, 2.0, 0.0)
    assert np.isnan(function(x, limits)).tolist() == [True, False, True]
    for row, step, at in ((0, 3, 0.0 - 1.0), (2, 3, 0.643595 - 1.0)):
        found = find(function, x, limits, element=row)
        assert (found.operation, found.path, found.element) == ("sqrt", f"while step {step} / sqrt", (row,))
        assert found.operands[0].at == pytest.approx(at, rel=1e-4)
    assert find(function, x, limits, element=1) is None


def test_a_loop_within_a_loop():
    def function(x):
        def inner(x, _):
            return jnp.sqrt(x - 0.5), x

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=2)[0], None

        return jax.lax.scan(outer, x, None, length=5)[0]

    found = find(jax.jit(function), 1.0)
    assert found.operation == "sqrt" and found.path == "jit function / scan step 1 / scan step 0 / sqrt"


@pytest.mark.parametrize("taken", [0, 1])
def test_a_branch(taken):
    def function(i, x):
        return 2 * jax.lax.switch(i, [jnp.log, jnp.arccosh], x)

    found = find(function, taken, -1.0)
    assert (found.operation, found.path.split(" / ")[0]) == (["log", "acosh"][taken], f"cond branch {taken}")


def test_a_branch_that_is_handed_what_is_not_finite():
    def function(x):
        y = jnp.log(x)
        return jax.lax.cond(x < 0, lambda y: y + 1, lambda y: 0.0, y)

    assert find(function, -1.0).operation == "log"
    assert find(lambda x: jax.lax.cond(x < 0, lambda: 0.0, lambda: jnp.log(x - 2)), -1.0) is None


def test_under_vmap_only_the_faulty_row_is_looked_at():
    def function(x):
        return jax.lax.cond(x > 0, lambda x: jnp.log(x - 2), lambda x: -x, x)

    found = find(jax.vmap(function), array(-1.0, 3.0, 1.0))
    assert (found.operation, found.element, found.operands[0].at) == ("log", (2,), -1.0)
    assert find(jax.vmap(function), array(-1.0, 3.0, -2.0)) is None
    second = find(jax.vmap(function), array(1.0, 3.0, 1.5), element=2)
    assert second.element == (2,)


def test_a_function_with_a_derivative_of_its_own():
    @jax.custom_jvp
    def own(x):
        return jnp.log(x)

    own.defjvp(lambda primals, tangents: (own(*primals), tangents[0] / jnp.sqrt(primals[0])))
    assert find(own, -1.0).operation == "log"
    assert find(jax.grad(own), 0.0).operation == "div"

    @jax.custom_vjp
    def other(x):
        return jnp.log(x)

    other.defvjp(lambda x: (other(x), x), lambda x, g: (g * jnp.sqrt(x),))
    assert find(other, -1.0).operation == "log"
    assert find(jax.grad(other), -1.0).operation == "sqrt"


def test_a_function_that_is_computed_again():
    found = find(jax.checkpoint(lambda x: jnp.sin(jnp.log(x))), -1.0)
    assert found.operation == "log" and "/ log" in found.path
    gradient = jax.grad(jax.checkpoint(lambda x: jnp.sqrt(jnp.sum(x**2))))
    assert find(gradient, array(0.0, 0.0, 0.0)).operation == "div"


def norm(x):
    return jnp.sqrt(jnp.sum(x * x))


def test_a_gradient_points_at_what_was_differentiated():
    found = find(jax.grad(norm), array(0.0, 0.0, 0.0))
    assert (found.operation, found.kind) == ("div", "inf")
    assert line_of(norm, "jnp.sqrt") in found.where[0]


def test_a_nan_that_is_left_out_is_not_accused():
    def function(x):
        harmless = jnp.where(x > 0, jnp.log(x), 0.0)
        return jnp.sum(harmless) + jnp.arcsin(x[0])

    found = find(function, array(5.0, -1.0, -2.0))
    assert (found.operation, found.element) == ("asin", ())
    assert find(function, array(0.5, -1.0, -2.0)) is None


def test_an_infinity_that_is_meant_is_not_accused():
    def function(scores, kept):
        masked = jnp.where(kept, scores, -jnp.inf)
        return jnp.sum(jax.nn.softmax(masked) * jnp.log(scores))

    found = find(function, array(1.0, -2.0, 3.0), array(True, True, False))
    assert (found.operation, found.operands[0].at) == ("log", -2.0)
    assert find(function, array(1.0, 2.0, 3.0), array(True, False, True)) is None


def test_a_nan_out_of_infinities_that_were_meant_is_made_where_they_meet():
    def function(kept):
        masked = jnp.where(kept, 1.0, -jnp.inf)
        return jnp.exp(masked - jnp.max(masked))

    found = find(function, array(False, False, False))
    assert (found.operation, found.kind) == ("sub", "nan")
    best = find(lambda best, x: best - best + x, -jnp.inf, 1.0)
    assert (best.operation, best.kind) == ("sub", "nan")


def test_a_worst_return_carried_by_a_loop_is_not_accused():
    def function(x):
        def body(carry, x):
            best, total = carry
            return (jnp.maximum(best, x), total + jnp.log(x)), None

        return jax.lax.scan(body, (-jnp.inf, 0.0), x)[0]

    assert find(function, array(3.0, -1.0, 2.0)).operation == "log"


def test_an_overflow():
    found = find(lambda x: 0 * jnp.exp(10 * x), array(1.0, 20.0, 2.0))
    assert (found.operation, found.kind, found.operands[0].at) == ("exp", "inf", 200.0)
    difference = find(lambda x: jnp.exp(x) - jnp.exp(2 * x), 100.0)
    assert (difference.operation, difference.kind) == ("exp", "inf")


def test_one_of_many_terms():
    def function(x, y):
        return jnp.log(x) @ y

    x = np.ones((20, 30))
    x[7, 13] = -1.0
    found = find(function, array(*x), array(*np.ones((30, 5))))
    assert (found.operation, found.element) == ("log", (7, 13))


def test_an_argument_that_is_not_finite_is_named():
    found = find(lambda a, b: a["x"] + b, {"x": array(1.0, 1.0, 1.0), "y": array(1.0, 1.0, 1.0)}, array(1.0, np.nan, 2.0))
    assert (found.operation, found.kind, found.path, found.element) == (ARGUMENT, "nan", "1", (1,))
    found = find(lambda a: jax.lax.fori_loop(0, 3, lambda i, x: x + a["y"], a["x"]), {"x": 1.0, "y": jnp.inf})
    assert (found.operation, found.kind, found.path) == (ARGUMENT, "inf", "0['y']")


def test_a_truth_value_is_followed_to_the_number_behind_it():
    def function(x, y, was_open):
        def body(carry, x):
            value, is_open = carry
            moved = value / x
            is_open = is_open & jnp.isfinite(moved)
            return (jnp.where(is_open, moved, value), is_open), None

        (_, is_open), _ = jax.lax.scan(body, (y, was_open), x)
        return jnp.stack([jnp.all(jnp.isfinite(y)), is_open])

    found = find(function, array(1.0, 2.0, 0.0, 3.0), 4.0, True)
    assert (found.operation, found.kind, found.path) == ("div", "inf", "scan step 2 / div")
    assert [x.at for x in found.operands] == [2.0, 0.0]
    shut = find(function, array(1.0, 2.0, 4.0, 3.0), 4.0, False)
    assert (shut.operation, shut.kind, shut.path) == (ARGUMENT, "false", "2")
    below = find(lambda x: x < 1, 2.0)
    assert (below.operation, below.kind) == ("lt", "false")


def test_keys_and_whole_numbers_pass_through():
    def function(key, x):
        def body(carry, i):
            key, x = carry
            key, use = jax.random.split(key)
            return (key, jnp.sqrt(x - 1 - jax.random.uniform(use))), i

        return jax.lax.scan(body, (key, x), jnp.arange(6))

    found = find(jax.vmap(function), jax.random.split(jax.random.key(0), 2), array(2.0, 1e30))
    assert found.operation == "sqrt" and found.element == (0,)
