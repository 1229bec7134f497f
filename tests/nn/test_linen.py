"""The Linen adapter: the same equation, gradients and state, by init and apply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deqjax.nn.linen import DEQ

D = 3
TIGHT = dict(solver="picard", rtol=1e-12, max_steps=200)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


class Tanh(nn.Module):
    """tanh(z W + x), with dropout inside."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, z, x):
        kernel = nn.initializers.normal(0.3)
        h = nn.Dense(D, use_bias=False, kernel_init=kernel, param_dtype=jnp.float64)(z)
        return jnp.tanh(nn.Dropout(self.rate, deterministic=self.rate == 0)(h + x))


class MaskCell(nn.Module):
    """z / 2 + w mask: the solution, 2 w mask, shows the mask of the solve."""

    @nn.compact
    def __call__(self, z, x):
        w = self.param("w", nn.initializers.constant(0.7), (), jnp.float64)
        return z / 2 + w * nn.Dropout(0.5, deterministic=False)(jnp.ones_like(z))


class RunningMean(nn.Module):
    """z / 2 + x + mean, where a call in training adds the mean of z to `mean`."""

    train: bool = True

    @nn.compact
    def __call__(self, z, x):
        mean = self.variable("batch_stats", "mean", lambda: jnp.array(1.0))
        out = z / 2 + x + mean.value
        if self.train and not self.is_initializing():
            mean.value += z.mean()
        self.sow("intermediates", "z", z)
        return out


def inputs(batch=4):
    return jax.random.normal(jax.random.key(5), (batch, D))


def weighted(z):
    return jnp.vdot(z, jnp.linspace(-1.0, 2.0, z.size).reshape(z.shape))


def unrolled(kernel, x):
    return jax.lax.scan(lambda z, _: (jnp.tanh(z @ kernel + x), None), x, length=200)[0]


def assert_close(actual, wanted, rtol=1e-8):
    np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    "options",
    [dict(), dict(solver="anderson", adjoint_solver="picard"), dict(adjoint="unrolled")],
    ids=["picard", "anderson", "unrolled"],
)
def test_solution_and_gradients_equal_an_unrolled_reference(options):
    deq, x = DEQ(Tanh(), **TIGHT | options), inputs()
    params = jax.jit(deq.init)(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"cell": {"Dense_0": {"kernel": (D, D)}}}

    @jax.jit
    @jax.value_and_grad
    def value_and_grads(both):
        return weighted(deq.apply({"params": both[0]}, both[1]).z)

    @jax.jit
    @jax.value_and_grad
    def wanted(both):
        return weighted(unrolled(both[0]["cell"]["Dense_0"]["kernel"], both[1]))

    jax.tree.map(assert_close, value_and_grads((params, x)), wanted((params, x)))


def test_vmap_and_start():
    deq, x = DEQ(Tanh(), **TIGHT), jnp.stack([inputs(), 2 * inputs()])
    variables = deq.init(jax.random.key(0), x[0])
    kernel = variables["params"]["cell"]["Dense_0"]["kernel"]
    z = jax.jit(jax.vmap(lambda x: deq.apply(variables, x).z))(x)
    assert_close(z, unrolled(kernel, x))
    start = DEQ(Tanh(), solver="picard", max_steps=0).apply(variables, x[0], z[0])
    np.testing.assert_array_equal(start.z, z[0])
    assert start.stats.f_evals.tolist() == [1] * 4


