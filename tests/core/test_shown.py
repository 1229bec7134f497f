"""What a reader sees of a result: a line, and a paragraph on demand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status


def solution(**options):
    f = lambda z, x: 0.5 * jnp.cos(z) + x
    x = jnp.linspace(0.0, 1.0, 48, dtype=jnp.float32).reshape(6, 8)
    return deqjax.fixed_point(f, jnp.zeros_like(x), x, batch_axis=0, **options)


def test_a_solution_is_one_line():
    sol = solution()
    steps = np.asarray(sol.stats.steps)
    said = f"{steps.min()}\N{EN DASH}{steps.max()}" if np.ptp(steps) else str(steps.min())
    worst = f"{float(sol.stats.rel_residual.max()):.1e}"
    line = f"6/6 converged, {said} steps, worst residual {worst}"
    assert repr(sol) == str(sol) == f"Solution(z float32[6,8], {line})"
    assert repr(sol.stats) == f"Stats({line})"
    assert line in sol._repr_html_()


def test_a_summary_says_what_failed_and_where():
    sol = solution(max_steps=1, on_failure="ignore")
    said = repr(sol.summary())
    assert "0/6 converged, 6 max_steps" in said and Status.MAX_STEPS.message in said
    worst = np.asarray(sol.stats.rel_residual)
    assert f"worst {worst.max():.1e} (sample {worst.argmax()})" in said
    leaves = deqjax.fixed_point(
        lambda z: {"a": jnp.cos(z["b"]), "b": 0.5 * z["a"]}, dict(a=0.0, b=0.0)
    )
    assert "{'a': float64[], 'b': float64[]}" in repr(leaves)
    assert f"{float(leaves.stats.leaves.max()):.1e}" in leaves.summary()


def test_no_numbers_no_claim():
    x = jnp.zeros(())
    shapes = jax.eval_shape(lambda x: deqjax.fixed_point(lambda z, x: 0.5 * z + x, 0.0, x), x)
    assert "no numbers yet" in repr(shapes)
    seen = []

    @jax.jit
    def traced(x):
        sol = deqjax.fixed_point(lambda z, x: 0.5 * z + x, jnp.zeros(()), x)
        seen.append(repr(sol))
        with pytest.raises(TypeError, match="outside of jit"):
            sol.summary()
        return sol.z

    traced(x)
    assert "no numbers yet" in seen[0]


def test_statuses_are_counted_by_name():
    assert Status.counts(np.array([10, 11, 10])) == {"CONVERGED": 2, "MAX_STEPS": 1}


def test_solvers_and_adjoints_say_what_is_not_default():
    assert repr(deqjax.Anderson()) == "Anderson()"
    assert repr(deqjax.Anderson(memory=8, rtol=1e-3)) == "Anderson(rtol=0.001, memory=8)"
    assert repr(deqjax.Implicit(solver="gmres")) == "Implicit(solver=GMRES())"
    assert eval(repr(deqjax.Broyden(memory=3)), vars(deqjax)) == deqjax.Broyden(memory=3)
