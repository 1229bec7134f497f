"""Everything lowers for TPUs and GPUs too, from a machine that has neither."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import deqjax

CASES = {
    "picard": dict(solver="picard"),
    "anderson": dict(solver="anderson"),
    "broyden": dict(solver="broyden"),
    "line search": dict(solver=deqjax.Broyden(line_search=True)),
    "newton_krylov": dict(solver="newton_krylov"),
    "compacted": dict(solver=deqjax.Compacted("anderson", stages=2)),
    "warm start": dict(solver=deqjax.WarmStart("broyden")),
    "shine": dict(solver="broyden", adjoint="shine"),
    "reversible": dict(solver="picard", adjoint="reversible"),
    "forward mode": dict(forward_mode=True),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_lower_for_tpu_and_gpu(case):
    def loss(w, x):
        f = lambda z, w, x: jnp.tanh(z @ w + x)
        sol = deqjax.fixed_point(f, jnp.zeros_like(x), w, x, batch_axis=0, **CASES[case])
        return jnp.sum(sol.z**2), sol.stats

    shapes = (jax.ShapeDtypeStruct((16, 16), np.float32), jax.ShapeDtypeStruct((8, 16), np.float32))
    with jax.enable_x64(False):
        step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
        exported = export.export(step, platforms=("tpu", "cuda"))(*shapes)
    # Nothing of a linear-algebra library, which the platforms implement differently or not at all.
    assert "custom_call" not in exported.mlir_module()


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_only_a_cpu_loops_over_the_small_system_of_a_step(solver):
    """A loop of five turns in every step takes longer on a GPU than all else of the step."""

    def solve(x):
        return deqjax.fixed_point(jnp.tanh, jnp.zeros_like(x), solver=solver, batch_axis=0).z

    traced = jax.jit(solve).trace(jax.ShapeDtypeStruct((8, 16), np.float32))
    loops = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")
        for platform in ("cpu", "cuda", "tpu")
    }
    assert loops == {"cpu": 2, "cuda": 1, "tpu": 1}


@pytest.mark.parametrize("solver", [deqjax.Anderson(memory=5), deqjax.Broyden(memory=5)])
def test_products_with_a_history_are_not_summed(solver):
    """XLA makes the sum of some products of a pass over the history of its own, on a GPU."""

    def solve(x):
        return deqjax.fixed_point(jnp.tanh, jnp.zeros_like(x), solver=solver, batch_axis=0).z

    equations = list(all_equations(jax.make_jaxpr(solve)(jnp.ones((3, 16))).jaxpr))
    products = {(3, solver.memory), (3, solver.memory, 1)}
    made = [e for e in equations if e.primitive.name == "dot_general"]
    assert any(e.outvars[0].aval.shape in products for e in made)
    sums = [e for e in equations if e.primitive.name.startswith("reduce")]
    assert sums and not any(v.aval.shape in products for e in sums for v in e.invars)


def all_equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from all_equations(getattr(inner, "jaxpr", inner))


def is_jaxpr(value):
    return hasattr(value, "eqns")
