"""Properties over shapes, pytrees, dtypes, batch axes and solvers, drawn by hypothesis."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import deqjax
from tests import cells

FEW = settings(max_examples=5, deadline=None, derandomize=True)
# For those that compile more than one program, or long ones.
FEWER = settings(max_examples=3, deadline=None, derandomize=True)

# Solvers and adjoints with code of their own for shapes and dtypes.
OTHERS = {
    "newton_krylov": dict(solver=deqjax.NewtonKrylov(memory=4)),
    "line_search": dict(solver=deqjax.Broyden(memory=4, line_search=True)),
    "shine": dict(solver=cells.SMALL["broyden"], adjoint=deqjax.Shine(refine=1)),
    "reversible": dict(solver="picard", adjoint="reversible"),
}

# dtype, and how close to the solution its default tolerance must bring z.
DTYPES = {
    "float64": 1e-6,
    "float32": 1e-3,
    "bfloat16": 0.15,
    "float16": 3e-2,
    "complex128": 1e-6,
    "complex64": 1e-3,
}

shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
# A pytree of tuples and dicts with at least one leaf.
trees = st.recursive(
    shapes,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2),
        st.dictionaries(st.sampled_from("ab"), inner, min_size=1, max_size=2),
    ),
    max_leaves=3,
)


def is_shape(x):
    return isinstance(x, tuple)


def draw_arrays(tree, dtype, seed):
    rng = np.random.default_rng(seed)

    def leaf(shape):
        x = rng.uniform(-1, 1, size=shape)
        if np.issubdtype(jnp.dtype(dtype), np.complexfloating):
            x = x + 1j * rng.uniform(-1, 1, size=shape)
        return jnp.asarray(x, dtype)

    return jax.tree.map(leaf, tree, is_leaf=is_shape)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x)).astype(complex) for x in jax.tree.leaves(tree)])


def coupled(z, bias, rate):
    """A linear contraction that mixes all leaves: z' = rate (z + mean(z)) / 2 + bias.

    Its solution is known: the mean m obeys m = rate m + mean(bias), and each entry then
    z = (rate m / 2 + bias) / (1 − rate / 2).
    """
    size = sum(x.size for x in jax.tree.leaves(z))
    mean = sum(jnp.sum(x) for x in jax.tree.leaves(z)) / size
    return jax.tree.map(
        lambda x, b: (0.5 * rate * (x + mean.astype(x.dtype)) + b).astype(x.dtype), z, bias
    )


def coupled_solution(bias, rate):
    b = flat(bias)
    return (0.5 * rate * b.mean() / (1 - rate) + b) / (1 - 0.5 * rate)


@FEW
@given(
    tree=trees,
    dtype=st.sampled_from(sorted(DTYPES)),
    solver=st.sampled_from(cells.SOLVERS),
    rate=st.sampled_from([-0.8, 0.3, 0.6]),
    seed=st.integers(0, 99),
)
def test_contractions_converge_with_structure_and_dtype_kept(tree, dtype, solver, rate, seed):
    bias, z0 = draw_arrays(tree, dtype, seed), draw_arrays(tree, dtype, seed + 1)
    sol = jax.jit(
        lambda z0, bias: deqjax.fixed_point(
            lambda z: coupled(z, bias, rate), z0, solver=cells.SMALL[solver]
        )
    )(z0, bias)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), sol.z) == jax.tree.map(
        lambda x: (x.shape, x.dtype), z0
    )
    assert bool(sol.stats.converged)
    want = coupled_solution(bias, rate)
    assert np.linalg.norm(flat(sol.z) - want) <= DTYPES[dtype] * (np.linalg.norm(want) + 1e-3)
    real = np.float64 if dtype in ("float64", "complex128") else np.float32
    assert sol.stats.residual.dtype == sol.stats.rel_residual.dtype == real


@pytest.mark.slow
@FEW
@given(
    sample=st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple),
    batch=st.integers(1, 4),
    axis=st.integers(-2, 1),
    dtype=st.sampled_from(["float64", "float32", "bfloat16"]),
    solver=st.sampled_from(cells.SOLVERS),
    seed=st.integers(0, 99),
)
def test_batched_contractions_converge_sample_by_sample(sample, batch, axis, dtype, solver, seed):
    """Leaves of different ranks with the batch at one axis; every sample has its own rate."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(-0.8, 0.8, size=batch)
    trees = [draw_arrays({"a": sample, "b": (2, 1)}, dtype, seed + i) for i in range(batch)]
    stack = lambda ts: jax.tree.map(lambda *xs: jnp.stack(xs, axis), *ts)
    bias = stack(trees)
    one = lambda z, b, r: coupled(z, b, r.astype(dtype))
    f = jax.vmap(one, in_axes=(axis, axis, 0), out_axes=axis)
    sol = jax.jit(
        lambda bias, rates: deqjax.fixed_point(
            f,
            jax.tree.map(jnp.zeros_like, bias),
            bias,
            rates,
            solver=cells.SMALL[solver],
            batch_axis=axis,
        )
    )(bias, rates)
    assert sol.stats.status.shape == (batch,) and np.all(sol.stats.converged)
    assert jax.tree.map(jnp.shape, sol.z) == jax.tree.map(jnp.shape, bias)
    for i in range(batch):
        got = flat(jax.tree.map(lambda x, i=i: jnp.take(x, i, axis), sol.z))
        want = coupled_solution(trees[i], float(jnp.asarray(rates[i], dtype)))
        assert np.linalg.norm(got - want) <= DTYPES[dtype] * (np.linalg.norm(want) + 1e-3)


