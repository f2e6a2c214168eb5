"""Traced tier: promises of every method that its traced program shows, without compiling it.

`learn` is traced alone and under `vmap` over seeds with the clock shared. Only what is decided by the clock stays a
condition then: a condition that is batched over seeds becomes a select, and both of its branches run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import float_types
import jax
import jax.numpy as jnp
import pytest
from jax.errors import KeyReuseError

# The public switch, `jax_debug_key_reuse`, checks what is run, and nothing runs here.
from jax.experimental.key_reuse._core import check_key_reuse_jaxpr
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxmbrl import algorithms
from jaxmbrl.core import tree
from jaxmbrl.core.config import check
from jaxmbrl.core.extremes import smallest
from jaxmbrl.core.types import Algorithm, Transition, row_like
from jaxmbrl.data.replay import Replay
from jaxmbrl.data.sequences import Sequences
from jaxmbrl.models.gaussian_process import GaussianProcessState
from jaxmbrl.nn.optimizer import Trainable
from jaxmbrl.training import loop, programs

from .cases import CASES, EPOCH, SEEDS, VARIANTS, configured, has_replay, takes_tables

LARGE = 4_000
"""Numbers in a leaf from which on a frozen seed must not copy it."""
BY_SEED = {
    *("train_until_stale", "shuffled", "fit_until_stale", "conjugate_gradient", "improve_until_worse", "c_step"),
    "minimize",
}
"""Functions whose loops end by each seed's own data: early stopping, the cycle walk of a random permutation, conjugate
gradient, which ends early only at a residual of 0 or rounding, a policy's improvement in a model, the bisection for a
multiplier, and L-BFGS, which ends where nothing is left to gain."""


@pytest.mark.parametrize("method", sorted(algorithms.METHODS))
def test_settings_without_arguments_keep_their_own_rules(method):
    check(algorithms.METHODS[method].config())


class Traced(NamedTuple):
    """A method at tiny size, traced."""

    program: programs.Program
    state: Any
    """Shapes of the algorithm's state."""
    init: ClosedJaxpr
    """`init` of one seed."""
    transitions: Transition
    one: ClosedJaxpr
    """`learn` of one seed."""
    many: ClosedJaxpr
    """`learn` of several seeds, the clock shared."""


def zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def seeds_of(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((SEEDS, *x.shape), x.dtype), shapes)


def collected(algorithm: Algorithm, program: programs.Program, state: Any) -> Transition:
    """Shapes of what `learn` is given."""
    task = program.task

    def extras(state: Any, key: Any) -> Any:
        policy = algorithm.policy(state, loop.clock_at(0), True)
        carry = task.world.reset(key)
        seen = carry if algorithm.observes_full_state else task.world.observe(carry)
        return policy.act(policy.init(key), seen, key)[1]

    row = row_like(task)._replace(extras=zeros(jax.eval_shape(extras, state, jax.random.key(0))))
    shape = (algorithm.period, program.config.settings.num_envs)
    return jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), x.dtype), row))


@functools.cache
def traced(case: str) -> Traced:
    program = programs.build(configured(case, steps=3 * EPOCH, seeds=SEEDS))
    algorithm, clock = program.algorithm, program.clock_at(0)
    init, state = jax.make_jaxpr(lambda key: algorithm.init(key, {}, None), return_shape=True)(jax.random.key(0))
    transitions = collected(algorithm, program, state)
    one = jax.make_jaxpr(algorithm.learn)(clock, state, transitions)
    many = jax.make_jaxpr(jax.vmap(algorithm.learn, (None, 0, 0)))(clock, seeds_of(state), seeds_of(transitions))
    return Traced(program, state, init, transitions, one, many)


@pytest.fixture(params=[pytest.param(case, marks=[pytest.mark.promises] if case in VARIANTS else []) for case in CASES])
def method(request: pytest.FixtureRequest, spinning: None) -> Iterator[Traced]:
    with float_types.of_method(*CASES[request.param][:2]):
        yield traced(request.param)


