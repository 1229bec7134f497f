"""Solvers of other libraries, jaxopt and optimistix, stepped by this library's driver.

Neither is imported here: who has a solver object has imported its library, so classes are looked up
in `sys.modules`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._state import is_sharded, select
from .base import Cell, Solver, Step, no_reverse_mode

PyTree = Any


class Iterate(NamedTuple):
    """A point as one vector, as other libraries see it: v, f(v) and the foreign state."""

    v: jax.Array
    fv: jax.Array
    state: PyTree


@dataclass(frozen=True, kw_only=True, eq=False)
class External(Solver):
    """A solver object of another library, run in this library's loop.

    Only its update rule is used. The stop test is this library's, on the true residual, and so are
    the best iterate, the statuses and the trace: a foreign solver that thinks it is done goes on
    until the residual agrees, one that gives up without a word ends as `Status.MAX_STEPS`, and one
    that breaks down with NaN as `Status.NONFINITE`.

    What was set on the object counts: tolerance and step limit become the defaults of the solve,
    and keywords of the call replace them. The state is handed over as one vector in the library's
    own precision (the default float, or the state's if wider), which also makes pytrees, mixed
    dtypes and bfloat16 work where the library has trouble with them.

    One equation only: these solvers know nothing of samples. For a batch use a solver of deqjax
    with `batch_axis`, or `jax.vmap` over `fixed_point`. `resume` starts anew, unless a class below
    says otherwise.

    Attributes:
        solver: the foreign object. It counts by identity: make it once, outside of loops, or `jit`
            compiles anew for each.
    """

    solver: Any

    name = "external"

    def __eq__(self, other):
        return type(other) is type(self) and other._key() == self._key()

    def __hash__(self):
        return hash(self._key())

    def _key(self):
        return (self.rtol, self.atol, self.max_steps, id(self.solver))

    # ------------------------------------------------------------------ for each library

    def begin(self, v: jax.Array, fv: jax.Array, max_steps: int) -> PyTree:
        """The foreign state at v, where f is known."""
        raise NotImplementedError

    def advance(self, f: Callable, at: Iterate) -> tuple[Iterate, Any]:
        """The next iterate, and how many evaluations of f it took."""
        raise NotImplementedError

    @property
    def learns_slopes(self):
        return False

    @property
    def _loops(self) -> bool:
        """Whether a step runs loops of unknown length."""
        return False

    def unrolled(self):
        if self._loops:
            raise no_reverse_mode(self)
        return self

    # ------------------------------------------------------------------ for the driver

    def init(self, point, max_steps):
        _check_single(point.z, type(self.solver).__name__)
        return _front(self.begin(_vector(point.z), _vector(point.fz), max_steps))

    def resume(self, state, point, k):
        return self.init(point, self.tolerances(point.z).max_steps)

    def step(self, f, point, state, k, active):
        """One update of the foreign solver."""
        if f.collectives and self._loops:
            raise ValueError(
                f"{type(self.solver).__name__} evaluates f in loops of its own, which cannot agree "
                f"across the devices that f communicates with over {f.collectives}: use a solver "
                "of deqjax"
            )
        at = Iterate(_vector(point.z), _vector(point.fz), _inner(state))
        new, f_evals = self.advance(_on_vectors(f, point.z), at)
        kept = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new.state, at.state)
        z = _unvector(new.v, point.z)
        if f.is_root:  # the library's f(z) = z + g(z) has lost g where z is large
            new_point, f_evals = f.at(z), f_evals + 1
        else:
            new_point = f.point(z, _unvector(new.fv, point.z))
        # Where f is not finite the solve ends, and nothing of that is left for the next one.
        kept = select(jnp.isfinite(new_point.norms[0]), _front(kept), state)
        return Step(new_point, kept, f_evals)


# ---------------------------------------------------------------------------------- jaxopt


@dataclass(frozen=True, kw_only=True, eq=False)
class JaxoptFixedPointIteration(External):
    """`jaxopt.FixedPointIteration`: z⁺ = f(z)."""

    name = "jaxopt.FixedPointIteration"

    def begin(self, v, fv, max_steps):
        return self._rule(lambda v: fv).init_state(v)

    def advance(self, f, at):
        # It evaluates f at the old point, where the value is known.
        v, state = self._rule(lambda v: at.fv).update(at.v, at.state)
        return Iterate(v, f(v), state), 1

    def _rule(self, f):
        return dataclasses.replace(self.solver, fixed_point_fun=f, has_aux=False, jit=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class JaxoptAnderson(JaxoptFixedPointIteration):
    """`jaxopt.AndersonAcceleration`, with its own iterates and one evaluation a step.

    Its ridge is absolute: scale it with the square of the residual that you aim for, or prefer
    'anderson', whose ridge is relative.
    """

    name = "jaxopt.AndersonAcceleration"

    def begin(self, v, fv, max_steps):
        # jaxopt's first update only records (z₀, f(z₀)), which is known.
        rule = self._rule(lambda v: fv)
        return rule.update(v, rule.init_state(v)).state

    def advance(self, f, at):
        fv, state = self._rule(f).update(at.fv, at.state)
        # The update ends with f of the extrapolated point, which it leaves in its history.
        slot = at.state.iter_num % self.solver.history_size
        return Iterate(state.params_history[slot], fv, state), 1


@dataclass(frozen=True, kw_only=True, eq=False)
class JaxoptBroyden(External):
    """`jaxopt.Broyden`, on z − f(z): it starts from +I, so this sign makes its first step f(z).

    jaxopt builds one matrix for each leaf of a pytree; on one vector, as here, its algebra is
    right. `f_evals` counts evaluations of f; jaxopt's line search (on unless `stepsize` is set)
    adds a gradient to each of its trials, which is not counted. No more history is kept than
    max_steps can fill. `resume` keeps the inverse Jacobian.
    """

    name = "jaxopt.Broyden"

    def begin(self, v, fv, max_steps):
        memory = max(1, min(self.solver.history_size, max_steps))
        state = self._rule(lambda v: fv, memory).init_state(v)
        return state._replace(error=jnp.asarray(jnp.inf, v.dtype))

    def advance(self, f, at):
        rule = self._rule(f, at.state.d_history.shape[0])
        v, state = rule.update(at.v, at.state)
        return Iterate(v, state.aux, state), state.num_fun_eval - at.state.num_fun_eval

    def resume(self, state, point, k):
        new = self.init(point, 1)
        return state._replace(value=new.value, aux=new.aux)

    @property
    def _loops(self):
        return not callable(self.solver.stepsize) and self.solver.stepsize <= 0

    def _rule(self, f, memory):
        def fun(v):
            fv = f(v)
            return v - fv, fv

        return dataclasses.replace(
            self.solver, fun=fun, has_aux=True, history_size=memory, jit=True
        )


# ---------------------------------------------------------------------------------- optimistix


class OptimistixState(NamedTuple):
    """The arrays of optimistix's own state, and whether they are still to be made."""

    fresh: jax.Array
    arrays: tuple


@dataclass(frozen=True, kw_only=True, eq=False)
class Optimistix(External):
    """A solver of `optimistix`: fixed-point solvers, root finders, least squares, minimisers.

    Each gets the function that `optimistix.fixed_point` documents for it: f(z), f(z) − z, the same
    as residuals, or ½‖f(z) − z‖². Its `terminate` is not asked.

    f needs a forward-mode derivative, except for fixed-point solvers and minimisers. The Jacobian
    of f is made dense, n × n for a state of n numbers, as optimistix's default linear solvers do
    too: for small states. `f_evals` counts evaluations of f and, as for 'newton_krylov', the n
    products that a Jacobian takes; the gradient of a minimiser comes with the evaluation.

    Refused: solvers that need a bracket (Bisection, GoldenSearch), and those that evaluate f more
    than once a step (NelderMead, Optax line searches), whose cost cannot be reported.
    """

    kind: str

    name = "optimistix"

    def begin(self, v, fv, max_steps):
        # The state is made in the first step, which has f; here only its form is needed.
        problem = _Problem(lambda v: v, self.kind, v)
        form = jax.eval_shape(lambda: self._start(problem, v)[0])
        return OptimistixState(jnp.ones((), bool), tuple(jnp.zeros(x.shape, x.dtype) for x in form))

    def advance(self, f, at):
        problem, rebuilds = _Problem(f, self.kind, at.v), []

        def start():
            arrays, rebuild = self._start(problem, at.v)
            rebuilds.append(rebuild)
            return arrays

        old = at.state.arrays
        if _form(jax.eval_shape(start)) != _form(old):
            raise ValueError(f"{type(self.solver).__name__} keeps a state whose form depends on f")
        arrays = lax.cond(at.state.fresh, start, lambda: old)
        # Only Chord evaluates f there, for its one Jacobian.
        first_cost = problem.cost() if isinstance(self.solver, _class("optimistix", "Chord")) else 0
        problem = _Problem(f, self.kind, at.v, known=at.fv if self._starts_at_y else None)
        v, state, _ = self.solver.step(problem.fn, at.v, None, {}, rebuilds[0](arrays), frozenset())
        if problem.calls != 1:
            raise ValueError(
                f"{type(self.solver).__name__} evaluates f {problem.calls} times a step in ways "
                "that cannot be counted: use a solver that evaluates it once, such as "
                "optimistix.Newton"
            )
        arrays, _ = _partition(state)
        cost = problem.cost() + 1 + jnp.where(at.state.fresh, first_cost, 0)
        kept = tuple(jnp.asarray(x, o.dtype) for x, o in zip(arrays, old, strict=True))
        return Iterate(v, f(v), OptimistixState(jnp.zeros((), bool), kept)), cost

    @property
    def _loops(self):
        return self.kind != "fixed point"

    @property
    def _starts_at_y(self) -> bool:
        """Whether a step evaluates f where it stands, with no derivative, so for nothing."""
        classes = (_class("optimistix", n) for n in ("FixedPointIteration", "Chord"))
        return isinstance(self.solver, tuple(classes))

    def _start(self, problem, v):
        shape = jax.ShapeDtypeStruct(() if self.kind == "minimum" else v.shape, v.dtype)
        return _partition(self.solver.init(problem.fn, v, None, {}, shape, None, frozenset()))


class _Problem:
    """The function that a kind of optimistix solver wants, which counts what it is asked.

    Its derivatives are custom so that their form does not depend on f: a dense Jacobian, a dense
    gradient. optimistix keeps linearisations in its state, and a loop's carry needs a fixed form.
    """

    def __init__(self, f, kind, like, known=None):
        self.calls = 0
        self._products = 0
        n = like.size

        def residual(v):
            return f(v) - v

        def objective(v):
            r = residual(v)
            return 0.5 * jnp.vdot(r, r)

        @jax.custom_jvp
        def dense(v):
            self.calls += 1
            return residual(v) if known is None else known - v

        @dense.defjvp
        def dense_jvp(primals, tangents):
            (v,), (dv,) = primals, tangents
            self.calls += 1
            self._products = n
            value, product = jax.linearize(residual, v)
            jacobian = jax.vmap(product, out_axes=1)(jnp.eye(n, dtype=v.dtype))
            return value, jnp.matmul(jacobian, dv, precision=lax.Precision.HIGHEST)

        @jax.custom_jvp
        def scalar(v):
            self.calls += 1
            return objective(v)

        @scalar.defjvp
        def scalar_jvp(primals, tangents):
            (v,), (dv,) = primals, tangents
            self.calls += 1
            value, gradient = jax.value_and_grad(objective)(v)
            return value, jnp.vdot(gradient, dv)

        def plain(v):
            self.calls += 1
            return f(v) if known is None else known

        self._free = known is not None
        wanted = {"fixed point": plain, "minimum": scalar}.get(kind, dense)
        self.fn = lambda v, args: (wanted(v), None)

    def cost(self) -> int:
        """Evaluations of f in a step with one call."""
        return self._products if self._free else 1 + self._products


def _form(arrays: tuple) -> list:
    return [(x.shape, x.dtype) for x in arrays]


def _partition(tree: PyTree) -> tuple[tuple, Callable]:
    """The arrays of a pytree, and what puts others in their place."""
    leaves, treedef = jax.tree.flatten(tree)
    is_array = [isinstance(x, jax.Array | np.ndarray) for x in leaves]

    def rebuild(arrays):
        rest = iter(arrays)
        return treedef.unflatten(
            [next(rest) if a else x for a, x in zip(is_array, leaves, strict=True)]
        )

    arrays = (x for a, x in zip(is_array, leaves, strict=True) if a)
    return tuple(jnp.asarray(x, x.dtype) for x in arrays), rebuild


# ---------------------------------------------------------------------------------- by object

_JAXOPT: dict[str, type[External]] = {
    "AndersonAcceleration": JaxoptAnderson,
    "Broyden": JaxoptBroyden,
    "FixedPointIteration": JaxoptFixedPointIteration,
}
_OPTIMISTIX = {
    "AbstractFixedPointSolver": "fixed point",
    "AbstractRootFinder": "root",
    "AbstractLeastSquaresSolver": "least squares",
    "AbstractMinimiser": "minimum",
}
_REFUSED = ("Bisection", "GoldenSearch", "NelderMead")
ACCEPTED = (
    "jaxopt's AndersonAcceleration, Broyden and FixedPointIteration, and optimistix's fixed-point "
    "solvers, root finders, least-squares solvers and minimisers, except for "
    f"{', '.join(_REFUSED)}"
)


def as_external(given: Any, keyword: str = "solver") -> Any:
    """A jaxopt or optimistix object as a `Solver`; anything else as it is."""
    kind = given if isinstance(given, type) else type(given)
    libraries = {c.__module__.split(".")[0] for c in kind.__mro__} & {"jaxopt", "optimistix"}
    if not libraries:
        return given
    library = libraries.pop()
    what = f"{library}.{kind.__name__}"
    if kind is given:
        raise TypeError(f"{keyword}= needs an object: write {what}(...)")
    refused = TypeError(f"{keyword}= does not take {what}; of other libraries it takes {ACCEPTED}")
    if library == "jaxopt":
        for name, adapter in _JAXOPT.items():
            if isinstance(given, _class(library, name)):
                return adapter(solver=given, **_jaxopt_options(given))
        raise refused
    if isinstance(given, tuple(_class(library, name) for name in _REFUSED)):
        raise refused
    for name, kind in _OPTIMISTIX.items():
        if isinstance(given, _class(library, name)):
            return Optimistix(solver=given, kind=kind, rtol=given.rtol, atol=given.atol)
    raise refused


def _class(library: str, name: str) -> type:
    return getattr(sys.modules[library], name)


def _jaxopt_options(given: Any) -> dict[str, Any]:
    """What was set on the object; jaxopt's own defaults give way to this library's."""
    default = {f.name: f.default for f in dataclasses.fields(given)}
    options: dict[str, Any] = {}
    if given.tol != default["tol"]:
        options |= {"rtol": 0.0, "atol": given.tol}  # jaxopt stops at ‖residual‖ ≤ tol
    if given.maxiter != default["maxiter"]:
        options["max_steps"] = given.maxiter
    return options


# ---------------------------------------------------------------------------------- as a vector


def _check_single(z: PyTree, name: str) -> None:
    leaves = jax.tree.leaves(z)
    if leaves[0].shape[0] > 1:
        raise ValueError(
            f"{name} solves one equation and would mix the samples of a batch: use jax.vmap over "
            "deqjax.fixed_point, or batch_axis with a solver of deqjax such as 'anderson'"
        )
    if any(jnp.iscomplexobj(x) for x in leaves):
        raise TypeError(f"{name} is run on real states: split z into real and imaginary parts")
    if any(map(is_sharded, leaves)):
        raise ValueError(
            f"{name} takes the state as one vector, which an explicitly sharded state cannot be: "
            "use a solver of deqjax"
        )


def _vector(z: PyTree) -> jax.Array:
    """The state as one vector, in the default float dtype at least: what the libraries assume."""
    leaves = jax.tree.leaves(z)
    dtype = jnp.result_type(jnp.result_type(float), *(x.dtype for x in leaves))
    return jnp.concatenate([x.astype(dtype).ravel() for x in leaves])


def _unvector(v: jax.Array, like: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([math.prod(x.shape) for x in leaves])[:-1]
    parts = jnp.split(v, ends)
    return treedef.unflatten(
        [p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, leaves, strict=True)]
    )


def _on_vectors(f: Cell, like: PyTree) -> Callable[[jax.Array], jax.Array]:
    return lambda v: _vector(f(_unvector(v, like)))


# The driver keeps the batch on axis 0 of everything that it carries.


def _front(state: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x)[None], state)


def _inner(state: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[0], state)
