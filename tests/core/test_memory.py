"""Compiled memory: the implicit gradient holds no step of the loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells

N = 256


def temporary_bytes(solver, adjoint, max_steps):
    def loss(w, x):
        sol = deqjax.fixed_point(
            lambda z, w, x: jnp.tanh(w * jnp.roll(z, 1, axis=-1)) + x,
            jnp.zeros_like(x),
            w,
            x,
            solver=solver,
            adjoint=adjoint,
            max_steps=max_steps,
            batch_axis=0,
        )
        return jnp.sum(sol.z**2)

    x = jax.ShapeDtypeStruct((8, N), np.float32)
    w = jax.ShapeDtypeStruct((N,), np.float32)
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(w, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_memory_does_not_grow_with_the_number_of_steps(solver):
    short, long = (temporary_bytes(cells.SMALL[solver], "implicit", k) for k in (16, 256))
    assert 0 < long <= 1.02 * short


def test_unrolling_does_grow_and_checkpoints_grow_less():
    """The measurement above can see growth where there is some."""
    state = 8 * N * 4
    grown = {}
    for checkpoint in ("none", "sqrt"):
        adjoint = deqjax.Unrolled(checkpoint=checkpoint)
        short, long = (temporary_bytes("picard", adjoint, k) for k in (16, 256))
        grown[checkpoint] = long - short
    assert grown["none"] > 200 * state
    assert grown["sqrt"] < 0.5 * grown["none"]


@pytest.mark.parametrize("solver", [deqjax.Anderson(memory=7), deqjax.Broyden(memory=7)])
@pytest.mark.parametrize("batch_axis", [None, 0])
def test_a_step_writes_in_place(solver, batch_axis):
    """No copy of a history or of a state in the compiled loop (`History`, `Point.replacing`), and
    one pass for the sum over the vectors of a history (`History.combine`)."""

    def solve(w, x):
        f = lambda z: jnp.tanh(w * jnp.roll(z, 1, axis=-1)) + x
        return deqjax.fixed_point(f, x, solver=solver, batch_axis=batch_axis).z

    x = jax.ShapeDtypeStruct((8, 16, N), np.float32)
    hlo = jax.jit(solve).lower(jax.ShapeDtypeStruct((N,), np.float32), x).compile().as_text()
    assert re.search(rf"f32\[(?:\d+,)+7,(?:\d+,)*{N}\]", hlo), "the history was not found"
    # ENTRY comes last and may copy the zeros that both histories start from.
    loops, _ = hlo.split("\nENTRY ")
    copies = re.findall(rf"= f32\[[\d,]*,{N}\]\S* copy\(", loops)
    assert " while(" in hlo and not copies, copies
    summed = [c for c in hlo.split("\n\n") if len(re.findall(r" slice\(", c)) >= 7]
    assert len(summed) == 1, "the sum over the history is computed once and not for every use"
