"""Properties over shapes, pytrees, dtypes, batch axes and solvers, drawn by hypothesis."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings

import deqjax

from .cells import SMALL, SOLVERS

FEW = settings(max_examples=6, deadline=None, derandomize=True)

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
    solver=st.sampled_from(SOLVERS),
    rate=st.sampled_from([-0.8, 0.3, 0.6]),
    seed=st.integers(0, 99),
)
def test_contractions_converge_with_structure_and_dtype_kept(tree, dtype, solver, rate, seed):
    bias, z0 = draw_arrays(tree, dtype, seed), draw_arrays(tree, dtype, seed + 1)
    sol = jax.jit(
        lambda z0, bias: deqjax.fixed_point(
            lambda z: coupled(z, bias, rate), z0, solver=SMALL[solver]
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


@FEW
@given(
    sample=st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple),
    batch=st.integers(1, 4),
    axis=st.integers(-2, 1),
    dtype=st.sampled_from(["float64", "float32", "bfloat16"]),
    solver=st.sampled_from(SOLVERS),
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
            solver=SMALL[solver],
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
    solver=st.sampled_from(SOLVERS),
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
        lambda z0: deqjax.fixed_point(f, z0, solver=SMALL[solver], max_steps=max_steps, trace=True)
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
    solver=st.sampled_from(SOLVERS),
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
                solver=SMALL[solver],
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
    for solver in SOLVERS:
        sol = jax.jit(
            lambda z0, solver=solver: deqjax.fixed_point(
                lambda z: coupled(z, bias, 0.5), z0, solver=SMALL[solver]
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