def test_each_random_stream_is_drawn_from_once_per_solve():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            cell = MaskCell()
            return DEQ(cell, **TIGHT, name="a")(x).z, DEQ(cell, **TIGHT, name="b")(x).z

    deq, x = DEQ(MaskCell(), **TIGHT), inputs()
    variables = deq.init(jax.random.key(0), x)

    @jax.jit
    def gradient(variables, key):
        def loss(variables):
            solution = deq.apply(variables, x, rngs={"dropout": key})
            return weighted(solution.z), solution

        return jax.grad(loss, has_aux=True)(variables)

    grads, solution = gradient(variables, jax.random.key(1))
    assert solution.stats.converged.all()
    mask = solution.z / 1.4
    assert_close(jnp.where(mask > 1, 2.0, 0.0), mask)
    assert 0 < int((mask > 1).sum()) < mask.size
    assert_close(grads["params"]["cell"]["w"], weighted(2 * mask))
    assert not np.allclose(gradient(variables, jax.random.key(2))[1].z, solution.z)

    both = Twice()
    variables = both.init(jax.random.key(0), x)
    first, second = both.apply(variables, x, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(first, second)


def test_a_missing_stream_is_named():
    deq, x = DEQ(Tanh(rate=0.5), **TIGHT), inputs()
    variables = deq.init(jax.random.key(0), x)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        deq.apply(variables, x)


def test_mutable_collections_are_updated_once_at_the_solution():
    deq, x = DEQ(RunningMean(), **TIGHT), inputs()
    variables = deq.init(jax.random.key(0), x)
    assert variables["batch_stats"] == {"cell": {"mean": 1.0}}

    @jax.jit
    def gradient(variables, x):
        def loss(x):
            mutable = ["batch_stats", "intermediates"]
            solution, updates = deq.apply(variables, x, mutable=mutable)
            return weighted(solution.z), (solution.z, updates)

        return jax.grad(loss, has_aux=True)(x)

    dx, (z, updates) = gradient(variables, x)
    assert_close(z, 2 * (x + 1.0))  # the mean that it had before the solve
    assert_close(updates["batch_stats"]["cell"]["mean"], 1.0 + z.mean())
    (sown,) = updates["intermediates"]["cell"]["z"]
    assert_close(sown, z)
    assert_close(dx, 2 * jax.grad(weighted)(x))
    with pytest.raises(Exception, match='collection "batch_stats" is immutable'):
        deq.apply(variables, x)
    fixed = DEQ(RunningMean(train=False), **TIGHT).apply(variables, x)
    assert_close(fixed.z, z)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(solver="andersen"), "did you mean 'anderson'"),
        (dict(adjoint="implict"), "did you mean 'implicit'"),
        (dict(adjoint_solver="broydn"), "adjoint_solver='broydn'"),
        (dict(adjoint="jfb", adjoint_solver="picard"), "adjoint_solver= has no effect"),
        (dict(rtol=-1.0), "rtol must be a finite number"),
    ],
    ids=["solver", "adjoint", "adjoint_solver", "jfb", "rtol"],
)
def test_wrong_options_fail_in_the_constructor(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        DEQ(Tanh(), **options)


class Injecting(nn.Module):
    """tanh(z W + c) with c = x U, made once by `inject`, from a state of ones."""

    def setup(self):
        kernel = nn.initializers.normal(0.3)
        self.recurrent = nn.Dense(D, kernel_init=kernel, param_dtype=jnp.float64)
        self.input = nn.Dense(D, param_dtype=jnp.float64)

    def inject(self, x):
        return self.input(x)

    def initial_state(self, x):
        return jnp.ones((len(x), D))

    def __call__(self, z, context):
        return jnp.tanh(self.recurrent(z) + context)


def test_tables_and_paths_of_a_module_with_an_equilibrium():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(DEQ(Tanh())(x).z)

    x = inputs()
    assert "DEQ_0" in Net().tabulate(jax.random.key(0), x)
    assert "DEQ_0" in Net().module_paths(jax.random.key(0), x)


def test_what_the_module_for_nnx_takes():
    """Injection, a start of the cell's own, a stack, effort, statistics and a precision of f."""
    x = inputs()
    deq = DEQ(Injecting(), **TIGHT)
    variables = deq.init(jax.random.key(0), x)
    sol = deq.apply(variables, x, trace=True, stability=8)
    assert sol.stats.converged.all() and sol.stats.trace.shape == (201, 4)
    assert sol.stats.stable.shape == (4,)
    params = variables["params"]["cell"]
    c = x @ params["input"]["kernel"] + params["input"]["bias"]
    z = sol.z @ params["recurrent"]["kernel"] + params["recurrent"]["bias"]
    np.testing.assert_allclose(sol.z, jnp.tanh(z + c), atol=1e-11)
    again = deq.apply(variables, x, context=c)
    np.testing.assert_allclose(again.z, sol.z, atol=1e-12)
    short = deq.apply(variables, x, max_steps=2)
    np.testing.assert_array_equal(short.stats.steps, 2)
    stack = deq.apply(variables, x, depth=2)
    np.testing.assert_allclose(stack.z, short.z, rtol=1e-12)
    scanned = DEQ(Injecting(), scan=True).apply(variables, x, depth=2)
    np.testing.assert_allclose(scanned.z, stack.z, rtol=1e-12)
    half = DEQ(Injecting(), dtype=jnp.bfloat16, rtol=1e-2).apply(variables, x)
    assert half.z.dtype == jnp.float64
    assert 1e-6 < float(jnp.abs(half.z - sol.z).max()) < 0.05
