"""Positions in chunks: the same values and derivatives, less memory, still causal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import TransformerCell, TransformerInput

from .precision import cast

BATCH, MEMORY, WIDTH, TIME = 2, 4, 8, 7


def cell(chunk_size, **options):
    sizes = dict(heads=2, d_inner=12, memory_length=MEMORY, dropout=0.3)
    rngs = nnx.Rngs(0, dropout=1)
    made = TransformerCell(WIDTH, **sizes, chunk_size=chunk_size, **options, rngs=rngs)
    for bias in (made.content_bias, made.position_bias, made.up.bias, made.down.bias):
        bias[...] += 0.1
    return made


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def given(made, memory=True):
    x = normal(1, BATCH, TIME, WIDTH)
    if not memory:
        return TransformerInput(x)
    empty = made.empty_memory(BATCH, x.dtype)
    filled = (normal(i, *a.shape) for i, a in enumerate(empty[:2]))
    return TransformerInput(x, empty._replace(z=next(filled), injection=next(filled)))


def assert_close(found, wanted, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def functions(made, memory=True):
    """f and a scalar of it, of (params, x, z); and where to evaluate them."""
    graph, params, rest = nnx.split(made, nnx.Param, ...)
    first = given(made, memory=memory)

    def f(params, x, z):
        again = nnx.merge(graph, params, rest, copy=True)
        return again(z, again.inject(first._replace(x=x)))

    def loss(params, x, z):
        return jnp.sum(jnp.sin(f(params, x, z)))

    return f, loss, (params, first.x, normal(3, *first.x.shape))


def first_order(made, memory=True):
    """f(z) and all gradients."""
    f, loss, at = functions(made, memory)
    return jax.jit(lambda *at: (f(*at), jax.grad(loss, argnums=(0, 1, 2))(*at)))(*at)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    ("chunk_size", "memory", "options"),
    [
        # Seven positions in two chunks of four, the first of which begins empty.
        (4, True, dict(weight_norm=True)),
        pytest.param(3, True, dict(), marks=pytest.mark.slow),
        pytest.param(1, False, dict(), marks=pytest.mark.slow),
        pytest.param(4, True, dict(norm="pre", injection=None), marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_are_those_of_all_positions_at_once(chunk_size, memory, options):
    whole, parts = (first_order(cast(cell(c, **options)), memory) for c in (None, chunk_size))
    assert_close(parts, whole)
    assert jnp.abs(whole[0]).max() > 0.1 and jnp.abs(whole[1][2]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
def test_forward_mode_and_second_derivatives_are_the_same():
    def higher(made):
        f, loss, at = functions(made)

        @jax.jit
        def run(params, x, z):
            of_z = jax.grad(loss, argnums=2)
            _, tangent = jax.jvp(lambda z: f(params, x, z), (z,), (x,))
            _, forward = jax.jvp(lambda x: of_z(params, x, z), (x,), (z,))
            backward = jax.grad(lambda params: jnp.sum(of_z(params, x, z) ** 2))(params)
            return tangent, forward, backward

        return run(*at)

    assert_close(higher(cast(cell(3))), higher(cast(cell(None))))


@pytest.mark.slow
def test_bfloat16():
    def found(chunk_size):
        made = cast(cell(chunk_size, weight_norm=True), jnp.bfloat16)
        first = jax.tree.map(
            lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, given(made)
        )
        return made(first.x, made.inject(first))

    whole, parts = found(None), found(3)
    assert parts.dtype == jnp.bfloat16
    np.testing.assert_allclose(parts.astype(float), whole.astype(float), atol=0.05)


@pytest.mark.slow
def test_no_output_depends_on_a_later_position():
    made = cell(3)
    first = given(made)
    masks = made.masks(BATCH)
    output = lambda z: made(z, made.inject(first, masks))[0, :, 0]
    jacobian = jax.jit(jax.jacrev(output))(first.x)
    size = np.asarray(jnp.abs(jacobian[:, 0]).max(-1))
    later = np.triu(np.ones((TIME, TIME), bool), k=1)
    assert (size[later] == 0).all() and (size[~later] > 1e-7).all()


def test_memory_is_that_of_one_chunk():
    """The inner activations of all positions are 2 MB, and so are the attention scores."""
    time, inner = 256, 1024
    x = jax.ShapeDtypeStruct((2, time, WIDTH), jnp.float32)

    def temporary(chunk_size):
        sizes = dict(heads=4, d_inner=inner, chunk_size=chunk_size)
        made = TransformerCell(WIDTH, **sizes, rngs=nnx.Rngs(0))

        def loss(x):
            return jnp.sum(made(x, made.inject(TransformerInput(x))) ** 2)

        return jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis().temp_size_in_bytes

    whole, parts = temporary(None), temporary(16)
    assert whole > 4e6 and parts < 0.25 * whole


def test_a_wrong_size_gets_a_sentence():
    with pytest.raises(ValueError, match="chunk_size must be an integer >= 1, got 0"):
        cell(0)