@FEW
@given(
    n=st.integers(1, 6),
    solver=st.sampled_from(cells.SOLVERS),
    gain=st.sampled_from([0.5, 3.0, 30.0]),
    max_steps=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_any_cell_ends_with_a_residual_no_worse_than_the_start(n, solver, gain, max_steps, seed):
    """Contractive or wild: the statistics are those of the returned z."""
    rng = np.random.default_rng(seed)
    w, z0 = gain * rng.normal(size=(n, n)), rng.normal(size=n)
    f = lambda z: jnp.sin(w @ z) + 0.1 * (w @ z)
    sol = jax.jit(
        lambda z0: deqjax.fixed_point(
            f, z0, solver=cells.SMALL[solver], max_steps=max_steps, trace=True
        )
    )(z0)
    start = np.linalg.norm(f(z0) - z0)
    here = np.linalg.norm(f(sol.z) - sol.z)
    assert here <= start * (1 + 1e-9)
    np.testing.assert_allclose(sol.stats.residual, here, rtol=1e-6, atol=1e-12)
    assert float(sol.stats.residual) == np.nanmin(sol.stats.trace)
    assert int(sol.stats.steps) <= max_steps and int(sol.stats.f_evals) == int(sol.stats.steps) + 1
    assert bool(sol.stats.converged) == (int(sol.stats.status) == deqjax.Status.CONVERGED)


@FEW
@given(
    tree=trees,
    dtype=st.sampled_from(["float64", "complex128", "float32"]),
    solver=st.sampled_from(cells.SOLVERS),
    seed=st.integers(0, 99),
)
def test_gradients_of_contractions_are_known(tree, dtype, solver, seed):
    """The cell is symmetric and real-linear: the gradient to the bias is z* with v for the bias."""
    bias, v = draw_arrays(tree, dtype, seed), draw_arrays(tree, dtype, seed + 1)

    @jax.jit
    def pull(bias, v):
        solve = lambda bias: (
            deqjax.fixed_point(
                lambda z: coupled(z, bias, 0.6),
                jax.tree.map(jnp.zeros_like, bias),
                solver=cells.SMALL[solver],
                rtol=1e-6 if dtype == "float32" else 1e-10,
            ).z
        )
        return jax.vjp(solve, bias)[1](v)[0]

    got, want = pull(bias, v), coupled_solution(v, 0.6)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(
        lambda x: (x.shape, x.dtype), bias
    )
    tolerance = 1e-4 if dtype == "float32" else 1e-8
    assert np.linalg.norm(flat(got) - want) <= tolerance * np.linalg.norm(want) + 1e-12


def test_mixed_dtypes_in_one_state():
    """Arithmetic in the widest, tolerance of the narrowest, each leaf stored as it came."""
    z0 = {"low": jnp.zeros(3, jnp.bfloat16), "high": jnp.zeros(2, jnp.float32)}
    bias = {"low": jnp.ones(3, jnp.bfloat16), "high": jnp.ones(2, jnp.float32)}
    for solver in cells.SOLVERS:
        sol = jax.jit(
            lambda z0, solver=solver: deqjax.fixed_point(
                lambda z: coupled(z, bias, 0.5), z0, solver=cells.SMALL[solver]
            )
        )(z0)
        assert (sol.z["low"].dtype, sol.z["high"].dtype) == (jnp.bfloat16, jnp.float32)
        assert bool(sol.stats.converged) and sol.stats.residual.dtype == jnp.float32
        np.testing.assert_allclose(flat(sol.z).real, 2.0, rtol=0.1)


def test_complex_states_with_a_narrow_history():
    """A real history_dtype cannot hold a complex state: refused, or right, never wrong."""
    bias = jnp.asarray([1.0 + 2.0j, -0.5j, 0.3])
    f = lambda z: 0.7j * jnp.roll(z, 1) + bias
    want = np.linalg.solve(np.eye(3) - 0.7j * np.roll(np.eye(3), 1, axis=0), bias)
    for make in (deqjax.Anderson, deqjax.Broyden):
        try:
            sol = deqjax.fixed_point(
                f, jnp.zeros(3, complex), solver=make(memory=3, history_dtype="float32")
            )
        except (TypeError, ValueError) as error:
            assert "history_dtype" in str(error)
        else:
            assert bool(sol.stats.converged)
            np.testing.assert_allclose(sol.z, want, rtol=1e-5)


@pytest.mark.slow
@FEWER
@given(
    tree=trees,
    dtype=st.sampled_from(["float64", "float32", "complex128"]),
    case=st.sampled_from(sorted(OTHERS)),
    seed=st.integers(0, 99),
)
def test_other_solvers_and_adjoints_keep_structure_and_give_known_gradients(
    tree, dtype, case, seed
):
    bias, v = draw_arrays(tree, dtype, seed), draw_arrays(tree, dtype, seed + 1)

    @jax.jit
    def run(bias, v):
        def solve(bias):
            sol = deqjax.fixed_point(
                lambda z: coupled(z, bias, 0.4),
                jax.tree.map(jnp.zeros_like, bias),
                rtol=1e-5,
                **OTHERS[case],
            )
            return sol.z, sol.stats

        _, pull, stats = jax.vjp(solve, bias, has_aux=True)
        return pull(v)[0], solve(bias)[0], stats

    got, z, stats = run(bias, v)
    form = lambda t: jax.tree.map(lambda x: (x.shape, x.dtype), t)
    assert form(got) == form(z) == form(bias)
    assert bool(stats.converged)
    z_star = coupled_solution(bias, 0.4)
    assert np.linalg.norm(flat(z) - z_star) <= 1e-3 * np.linalg.norm(z_star)
    if case == "shine":  # approximate: no worse than u = v is
        left = lambda u: np.linalg.norm(flat(coupled(u, v, 0.4)) - flat(u))
        assert left(got) <= left(v) * (1 + 1e-3)
    else:
        want = coupled_solution(v, 0.4)
        assert np.linalg.norm(flat(got) - want) <= 1e-3 * np.linalg.norm(want)


@FEWER
@given(
    batch=st.integers(1, 5),
    axis=st.integers(-2, 1),
    case=st.sampled_from(sorted(OTHERS)),
    seed=st.integers(0, 99),
)
def test_vmap_is_the_batch_axis_in_value_and_gradient(batch, axis, case, seed):
    """Of other solvers and adjoints, jitted and not."""
    rng = np.random.default_rng(seed)
    bias, rates = rng.normal(size=(batch, 3)), rng.uniform(0.0, 0.5, size=batch)
    options = dict(rtol=1e-6) | OTHERS[case]

    def one(b, r):
        f = lambda z, b, r: coupled(z, b, r)
        sol = deqjax.fixed_point(f, jnp.zeros(3), b, r, **options)
        return jnp.sum(jnp.sin(sol.z)), sol

    def mapped(b, r):
        values, sol = jax.vmap(one)(b, r)
        return jnp.sum(values), sol

    def together(b, r):
        f = jax.vmap(coupled, in_axes=(axis, axis, 0), out_axes=axis)
        b = jnp.moveaxis(b, 0, axis)
        sol = deqjax.fixed_point(f, jnp.zeros_like(b), b, r, batch_axis=axis, **options)
        z = jnp.moveaxis(sol.z, axis, 0)
        return jnp.sum(jnp.sin(z)), deqjax.Solution(z, sol.stats)

    (a, s), g = jax.jit(jax.value_and_grad(mapped, (0, 1), has_aux=True))(bias, rates)
    (b, t), h = jax.jit(jax.value_and_grad(together, (0, 1), has_aux=True))(bias, rates)
    np.testing.assert_allclose(a, b, rtol=1e-9)
    np.testing.assert_array_equal(s.stats.steps, t.stats.steps)
    np.testing.assert_array_equal(s.stats.f_evals, t.stats.f_evals)
    np.testing.assert_array_equal(s.stats.status, deqjax.Status.CONVERGED)
    for x, y in zip(g, h, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@FEWER
@given(
    sample=st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple),
    batch=st.integers(2, 6),
    stages=st.sampled_from([1, 3, (3, 1), (5, 4)]),
    axis=st.integers(-2, 1),
    dtype=st.sampled_from(["float64", "float32"]),
    solver=st.sampled_from(cells.SOLVERS),
    seed=st.integers(0, 99),
)
def test_compacted_is_the_solver_that_it_wraps(sample, batch, stages, axis, dtype, solver, seed):
    """On leaves of different ranks, and an argument without the batch that might have it."""
    rng = np.random.default_rng(seed)
    low = jnp.asarray(rng.uniform(0.0, 0.8), dtype)
    bias = draw_arrays({"a": (batch, *sample), "b": (batch, 2, 1)}, dtype, seed)
    scale = jnp.geomspace(1e-3, 1.0, batch, dtype=dtype)
    bias = jax.tree.map(
        lambda x: jnp.moveaxis(x * scale.reshape(-1, *(1,) * (x.ndim - 1)), 0, axis), bias
    )
    weight = draw_arrays((batch,), dtype, seed)  # as long as the batch, but not along it

    def f(z, b, w):
        one = lambda z, b: jax.tree.map(
            lambda y, x: 0.3 * jnp.sin(3 * y) + x + 1e-2 * jnp.mean(w), coupled(z, b, low), b
        )
        return jax.vmap(one, in_axes=axis, out_axes=axis)(z, b)

    def run(solver):
        def loss(bias):
            z0 = jax.tree.map(jnp.zeros_like, bias)
            rtol = 1e-4 if dtype == "float32" else 1e-8
            sol = deqjax.fixed_point(
                f, z0, bias, weight, solver=solver, batch_axis=axis, rtol=rtol, max_steps=400
            )
            return sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(sol.z)), sol

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(bias)

    (_, want), want_bar = run(cells.SMALL[solver])
    (_, got), bar = run(deqjax.Compacted(cells.SMALL[solver], stages=stages))
    assert got.stats.status.shape == (batch,)
    np.testing.assert_array_equal(got.stats.status, want.stats.status)
    tolerance = 1e-2 if dtype == "float32" else 1e-5
    for x, y in ((got.z, want.z), (bar, want_bar)):
        assert jax.tree.map(jnp.shape, x) == jax.tree.map(jnp.shape, y)
        assert np.linalg.norm(flat(x) - flat(y)) <= tolerance * np.linalg.norm(flat(y)) + 1e-9
