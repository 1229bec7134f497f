"""How large an adjoint is, what its residual is measured against, and reports that cannot lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status
from tests import cells


def affine(z, a, x):
    return a * z + x


def report(a, v, **options):
    """Of the adjoint of z = a z + x for the cotangent v, and u = v / (1 − a) as it came out."""
    a, v = jnp.asarray(a), jnp.asarray(v)
    batch = v.shape[0] if options.get("batch_axis") == 0 else None

    def loss(x, probe):
        z_star = x / (1 - a)
        sol = deqjax.implicit_function(affine, z_star, a, x, adjoint_probe=probe, **options)
        return jnp.sum(v * sol.z)

    probe = deqjax.adjoint_probe(batch, v.dtype)
    return jax.grad(loss, (0, 1))(jnp.ones_like(v), probe)


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_gain_is_the_length_of_u_over_that_of_v(solver):
    a, v = np.array([0.5, -0.5, 0.8]), np.array([1.0, 2.0, 3.0])
    u, stats = report(a, v, adjoint_solver=cells.SMALL[solver], rtol=1e-9)
    np.testing.assert_allclose(u, v / (1 - a), rtol=1e-8)
    gain = np.linalg.norm(v / (1 - a)) / np.linalg.norm(v)
    np.testing.assert_allclose(stats.gain, gain, rtol=1e-8)


def test_the_residual_is_relative_to_v_however_long_u_is():
    """I − J is nearly singular: along that direction any u is its own image to 1e-7."""
    a, v = np.array([1 - 1e-7, 0.2]), np.array([1.0, 1.0])
    for solver in ("anderson", "broyden", "gmres"):
        u, stats = report(a, v, adjoint_solver=solver, rtol=1e-4)
        residual = np.linalg.norm((a - 1) * np.asarray(u) + v)
        assert residual <= 1e-4 * np.linalg.norm(v) and bool(stats.converged)
        np.testing.assert_allclose(u, v / (1 - a), rtol=2e-4)
    _, stats = report(a, v, adjoint_solver=deqjax.Picard(max_steps=30), rtol=1e-4)
    assert float(stats.converged) == 0 and float(stats.rel_residual) > 0.5


@pytest.mark.parametrize("solver", ["anderson", "broyden", "gmres", "picard"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_singular_adjoint_equation_is_not_solved(solver, dtype):
    a = jnp.array([[0.9, 0.3], [0.1, 0.7]], dtype)  # columns sum to one: (1, 1) J = (1, 1)
    f = lambda z, x: a @ z + x
    v = jnp.array([1.0, 0.5], dtype)  # and v does not vanish on the right null vector (3, 1)

    def loss(x, probe):
        sol = deqjax.implicit_function(
            f, jnp.ones(2, dtype), x, adjoint_solver=solver, adjoint_probe=probe
        )
        return v @ sol.z

    stats = jax.grad(loss, 1)(jnp.ones(2, dtype), deqjax.adjoint_probe(dtype=dtype))
    assert float(stats.converged) == 0
    assert Status(int(stats.status)) in (Status.MAX_STEPS, Status.UNBOUNDED, Status.DIVERGED)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_residual_may_be_asked_to_be_zero(dtype):
    """Of a nilpotent Jacobian it is, after three steps; of u = u + v at a u that rounds v away."""
    a = jnp.array([[0.0, 2.0, -3.0], [0.0, 0.0, 0.7], [0.0, 0.0, 0.0]], dtype)
    solver = dict(adjoint_solver=deqjax.Picard(rtol=0.0, max_steps=500))

    def loss(x, probe, a):
        z_star = jnp.linalg.solve(jnp.eye(3, dtype=dtype) - a, x) if a.ndim else jnp.zeros_like(x)
        f = (lambda z, x: a @ z + x) if a.ndim else (lambda z, x: a * z + 0 * x)
        sol = deqjax.implicit_function(f, z_star, x, adjoint_probe=probe, **solver)
        return jnp.sum(sol.z)

    one = jnp.ones(3, dtype)
    u, stats = jax.grad(loss, (0, 1))(one, deqjax.adjoint_probe(dtype=dtype), a)
    assert float(stats.status) == Status.CONVERGED and float(stats.residual) == 0
    np.testing.assert_allclose(u, np.linalg.solve((np.eye(3) - a).T, one), rtol=1e-6)

    double = jnp.array(2.0, dtype)  # u = 2u + v grows until v is lost in it
    with deqjax.checking_solves("ignore"):
        _, stats = jax.grad(loss, (0, 1))(one, deqjax.adjoint_probe(dtype=dtype), double)
    assert float(stats.converged) == 0


def test_max_gain_scales_down_the_samples_that_are_longer_and_no_other():
    a = np.array([[0.5], [0.99], [0.9]])
    v = np.array([[1.0], [2.0], [1e-20]])
    adjoint = deqjax.Implicit(solver="anderson", max_gain=20.0)
    u, stats = report(a, v, adjoint=adjoint, batch_axis=0, rtol=1e-9)
    np.testing.assert_allclose(u[:, 0], [2.0, 40.0, 1e-19], rtol=1e-7)
    assert [Status(int(s)) for s in stats.status] == [
        *(Status.CONVERGED, Status.LIMITED, Status.CONVERGED)
    ]
    np.testing.assert_array_equal(stats.converged, [1, 0, 1])
    np.testing.assert_allclose(stats.gain, [2.0, 100.0, 10.0], rtol=1e-6)


@pytest.mark.parametrize("limit", [0.5, -1.0, "ten"])
def test_a_wrong_limit_gets_a_sentence(limit):
    with pytest.raises((TypeError, ValueError), match="max_gain"):
        deqjax.Implicit(max_gain=limit)


def test_a_sample_of_any_weight_has_its_own_gradient():
    """In float32, where 1e-20 squared is nothing."""
    a = jnp.array([[0.8], [0.8], [0.5]], jnp.float32)
    v = jnp.array([[1.0], [1e-20], [1e15]], jnp.float32)
    for solver in cells.SMALL:
        u, stats = report(a, v, adjoint_solver=cells.SMALL[solver], batch_axis=0)
        np.testing.assert_allclose(u / v, 1 / (1 - a), rtol=1e-4)
        np.testing.assert_array_equal(stats.converged, 1)
        assert stats.steps[0] == stats.steps[1]


# ------------------------------------------------------------------------------- reports


def loss(a, probe, max_steps=5):
    f = lambda z, a: a * z + 1.0
    adjoint_solver = deqjax.Picard(max_steps=max_steps)
    return deqjax.fixed_point(
        f, jnp.zeros(3), a, solver="picard", adjoint_solver=adjoint_solver, adjoint_probe=probe
    ).z.sum()


def test_a_shared_probe_counts():
    probe = deqjax.adjoint_probe()
    total = jax.grad(lambda p: loss(0.9, p) + loss(0.8, p) + loss(0.1, p, 100))(probe)
    assert Status(int(total.status)) is Status.SEVERAL
    assert (float(total.solves), float(total.converged)) == (3, 1)


def test_no_report_is_no_success():
    def unused(probe):
        sol = deqjax.fixed_point(lambda z: 0.9 * z + 1, jnp.zeros(3), adjoint_probe=probe)
        return sol.stats.residual

    absent = jax.grad(unused)(deqjax.adjoint_probe())
    assert Status(int(absent.status)) is Status.NO_REPORT
    assert (float(absent.solves), float(absent.converged)) == (0, 0)


def test_no_sum_of_statuses_is_one():
    codes = [int(s) for s in Status if s >= Status.CONVERGED]
    for a in codes:
        for b in codes:
            assert Status(a + b) is Status.SEVERAL
            assert Status(a + b + codes[0]) is Status.SEVERAL
    with pytest.raises(ValueError, match="not a valid"):
        Status(5)


# ----------------------------------------------------------------------------- unconverged solves


def test_unconverged_samples_can_have_an_approximation_and_no_other():
    a, v = np.array([[0.5], [0.9]]), np.array([[1.0], [2.0]])
    x = np.ones_like(a)

    def run(unconverged):
        adjoint = deqjax.Implicit(solver="anderson", unconverged=unconverged)

        def of(x, probe):
            sol = deqjax.fixed_point(
                *(affine, jnp.zeros_like(x), a, x),
                **dict(solver=deqjax.Picard(max_steps=20), batch_axis=0, rtol=1e-4),
                adjoint=adjoint,
                adjoint_probe=probe,
            )
            return jnp.sum(v * sol.z), sol.stats

        return jax.grad(of, (0, 1), has_aux=True)(x, deqjax.adjoint_probe(2, jnp.float64))

    (u, report), stats = run("jfb")
    np.testing.assert_array_equal(stats.converged, [True, False])
    np.testing.assert_allclose(u[:, 0], [2.0, 2.0], rtol=1e-3)  # v / (1 − a), and v
    assert [int(s) for s in report.status] == [Status.CONVERGED, Status.LIMITED]
    (exact, report), _ = run("exact")
    np.testing.assert_allclose(exact[:, 0], [2.0, 20.0], rtol=1e-3)
    np.testing.assert_array_equal(report.converged, 1)
    # Σ aⁱ over the five applications that a tail has, and nothing.
    for which, wanted in (("tail", 2 * (1 - 0.9**5) / (1 - 0.9)), ("zero", 0.0)):
        (u, report), _ = run(which)
        np.testing.assert_allclose(u[:, 0], [2.0, wanted], rtol=1e-3)
        assert [int(s) for s in report.status] == [Status.CONVERGED, Status.LIMITED]
    with pytest.raises(ValueError, match="'exact', 'jfb', 'tail' or 'zero'"):
        deqjax.Implicit(unconverged="phantom")