def inner(equation: Any) -> Iterator[Jaxpr]:
    """The jaxprs within an equation."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else [value]:
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """All equations, also of inner jaxprs."""
    for equation in jaxpr.eqns:
        yield equation
        for part in inner(equation):
            yield from equations(part)


def number_of(jaxpr: ClosedJaxpr, name: str) -> int:
    return sum(equation.primitive.name == name for equation in equations(jaxpr.jaxpr))


def functions_of(equation: Any) -> set[str]:
    """Names of the functions that an equation was traced in."""
    traceback = equation.source_info.traceback
    return {frame.function_name for frame in traceback.frames} if traceback else set()


def loops_by_seed(jaxpr: ClosedJaxpr) -> list[set[str]]:
    """Where each `while` comes from with a predicate that is computed for several rows: any of them keeps it going."""
    loops = [equation for equation in equations(jaxpr.jaxpr) if equation.primitive.name == "while"]
    return [
        functions_of(equation)
        for equation in loops
        if any(inside.primitive.name == "reduce_or" for inside in equations(equation.params["cond_jaxpr"].jaxpr))
    ]


def assert_shared_predicates(one: ClosedJaxpr, many: ClosedJaxpr) -> None:
    """No condition is lost under `vmap` over seeds, and no loop ends by a seed but those of BY_SEED."""
    assert number_of(many, "cond") == number_of(one, "cond")
    assert number_of(many, "while") == number_of(one, "while")
    assert [found for found in loops_by_seed(many) if not found & BY_SEED] == []


def test_conditions_and_loops_are_shared_by_all_seeds(method: Traced) -> None:
    assert_shared_predicates(method.one, method.many)


@pytest.mark.parametrize("case", ["sac", "mbpo"])
def test_a_clock_of_each_seed_would_be_found(case: str, spinning: None) -> None:
    method = traced(case)
    clocks = seeds_of(jax.eval_shape(lambda: loop.clock_at(0)))
    batched = jax.make_jaxpr(jax.vmap(method.program.algorithm.learn))(
        clocks, seeds_of(method.state), seeds_of(method.transitions)
    )
    with pytest.raises(AssertionError):
        assert_shared_predicates(method.one, batched)


def test_the_state_is_a_fixed_point_of_learn(method: Traced) -> None:
    """Shapes, dtypes and weak types come out as they go in, so a run compiles once."""
    learn = method.program.algorithm.learn
    after, _ = jax.eval_shape(learn, loop.clock_at(0), method.state, method.transitions)
    assert jax.tree.structure(after) == jax.tree.structure(method.state)
    assert signature(after) == signature(method.state)


def signature(shapes: Any) -> list[Any]:
    return [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree.leaves(shapes)]


@pytest.mark.promises
@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("name", sorted(algorithms.METHODS))
def test_in_float64_the_state_is_a_fixed_point_too_and_has_no_float32(name: str, spinning: None) -> None:
    with jax.enable_x64(True):
        program = programs.build(configured(name, steps=3 * EPOCH, seeds=SEEDS))
        state = jax.eval_shape(lambda key: program.algorithm.init(key, {}, None), jax.random.key(0))
        transitions = collected(program.algorithm, program, state)
        after, _ = jax.eval_shape(program.algorithm.learn, loop.clock_at(0), state, transitions)
    assert signature(after) == signature(state)
    assert jnp.float32 not in {x.dtype for x in jax.tree.leaves(state)}


def decompositions(jaxpr: ClosedJaxpr) -> list[str]:
    """Names of the orthogonal decompositions in a program."""
    names = ("qr", "geqrf", "geqp3", "householder_product")
    return [name for equation in equations(jaxpr.jaxpr) if (name := equation.primitive.name) in names]


def test_no_orthogonal_decomposition_is_left_to_lapack(method: Traced) -> None:
    """Several of them at once, each for several networks or seeds, may wait for one another on a CPU and never return."""
    assert decompositions(method.init) + decompositions(method.many) == []


def test_an_orthogonal_decomposition_would_be_found() -> None:
    init = jax.nn.initializers.orthogonal()
    assert decompositions(jax.make_jaxpr(lambda key: init(key, (3, 3)))(jax.random.key(0)))


CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
SAME_SHAPE = {"convert_element_type", "copy", "neg", "mul", "add", "sub", "div", "max", "min", "exp", "log", "sqrt"}


def constant_products(jaxpr: Jaxpr, known: dict[Any, set[int]] | None = None) -> list[tuple[int, ...]]:
    """Shapes of the factors of products that have one number in all places of a matrix.

    `known` gives axes of variables along which an array is constant, and is added to.
    """
    known, found = {} if known is None else known, []

    def constant(variable: Any) -> set[int]:
        along = set() if isinstance(variable, Literal) else known.get(variable, set())
        return along | {axis for axis, n in enumerate(variable.aval.shape) if n == 1}

    for equation in jaxpr.eqns:
        name, parameters, inputs = equation.primitive.name, equation.params, equation.invars
        if name == "broadcast_in_dim":
            kept = dict(zip(parameters["broadcast_dimensions"], range(inputs[0].aval.ndim), strict=True))
            along = constant(inputs[0])
            axes = {axis for axis in range(len(parameters["shape"])) if axis not in kept or kept[axis] in along}
            known[equation.outvars[0]] = axes
        elif name == "transpose":
            known[equation.outvars[0]] = {
                axis for axis, of in enumerate(parameters["permutation"]) if of in constant(inputs[0])
            }
        elif name in SAME_SHAPE:
            arrays = [constant(variable) for variable in inputs if variable.aval.ndim]
            known[equation.outvars[0]] = set.intersection(*arrays) if arrays else set()
        elif name == "dot_general":
            _, batches = parameters["dimension_numbers"]
            for variable, batch in zip(inputs, batches, strict=True):
                shape = variable.aval.shape
                axes = {axis for axis, n in enumerate(shape) if axis not in batch and n > 1}
                if len(axes) > 1 and axes <= constant(variable):
                    found.append(shape)
        parts = list(inner(equation))
        if name in CALLS and len(parts) == 1 and len(parts[0].invars) == len(inputs):
            inside = dict(zip(parts[0].invars, map(constant, inputs), strict=True))
            found += constant_products(parts[0], inside)
            outputs = zip(equation.outvars, parts[0].outvars, strict=True)
            known.update({out: inside[of] for out, of in outputs if not isinstance(of, Literal) and of in inside})
        else:
            found += [shape for part in parts for shape in constant_products(part)]
    return found


def test_no_product_is_with_a_constant_matrix(method: Traced) -> None:
    """On a CPU, it may be computed from memory that does not belong to it (`core.xla`)."""
    assert constant_products(method.many.jaxpr) == []


@pytest.mark.parametrize(
    "product",
    [
        lambda x: x @ jnp.zeros((3, 4)),
        lambda x: jnp.full((3, 4), 2.0).T @ x,
        lambda x: jax.jit(lambda y, z: y @ z)(x, -jnp.ones((3, 3))),
        lambda x: jax.lax.scan(lambda carry, _: (carry @ jnp.ones((3, 3)), None), x, None, 2),
    ],
)
def test_a_product_with_a_constant_matrix_would_be_found(product: Any) -> None:
    assert constant_products(jax.make_jaxpr(product)(jnp.zeros((3, 3))).jaxpr)


def test_other_products_with_what_is_broadcast_are_none() -> None:
    def products(x: Any) -> Any:
        of_members = jnp.broadcast_to(x, (2, 3, 3))
        return x @ jnp.eye(3), x @ jnp.ones((3, 1)), of_members @ of_members, x @ jnp.broadcast_to(x[0], (3, 3))

    assert constant_products(jax.make_jaxpr(products)(jnp.zeros((3, 3))).jaxpr) == []


SAME_NUMBERS = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "copy", "stop_gradient", "convert_element_type"}


def used(jaxpr: Jaxpr, outputs: list[bool]) -> list[tuple[Any, list[bool]]]:
    """The equations on which the used `outputs` depend, each with those of its own outputs that are used."""
    needed = {x for x, is_used in zip(jaxpr.outvars, outputs, strict=True) if is_used and not isinstance(x, Literal)}
    found = []
    for equation in reversed(jaxpr.eqns):
        own = [x in needed for x in equation.outvars]
        if any(own):
            needed.update(x for x in equation.invars if not isinstance(x, Literal))
            found.append((equation, own))
    return found[::-1]


def compared_with_extremes(jaxpr: Jaxpr, outputs: list[bool] | None = None) -> list[list[str]]:
    """Lines of the library of each comparison of numbers for equality with their own minimum or maximum along an axis, if
    the outputs depend on it."""
    extremes: dict[Any, set[Any]] = {}
    found = []
    for equation, own in used(jaxpr, outputs or [True] * len(jaxpr.outvars)):
        name, inputs = equation.primitive.name, [x for x in equation.invars if not isinstance(x, Literal)]
        if name in ("reduce_max", "reduce_min"):
            extremes[equation.outvars[0]] = set(inputs)
        elif name in SAME_NUMBERS and inputs and inputs[0] in extremes:
            extremes[equation.outvars[0]] = extremes[inputs[0]]
        elif name == "eq" and len(inputs) == 2 and jnp.issubdtype(inputs[0].aval.dtype, jnp.floating):
            one, other = inputs
            if one in extremes.get(other, ()) or other in extremes.get(one, ()):
                found.append(lines_of(equation))
        for part in inner(equation):
            within = own if name in CALLS and len(part.outvars) == len(own) else None
            found += compared_with_extremes(part, within)
    return found


def test_no_number_is_compared_with_its_own_extreme(method: Traced) -> None:
    """A compiled program may compute the number twice, with different rounding (`core.extremes`). JAX's gradients of `min`
    and `max` along an axis have such comparisons."""
    assert compared_with_extremes(method.one.jaxpr) == []


@pytest.mark.parametrize("reduced", [jnp.max, lambda x: jnp.min(x, axis=1)])
def test_a_comparison_with_an_extreme_would_be_found(reduced: Any) -> None:
    assert compared_with_extremes(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(reduced(x))))(jnp.ones((2, 2))).jaxpr)


def test_other_uses_of_an_extreme_are_none() -> None:
    """The gradient of a softmax does not pass through the maximum that is subtracted."""

    def uses(x: Any) -> Any:
        return jnp.sum(jax.nn.log_softmax(x)[:, 0]) + jax.scipy.special.logsumexp(x) + jnp.sum(smallest(x)) + jnp.argmax(x)

    assert compared_with_extremes(jax.make_jaxpr(jax.grad(uses))(jnp.ones((2, 2))).jaxpr) == []


def test_nothing_is_called_on_the_host(method: Traced) -> None:
    names = {equation.primitive.name for equation in equations(method.one.jaxpr)}
    assert not {name for name in names if "callback" in name or name in ("infeed", "outfeed")}


def test_no_key_is_used_twice(method: Traced) -> None:
    check_key_reuse_jaxpr(method.one.jaxpr)


def test_a_key_that_is_used_twice_would_be_found() -> None:
    twice = jax.make_jaxpr(lambda key: jax.random.normal(key) + jax.random.uniform(key))(jax.random.key(0))
    with pytest.raises(KeyReuseError):
        check_key_reuse_jaxpr(twice.jaxpr)


def inside(equation: Any) -> Iterator[tuple[Jaxpr, list[Any]]]:
    """The jaxprs within an equation, and what their first variables stand for."""
    name, parameters, inputs = equation.primitive.name, equation.params, list(equation.invars)
    if name == "scan":
        yield parameters["jaxpr"].jaxpr, inputs[: parameters["num_consts"]]
    elif name == "while":
        first, end = parameters["cond_nconsts"], parameters["cond_nconsts"] + parameters["body_nconsts"]
        yield parameters["cond_jaxpr"].jaxpr, inputs[:first]
        yield parameters["body_jaxpr"].jaxpr, inputs[first:end]
    elif name == "cond":
        for branch in parameters["branches"]:
            yield branch.jaxpr, inputs[1:]
    else:
        for part in inner(equation):
            yield part, inputs if len(part.invars) == len(inputs) else []


def lines_of(equation: Any) -> list[str]:
    """Lines of the library in which an equation was traced, innermost first."""
    traceback = equation.source_info.traceback
    frames = [frame for frame in traceback.frames if "jaxmbrl" in frame.file_name] if traceback else []
    return [f"{Path(frame.file_name).name}:{frame.line_num}" for frame in frames]


def children_made_twice(jaxpr: Jaxpr) -> list[tuple[int, list[str]]]:
    """(i, lines of the library) of each `fold_in(key, i)` that equals a key of a `split` of the same key."""
    splits: dict[Any, int] = {}
    folds: list[tuple[Any, int, list[str]]] = []

    def walk(jaxpr: Jaxpr, known: dict[Any, Any]) -> None:
        for equation in jaxpr.eqns:
            name, inputs = equation.primitive.name, equation.invars
            if name == "random_split":
                key = known.get(inputs[0], inputs[0])
                splits[key] = max(splits.get(key, 0), math.prod(equation.params["shape"]))
            elif name == "random_fold_in":
                # A number that is only known when it runs may be 0.
                number = int(inputs[1].val) if isinstance(inputs[1], Literal) else 0
                folds.append((known.get(inputs[0], inputs[0]), number, lines_of(equation)))
            for part, given in inside(equation):
                pairs = zip(part.invars, given, strict=False)
                walk(part, {own: known.get(of, of) for own, of in pairs if not isinstance(of, Literal)})

    walk(jaxpr, {})
    return [(number, lines) for key, number, lines in folds if number < splits.get(key, 0)]


def test_no_key_is_made_twice_by_split_and_fold_in(method: Traced) -> None:
    """`core.keys.beside` makes a key that no split makes."""
    assert children_made_twice(method.init.jaxpr) == []
    assert children_made_twice(method.one.jaxpr) == []


def test_a_key_that_is_made_twice_would_be_found() -> None:
    def within(key: Any, i: Any) -> Any:
        return jax.lax.cond(i > 0, lambda: jax.random.fold_in(key, 2), lambda: jax.random.fold_in(key, 1_000_000))

    def first(key: Any) -> Any:
        return jax.random.split(key, 3), jax.jit(within)(key, jnp.ones(()))

    def later(key: Any) -> Any:
        return jax.random.split(key), jax.jit(within)(key, jnp.ones(()))

    def by_number(key: Any) -> Any:
        def body(i: Any, total: Any) -> Any:
            return total + jax.random.normal(jax.random.fold_in(key, i))

        return jax.random.randint(key, (), 0, 2), jax.lax.fori_loop(0, 2, body, 0.0)

    found = [children_made_twice(jax.make_jaxpr(f)(jax.random.key(0)).jaxpr) for f in (first, later, by_number)]
    assert [len(x) for x in found] == [1, 0, 1] and found[0][0][0] == 2


class Made(NamedTuple):
    """How an array of a program is made: arrays that are made alike have the same `number` and are equal."""

    number: int
    drawn: bool
    """Whether it depends on random numbers."""


def is_key(variable: Any) -> bool:
    """Whether a variable stands for random keys."""
    return jnp.issubdtype(variable.aval.dtype, jax.dtypes.prng_key)


def how_made(jaxpr: ClosedJaxpr) -> tuple[list[Made], list[tuple[int, list[str]]]]:
    """(how each output is made, (number of its key, lines of the library) of each draw of random numbers). A key of a
    `split` is that of `fold_in` with its index. A key that is repeated in an array counts as two draws."""
    numbers: dict[Any, int] = {}
    parents: dict[int, int] = {}
    picked: dict[int, Any] = {}
    draws: list[tuple[int, list[str]]] = []

    def number(*what: Any) -> int:
        return numbers.setdefault(what, len(numbers))

    def walk(jaxpr: Jaxpr, given: list[Made], at: list[str]) -> list[Made]:
        known = dict(zip(jaxpr.invars, given, strict=True))

        def made(variable: Any) -> Made:
            if isinstance(variable, Literal):
                return Made(number("literal", str(variable.aval), str(variable.val)), False)
            return known.setdefault(variable, Made(number("constant", id(variable)), False))

        for equation in jaxpr.eqns:
            name, parameters, inputs = equation.primitive.name, equation.params, [*map(made, equation.invars)]
            parts, of = list(inner(equation)), [x.number for x in inputs]
            # What was traced before has the lines of its first call, if any.
            lines = at or lines_of(equation)
            if name in CALLS and len(parts) == 1 and len(parts[0].invars) == len(inputs):
                known.update(zip(equation.outvars, walk(parts[0], inputs, lines), strict=True))
                continue
            if name == "copy":
                known[equation.outvars[0]] = inputs[0]
                continue
            drawn = name == "random_bits" or any(x.drawn for x in inputs)
            what: tuple[Any, ...] = (name, str(parameters), *of)
            if name == "random_bits":
                draws.append((of[0], lines))
            elif name == "broadcast_in_dim" and is_key(equation.invars[0]) and equation.outvars[0].aval.size > 1:
                draws.extend(2 * [(of[0], lines)])
            elif name == "random_split":
                what = ("children", of[0])
                parents[number(*what, 0)] = of[0]
            elif name == "random_fold_in":
                literal = isinstance(equation.invars[1], Literal)
                what = ("child", of[0], int(equation.invars[1].val) if literal else f"number {of[1]}")
            elif name == "slice" and of[0] in parents and equation.outvars[0].aval.shape == (1,):
                picked[number(*what, 0)] = ("child", parents[of[0]], parameters["start_indices"][0])
            elif name in ("squeeze", "reshape") and of[0] in picked:
                what = picked[of[0]]
            known.update({out: Made(number(*what, i), drawn) for i, out in enumerate(equation.outvars)})
        return [made(variable) for variable in jaxpr.outvars]

    inputs = [Made(number("input", i), False) for i in range(len(jaxpr.jaxpr.invars))]
    return walk(jaxpr.jaxpr, inputs, []), draws


COPIES = {"ampo": (".model.members.params.network['params']", ".adaptation.features.params")}
"""What begins as a copy besides target networks: the layers that an adaptation changes."""


def alike(case: str, init: ClosedJaxpr, state: Any) -> list[tuple[str, str]]:
    """Paths of two arrays of an initial state that are the same random numbers, but are no copies by intent."""
    first: dict[int, str] = {}
    found = []
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    for path, made in zip(paths, how_made(init)[0], strict=True):
        other = first.setdefault(made.number, path)
        beginnings = COPIES.get(case)
        copied = beginnings is not None and other.startswith(beginnings[0]) and path.startswith(beginnings[1])
        if made.drawn and other not in (path, path.replace(".target", ".params")) and not copied:
            found.append((other, path))
    return found


def drawn_twice(init: ClosedJaxpr) -> list[list[str]]:
    """Lines of each draw of random numbers whose key another one has."""
    draws = how_made(init)[1]
    keys = [key for key, _ in draws]
    return [lines for key, lines in draws if keys.count(key) > 1]


def test_initial_networks_are_independent(method: Traced) -> None:
    """No two arrays of an initial state are the same random numbers, but for copies by intent. No key is drawn from twice,
    which would make arrays of other shapes alike."""
    assert alike(method.program.config.algorithm, method.init, method.state) == []
    assert drawn_twice(method.init) == []


def test_networks_that_are_alike_would_be_found() -> None:
    def network(key: Any, *shape: int) -> Any:
        return jax.jit(lambda key: jax.nn.initializers.lecun_normal()(jax.random.fold_in(key, 7), shape))(key)

    def init(key: Any) -> dict[str, Any]:
        one_key, other_key = jax.random.split(key)
        return {
            "one": network(one_key, 2, 3),
            "other": network(other_key, 2, 3),
            "same": network(jax.random.fold_in(key, 0), 2, 3),
            "larger": network(jax.random.split(key, 3)[1], 4, 3),
            "zeros": (jnp.zeros(3), jnp.zeros(3)),
        }

    traced, state = jax.make_jaxpr(init, return_shape=True)(jax.random.key(0))
    assert alike("", traced, state) == [("['one']", "['same']")]
    assert len(drawn_twice(traced)) == 4, "also the larger one, whose first numbers are those of the other"
    repeated = jax.make_jaxpr(lambda key: jax.vmap(jax.random.normal)(jnp.broadcast_to(key, 2)))(jax.random.key(0))
    assert len(drawn_twice(repeated)) == 2


WRITES = {"scatter", "dynamic_update_slice"}


def writes(jaxpr: Jaxpr, variable: Any) -> tuple[set[str], Any]:
    """(operations between a jaxpr's input and `variable`, that input): what is written into an array on its way. The input
    is None where the array is made of something else."""
    if isinstance(variable, Literal):
        return {"literal"}, None
    if variable in jaxpr.invars:
        return set(), jaxpr.invars.index(variable)
    equation = next((e for e in jaxpr.eqns if variable in e.outvars), None)
    if equation is None:
        return {"constant"}, None
    name, place = equation.primitive.name, equation.outvars.index(variable)
    found: set[str] = set()
    if name in WRITES:
        source: Any = 0
        found = {name}
    elif name == "cond":
        sides = [writes(branch.jaxpr, branch.jaxpr.outvars[place]) for branch in equation.params["branches"]]
        found = set().union(*(side for side, _ in sides))
        sources = {at for _, at in sides}
        source = 1 + sources.pop() if len(sources) == 1 and None not in sources else None
    elif name in ("while", "scan"):
        body = equation.params["body_jaxpr" if name == "while" else "jaxpr"].jaxpr
        before = equation.params["body_nconsts" if name == "while" else "num_consts"]
        found, at = writes(body, body.outvars[place])
        outside = before + (equation.params["cond_nconsts"] if name == "while" else 0)
        source = outside + place if at == before + place else None
    elif name in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"):
        part = next(inner(equation))
        found, source = writes(part, part.outvars[place])
    else:
        return {name}, None
    if source is None:
        return found | {f"{name} of several"}, None
    more, at = writes(jaxpr, equation.invars[source])
    return found | more, at


STORED = {Replay: ("data",), Sequences: ("rows", "observations", "number")}
"""Fields of buffers that are as long as the buffer."""


def test_replay_buffers_are_written_by_scatter_alone(method: Traced) -> None:
    """A copy of a buffer at each step would cost more than the step."""
    after, _ = jax.eval_shape(method.program.algorithm.learn, loop.clock_at(0), method.state, method.transitions)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(after)]
    replays = jax.tree_util.tree_leaves_with_path(method.state, is_leaf=lambda x: isinstance(x, tuple(STORED)))
    data = tuple(f"{jax.tree_util.keystr(path)}.{name}" for path, x in replays for name in STORED.get(type(x), ()))
    assert data or not has_replay(method.program), "the method keeps no replay buffer: is this test still about something?"
    clock = len(jax.tree.leaves(method.program.clock_at(0)))
    for i, path in enumerate(paths):
        if path.startswith(data):
            found, source = writes(method.one.jaxpr, method.one.jaxpr.outvars[i])
            assert (found <= WRITES, source) == (True, clock + i), (path, found, source)


def test_what_is_large_has_a_gate_of_its_own(method: Traced) -> None:
    """The loop selects the leaves of all other state, which reads and writes them once more at each call."""
    leaves = jax.tree_util.tree_leaves_with_path(method.state, is_leaf=tree.is_gated)
    large = [jax.tree_util.keystr(path) for path, x in leaves if not tree.is_gated(x) and x.size > LARGE]
    assert large == []


def test_the_finite_check_names_all_parts(method: Traced) -> None:
    kinds = Trainable, GaussianProcessState
    parts = jax.tree_util.tree_leaves_with_path(method.state, is_leaf=lambda x: isinstance(x, kinds))
    learned = {
        f"{'gradient' if isinstance(x, Trainable) else 'Gaussian process'} of {jax.tree_util.keystr(path)[1:]}"
        for path, x in parts
        if isinstance(x, kinds)
    }
    checked = method.program.loop.checked
    assert learned or takes_tables(method.program), "nothing learns"
    assert learned == {name for name in checked if name.startswith(("gradient of ", "Gaussian process of "))}
    _, metrics = jax.eval_shape(method.program.algorithm.learn, loop.clock_at(0), method.state, method.transitions)
    assert {"transition/observation", "transition/reward", *metrics} <= set(checked)


def test_what_may_be_left_out_of_a_checkpoint_is_a_part_of_the_state(method: Traced) -> None:
    """And the buffer of real transitions is not: no model can imagine it."""
    state = zeros_state(method.state)
    views = method.program.algorithm.views(state)
    own = {id(leaf) for leaf in jax.tree.leaves(state)}
    again = {id(leaf) for leaf in jax.tree.leaves(views.reproducible)}
    assert again <= own and not again & {id(leaf) for leaf in jax.tree.leaves(views.replay)}
    held = state.experience.own if hasattr(state, "experience") else getattr(state, "replay", None)
    assert views.replay is held and (held is not None) == has_replay(method.program)


def zeros_state(shapes: Any) -> Any:
    def leaf(x: Any) -> Any:
        return jax.random.key(0) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.zeros(x.shape, x.dtype)

    return jax.tree.map(leaf, shapes)
