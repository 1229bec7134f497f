"""The NNX module: one equation a solve, exact gradients, state updated once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import deqjax
from deqjax.nn import DEQ, TransformerCell, TransformerInput

D = 3
# Picard compiles fastest; what the others do differently is tested with the core.
TIGHT = dict(solver="picard", rtol=1e-12, max_steps=200)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


class Affine(nnx.Module):
    """f(z, x) = z W + x."""

    def __init__(self):
        self.kernel = nnx.Param(0.3 * jax.random.normal(jax.random.key(0), (D, D)))

    def __call__(self, z, x):
        return z @ self.kernel[...] + x


class Tanh(Affine):
    """f(z, x) = tanh(z W + x), with dropout inside."""

    def __init__(self, rate=0.0):
        super().__init__()
        self.drop = nnx.Dropout(rate, rngs=nnx.Rngs(1))

    def __call__(self, z, x):
        return jnp.tanh(self.drop(super().__call__(z, x)))


class MaskCell(nnx.Module):
    """f(z, x) = z / 2 + w mask: the solution, 2 w mask, shows the mask of the solve."""

    def __init__(self):
        self.w = nnx.Param(jnp.array(0.7))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=2))

    def __call__(self, z, x):
        return z / 2 + self.w[...] * self.drop(jnp.ones_like(z))


class RunningMean(nnx.Module):
    """f(z, x) = z / 2 + w x + mean, where a call adds 1 to `calls` and the mean of z to `mean`."""

    def __init__(self):
        self.w = nnx.Param(jnp.array(0.5))
        self.mean = nnx.BatchStat(jnp.array(1.0))
        self.calls = nnx.BatchStat(jnp.array(0))

    def __call__(self, z, x):
        out = z / 2 + self.w[...] * x + self.mean[...]
        self.mean[...] = self.mean[...] + z.mean()
        self.calls[...] = self.calls[...] + 1
        return out


def inputs(batch=4):
    return jax.random.normal(jax.random.key(5), (batch, D))


def weighted(z):
    """A loss whose cotangent is the same in no two entries."""
    return jnp.vdot(z, jnp.linspace(-1.0, 2.0, z.size).reshape(z.shape))


def dense(kernel, x):
    """The solution of z = z W + x."""
    return jnp.linalg.solve((jnp.eye(D) - kernel).T, x.T).T


def unrolled(kernel, x):
    """The solution of z = tanh(z W + x), by 200 plain steps."""
    return jax.lax.scan(lambda z, _: (jnp.tanh(z @ kernel + x), None), x, length=200)[0]


@nnx.jit
def value_and_grads(deq, x):
    def loss(deq, x):
        return weighted(deq(x).z)

    return nnx.value_and_grad(loss, argnums=(0, 1))(deq, x)


@nnx.jit(static_argnames="depth")
def solve(deq, x, depth=None):
    return deq(x, depth=depth)


def assert_close(actual, wanted, rtol=1e-8):
    np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=rtol)


# ---------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "options",
    [
        dict(solver="picard"),
        dict(solver="anderson"),
        dict(solver="broyden"),
        dict(solver=deqjax.Anderson(memory=2), adjoint_solver="broyden"),
        dict(adjoint="unrolled"),
    ],
    ids=lambda options: "-".join(str(v).split("(")[0] for v in options.values()),
)
def test_every_exact_pair_matches_the_dense_solution(options):
    deq, x = DEQ(Affine(), **TIGHT | options), inputs()
    value, (grads, dx) = value_and_grads(deq, x)
    kernel = deq.cell.kernel[...]
    wanted, (d_kernel, wanted_dx) = jax.value_and_grad(
        lambda kernel, x: weighted(dense(kernel, x)), (0, 1)
    )(kernel, x)
    assert_close(value, wanted)
    assert_close(grads["cell"]["kernel"][...], d_kernel)
    assert_close(dx, wanted_dx)


def test_phantom_and_jfb_are_the_approximations_that_they_name():
    x = inputs()
    kernel = Affine().kernel[...]
    z, J = dense(kernel, x), kernel.T
    v = jax.grad(weighted)(z)
    terms = {"jfb": v, "phantom": 0.0}
    for i in range(5):
        terms["phantom"] += 0.5 * v @ np.linalg.matrix_power(0.5 * np.eye(D) + 0.5 * J, i)
    for adjoint, u in terms.items():
        _, (grads, dx) = value_and_grads(DEQ(Affine(), adjoint=adjoint, **TIGHT), x)
        assert_close(dx, u)
        assert_close(grads["cell"]["kernel"][...], z.T @ u)


@pytest.mark.parametrize("adjoint", ["implicit", "phantom"])
def test_train_and_eval_mode_have_the_same_gradient(adjoint):
    deq, x = DEQ(Tanh(), adjoint=adjoint, **TIGHT), inputs()
    deq.train()
    train = value_and_grads(deq, x)
    deq.eval()
    evaluate = value_and_grads(deq, x)
    jax.tree.map(np.testing.assert_array_equal, train, evaluate)
    if adjoint == "implicit":
        wanted = jax.grad(lambda kernel: weighted(unrolled(kernel, x)))(deq.cell.kernel[...])
        assert_close(evaluate[1][0]["cell"]["kernel"][...], wanted)


def test_split_and_merge_under_plain_jax_transforms():
    deq, x = DEQ(Tanh(), **TIGHT), inputs()
    deq.eval()
    graph, params, rest = nnx.split(deq, nnx.Param, ...)

    def loss(params, x):
        return weighted(nnx.merge(graph, params, rest)(x).z)

    kernel = deq.cell.kernel[...]
    wanted = jax.vmap(jax.grad(lambda k, x: weighted(unrolled(k, x))), (None, 0))
    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, jnp.stack([x, 2 * x]))
    assert_close(grads["cell"]["kernel"][...], wanted(kernel, jnp.stack([x, 2 * x])))


def test_the_probe_reports_the_adjoint_solve():
    deq, x = DEQ(Affine(), **TIGHT), inputs()
    graph, state = nnx.split(deq)

    def loss(state, probe):
        return weighted(nnx.merge(graph, state)(x, adjoint_probe=probe).z)

    stats = jax.jit(jax.grad(loss, 1))(state, deqjax.adjoint_probe(batch=4, dtype=x.dtype))
    assert stats.converged.tolist() == [1.0] * 4
    assert (stats.steps >= 1).all() and (stats.rel_residual <= 1e-11).all()


# ---------------------------------------------------------------------------------- one equation


def test_dropout_inside_the_cell_is_drawn_once_per_solve():
    deq, x = DEQ(Tanh(rate=0.5), **TIGHT), inputs()
    first, second = solve(deq, x), solve(deq, x)
    assert first.stats.converged.all() and second.stats.converged.all()
    assert int(first.stats.steps.max()) > 1
    assert not np.allclose(first.z, second.z)
    assert int(deq.cell.drop.rngs.count[...]) == 2
    deq.eval()
    assert_close(solve(deq, x).z, unrolled(deq.cell.kernel[...], x))
    assert int(deq.cell.drop.rngs.count[...]) == 2


@pytest.mark.parametrize("depth", [None, 30])
def test_the_mask_is_one_for_all_steps_and_for_the_gradient(depth):
    deq, x = DEQ(MaskCell(), **TIGHT), inputs()

    def loss(deq):
        z = deq(x, depth=depth).z
        return weighted(z), z

    (_, z), grads = nnx.jit(nnx.value_and_grad(loss, has_aux=True))(deq)
    scale = 2.0 if depth is None else 2 - 0.5 ** (depth - 1)
    mask = z / (scale * 0.7)
    assert_close(jnp.where(mask > 1, 2.0, 0.0), mask)
    assert 0 < int((mask > 1).sum()) < mask.size
    assert_close(grads["cell"]["w"][...], weighted(scale * mask))
    assert int(deq.cell.drop.rngs.count[...]) == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_other_state_is_fixed_in_a_solve_and_updated_once_at_the_solution(compiled):
    deq, x = DEQ(RunningMean(), **TIGHT), inputs()
    call = solve if compiled else DEQ.__call__
    z = call(deq, x).z
    assert_close(z, x + 2.0)  # the mean that it had before the solve
    assert int(deq.cell.calls[...]) == 1
    assert_close(deq.cell.mean[...], 1.0 + z.mean())
    assert_close(call(deq, x).z, x + 2 * (1.0 + z.mean()))
    assert int(deq.cell.calls[...]) == 2


def test_other_state_is_updated_under_grad_and_takes_no_part_in_it():
    deq, x = DEQ(RunningMean(), **TIGHT), inputs()
    _, (grads, dx) = value_and_grads(deq, x)
    assert int(deq.cell.calls[...]) == 1
    assert_close(grads["cell"]["w"][...], weighted(2 * x))
    assert_close(dx, jax.grad(weighted)(x))


def test_function_is_the_equation_that_the_next_call_solves():
    deq, x = DEQ(MaskCell(), **TIGHT), inputs()
    before = deq.function(x)
    first = solve(deq, x).z  # draws keys for the next one; f keeps its own
    after = deq.function(x)
    second = solve(deq, x).z
    assert_close(before(first), first, 1e-11)
    assert_close(after(second), second, 1e-11)
    assert not np.allclose(after(first), first)


@pytest.mark.parametrize("kind", ["array", "ref", "numpy"])
def test_function_is_a_snapshot(kind):
    class Cell(nnx.Module):
        def __init__(self):
            start = np.array(0.5) if kind == "numpy" else jnp.array(0.5)
            self.w = nnx.Param(start, use_ref=kind == "ref")
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(2))
            self.mean = nnx.BatchStat(jnp.array(1.0))

        def __call__(self, z, x):
            return self.w[...] * self.drop(z) + x + self.mean[...]

    cell, x = Cell(), np.ones((4, D))
    deq = DEQ(cell, **TIGHT)
    f = deq.function(x)
    wanted = f(jnp.ones_like(x))
    assert set(np.ravel(wanted).tolist()) == {2.0, 3.0}  # dropped, or doubled
    deq(x)
    deq.eval()
    if kind == "numpy":
        cell.w.get_value()[...] = 0.9
        x += 1
    else:
        cell.w[...] = 0.9
    cell.mean[...] = 7.0
    np.testing.assert_array_equal(f(jnp.ones_like(x)), wanted)


class Normalised(Affine):
    """f(z, x) = tanh(BatchNorm(z W) / 2 + x): in train mode, every row of all rows."""

    def __init__(self):
        super().__init__()
        self.norm = nnx.BatchNorm(D, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        # Flax makes these in float32.
        self.norm.mean, self.norm.var = nnx.BatchStat(jnp.zeros(D)), nnx.BatchStat(jnp.ones(D))

    def __call__(self, z, x):
        return jnp.tanh(0.5 * self.norm(z @ self.kernel[...]) + x)


def test_batch_norm_in_train_mode_is_one_equation():
    """Solution and gradient against the plain equation, iterated and differentiated as it is."""
    x = inputs(6) * jnp.geomspace(0.01, 5, 6)[:, None]
    options = TIGHT | dict(rtol=1e-13, max_steps=400)

    def rows(kernel, x, z):
        u = z @ kernel
        u = (u - u.mean(0)) / jnp.sqrt(u.var(0) + 1e-5)
        return jnp.tanh(0.5 * u + x)

    def exact(kernel, x):
        return jax.lax.scan(lambda z, _: (rows(kernel, x, z), None), x, length=400)[0]

    backward = deqjax.Broyden(memory=20, max_steps=400)
    deq = DEQ(Normalised(), batch_axis=None, adjoint_solver=backward, **options)
    deq.train()
    kernel, f = deq.cell.kernel[...], deq.function(x)
    sol = solve(deq, x)
    assert sol.stats.converged.shape == () and bool(sol.stats.converged)
    assert_close(f(sol.z), sol.z, 1e-11)
    assert_close(sol.z, exact(kernel, x), 1e-9)
    _, (grads, dx) = value_and_grads(deq, x)
    d_kernel, wanted_dx = jax.grad(lambda k, x: weighted(exact(k, x)), (0, 1))(kernel, x)
    assert_close(grads["cell"]["kernel"][...], d_kernel, 1e-7)
    assert_close(dx, wanted_dx, 1e-7)
    alone = jax.vmap(lambda x: exact(kernel, x[None])[0])(x)
    assert not np.allclose(sol.z, alone, atol=0.01)  # the rows do depend on each other


def test_a_cell_without_other_state_is_not_called_again():
    calls = []

    class Cell(Affine):
        def __call__(self, z, x):
            calls.append(type(z))
            return super().__call__(z, x)

    DEQ(Cell(), **TIGHT)(inputs())
    assert calls and jax.Array not in calls  # only ever traced


# ---------------------------------------------------------------------------------- depth


def test_depth_stacks_the_cell_and_its_gradient():
    deq, x = DEQ(Tanh(), **TIGHT), inputs()

    def stack(kernel, x):
        z = jnp.zeros_like(x)
        for _ in range(3):
            z = jnp.tanh(z @ kernel + x)
        return z

    value, (grads, dx) = nnx.jit(
        nnx.value_and_grad(lambda deq, x: weighted(deq(x, depth=3).z), argnums=(0, 1))
    )(deq, x)
    wanted, (d_kernel, wanted_dx) = jax.value_and_grad(
        lambda kernel, x: weighted(stack(kernel, x)), (0, 1)
    )(deq.cell.kernel[...], x)
    assert_close(value, wanted, 1e-12)
    assert_close(grads["cell"]["kernel"][...], d_kernel, 1e-12)
    assert_close(dx, wanted_dx, 1e-12)


def test_depth_says_how_far_it_is_from_an_equilibrium():
    deq, x = DEQ(Affine()), inputs()
    before, after = solve(deq, x, depth=2).z, solve(deq, x, depth=3)
    z, stats = after.z, after.stats
    assert_close(stats.residual, jnp.linalg.norm(z - before, axis=1))
    assert_close(stats.rel_residual, stats.residual / jnp.linalg.norm(z, axis=1))
    assert stats.steps.tolist() == stats.f_evals.tolist() == [3] * 4
    assert not stats.converged.any()
    assert solve(DEQ(Affine(), batch_axis=None), x, depth=1).stats.residual.shape == ()
    with pytest.raises(ValueError, match="depth must be an integer >= 1"):
        deq(x, depth=0)


# ---------------------------------------------------------------------------------- the cell's say


def test_inject_runs_once_per_solve_and_initial_state_starts_it():
    calls = []

    class Cell(Affine):
        def __init__(self):
            super().__init__()
            self.read = nnx.Param(jnp.linspace(0.0, 1.0, 2 * D).reshape(2, D))

        def inject(self, x):
            calls.append("inject")
            return x @ self.read[...]

        def initial_state(self, x):
            calls.append("initial_state")
            return jnp.ones((x.shape[0], D))

    deq, x = DEQ(Cell(), **TIGHT), jnp.arange(8.0).reshape(4, 2)
    assert_close(deq(x).z, dense(deq.cell.kernel[...], x @ deq.cell.read[...]))
    assert calls == ["initial_state", "inject"]
    start = DEQ(Cell(), max_steps=0)
    np.testing.assert_array_equal(start(x).z, 1.0)
    np.testing.assert_array_equal(start(x, z0=jnp.full((4, D), 7.0)).z, 7.0)
    grads = nnx.grad(lambda deq: weighted(deq(x).z))(deq)
    wanted = jax.grad(lambda read: weighted(dense(deq.cell.kernel[...], x @ read)))
    assert_close(grads["cell"]["read"][...], wanted(deq.cell.read[...]))


def test_start_resume_and_trace_reach_the_solver():
    deq, x = DEQ(Affine(), solver="broyden", rtol=1e-12, max_steps=9), inputs()
    cold = nnx.jit(lambda deq, x: deq(x, trace=True))(deq, x)
    assert cold.stats.converged.all() and cold.stats.trace.shape == (10, 4)
    again = nnx.jit(lambda deq, x, old: deq(x, z0=old.z, resume=old.state))
    assert again(deq, x, cold).stats.steps.tolist() == [0] * 4
    near = again(deq, x + 1e-6, cold).stats
    assert (near.steps < solve(deq, x + 1e-6).stats.steps).all()


def test_batch_axis():
    x = inputs()
    whole = solve(DEQ(Affine(), batch_axis=None, **TIGHT), x)
    assert whole.stats.converged.shape == ()
    each = solve(DEQ(Affine(), **TIGHT), x)
    assert each.stats.converged.shape == (4,)
    assert_close(whole.z, each.z)
    lone = solve(DEQ(Affine(), **TIGHT), x[2:3])
    assert int(lone.stats.steps[0]) == int(each.stats.steps[2])
    assert_close(lone.z[0], each.z[2], 1e-14)


# ---------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(solver="andersen"), "did you mean 'anderson'"),
        (dict(solver=deqjax.Anderson), r"write Anderson\(\)"),
        (dict(adjoint="implict"), "did you mean 'implicit'"),
        (dict(adjoint_solver="broydn"), "adjoint_solver='broydn'.*did you mean 'broyden'"),
        (dict(adjoint="jfb", adjoint_solver="picard"), "adjoint_solver= has no effect"),
        (dict(rtol=-1.0), "rtol must be a finite number >= 0"),
        (dict(atol="small"), "atol must be a Python number"),
        (dict(max_steps=2.5), "max_steps must be an integer"),
        (dict(tolerance=1e-3), "tolerance"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_options_fail_in_the_constructor_with_one_sentence(options, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence) as caught:
        DEQ(Affine(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_compaction_with_a_transformer_and_its_dropout():
    """Masks are drawn once per solve, a row a sample, so that a part of the batch has its own."""
    x = jax.random.normal(jax.random.key(1), (8, 5, 8)) * jnp.geomspace(1, 30, 8)[:, None, None]
    solutions = []
    for solver in ("anderson", deqjax.Compacted("anderson", stages=2)):
        cell = TransformerCell(8, heads=2, d_inner=16, dropout=0.3, rngs=nnx.Rngs(0))
        deq = DEQ(cell, solver=solver, rtol=1e-8, max_steps=400)
        solutions.append(nnx.jit(lambda deq, x: deq(TransformerInput(x)))(deq, x))
    plain, compacted = solutions
    assert bool(compacted.stats.converged.all())
    assert len(set(np.asarray(plain.stats.steps).tolist())) > 2
    np.testing.assert_allclose(compacted.z, plain.z, atol=1e-6)


def test_a_call_may_have_its_own_limit_and_gradient():
    deq, x = DEQ(Tanh(), **TIGHT), jnp.ones((2, D))
    assert deq(x, max_steps=2).stats.steps.tolist() == [2, 2]
    assert (deq(x).stats.steps > 2).all()

    def gradient(**options):
        return nnx.grad(lambda deq: jnp.sum(deq(x, **options).z ** 2))(deq)["cell"]["kernel"][...]

    exact, cheap = gradient(), gradient(adjoint="jfb")
    jfb = DEQ(Tanh(), **TIGHT, adjoint="jfb")
    np.testing.assert_array_equal(
        cheap, nnx.grad(lambda deq: jnp.sum(deq(x).z ** 2))(jfb)["cell"]["kernel"][...]
    )
    assert jnp.abs(exact - cheap).max() > 1e-3


def test_f_in_bfloat16_and_the_solve_in_float32():
    seen = []

    class Seen(Tanh):
        def __call__(self, z, x):
            seen.append((z.dtype, x.dtype, self.kernel[...].dtype))
            return super().__call__(z, x)

    x = jax.random.normal(jax.random.key(3), (4, D), jnp.float32)
    cell = Seen()
    cell.kernel.set_value(cell.kernel[...].astype(jnp.float32))
    half = DEQ(cell, dtype=jnp.bfloat16, rtol=1e-2)
    sol = half(x)
    assert seen[0] == (jnp.dtype(jnp.bfloat16),) * 3
    full = DEQ(cell, rtol=1e-6)(x)
    assert sol.z.dtype == jnp.float32 and sol.stats.converged.all()
    np.testing.assert_allclose(sol.z, full.z, atol=0.03)

    loss = lambda deq: jnp.sum(deq(x).z ** 2)
    grads = [nnx.grad(loss)(deq)["cell"]["kernel"][...] for deq in (half, DEQ(cell, rtol=1e-6))]
    assert grads[0].dtype == jnp.float32
    np.testing.assert_allclose(*grads, atol=0.05 * float(jnp.abs(grads[1]).max()))


@pytest.mark.parametrize("depth", [1, 2, 3, 8, 11])
def test_checkpoints_change_nothing_about_a_stack(depth):
    x = jax.random.normal(jax.random.key(3), (4, D))

    def both(checkpoint):
        deq = DEQ(Tanh(), checkpoint=checkpoint)

        def loss(deq):
            sol = deq(x, depth=depth)
            return jnp.sum(sol.z**2), sol.stats

        (value, stats), grad = nnx.value_and_grad(loss, has_aux=True)(deq)
        return value, stats, grad["cell"]["kernel"][...]

    for a, b in zip(*map(jax.tree.leaves, (both("none"), both("sqrt"))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="checkpoint must be"):
        DEQ(Tanh(), checkpoint="some")
