"""The transformer cell: causal, its memory a longer context, its attention as in the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import DEQ, LanguageModel, TransformerCell, TransformerInput
from deqjax.nn.dropout import variational_mask
from deqjax.nn.transformer import _shift, layer_norm

from .precision import cast

pytestmark = pytest.mark.usefixtures("double_precision")

BATCH, TIME, MEMORY, WIDTH, HEADS = 2, 4, 3, 4, 2
TIGHT = dict(solver="picard", rtol=1e-13, max_steps=300)


def contractive(dropout=0.0, memory=MEMORY, injection="qkv"):
    """A cell whose equilibrium is easy to find: z enters f weakly and the input strongly.

    Small weights alone would do the opposite: f(z) = LN(LN(z)) has a whole manifold of solutions.
    """
    cell = TransformerCell(
        WIDTH,
        heads=HEADS,
        d_inner=6,
        memory_length=memory,
        dropout=dropout,
        injection=injection,
        rngs=nnx.Rngs(0, dropout=1),
    )
    cell.qkv.kernel[...] *= 0.3
    if injection == "qkv":
        cell.inject_qkv.kernel[...] *= 2.0
    cell.out.kernel[...] *= 2.0
    cell.down.kernel[...] *= 0.5
    return cast(cell)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def some_memory(cell, valid):
    memory = cell.empty_memory(BATCH, jnp.float64)
    filled = memory._replace(z=normal(8, *memory.z.shape), injection=normal(9, BATCH, MEMORY, 12))
    valid = jnp.array(valid).reshape(BATCH, *(1,) * (memory.valid.ndim - 1))
    return filled._replace(valid=jnp.broadcast_to(valid, memory.valid.shape))


@nnx.jit
def solve(deq, x, memory=None):
    return deq(TransformerInput(x, memory))


def assert_close(actual, wanted, rtol=1e-9):
    np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=rtol)


# ---------------------------------------------------------------------------------- causality


def test_no_output_depends_on_a_later_input():
    deq = DEQ(contractive(), **TIGHT)
    memory = some_memory(deq.cell, [True, True])

    @nnx.jit
    def jacobian(deq, x):
        # One sample's outputs, (time, d), with respect to its inputs, (time, d).
        return jax.jacrev(lambda x: deq(TransformerInput(x, memory)).z[0, :, 0])(x)

    size = jnp.abs(jacobian(deq, normal(1, BATCH, TIME, WIDTH))).max(-1)
    assert (size[:, 1] == 0).all()  # the other sample
    future = np.triu(np.ones((TIME, TIME), bool), k=1)
    assert (np.asarray(size[:, 0])[future] == 0).all()
    assert (np.asarray(size[:, 0])[~future] > 1e-6).all()


# ---------------------------------------------------------------------------------- memory


@nnx.jit
def read(model, tokens, memory):
    out = model(tokens, memory)
    return out.logits, out.memory, out.solution.stats.converged.all()


def language_model(memory, **options):
    model = LanguageModel(7, contractive(memory=memory, **options), rngs=nnx.Rngs(3), **TIGHT)
    return cast(model)


def assert_segments_equal_the_whole(length, memory_length, starts, **options):
    model = language_model(memory_length, **options)
    tokens = jax.random.randint(jax.random.key(4), (BATCH, 6), 0, 7)
    whole, _, converged = read(model, tokens, None)
    assert converged
    for start in starts:
        memory = start and model.cell.empty_memory(BATCH, jnp.float64)
        for first in range(0, 6, length):
            part = slice(first, first + length)
            logits, memory, converged = read(model, tokens[:, part], memory)
            assert converged
            assert_close(logits, whole[:, part])


def test_memory_is_a_longer_context():
    assert_segments_equal_the_whole(length=3, memory_length=3, starts=["empty"])


def test_memory_is_a_longer_context_where_the_input_is_added():
    assert_segments_equal_the_whole(length=2, memory_length=4, starts=["empty"], injection="state")


def test_memory_of_segments_shorter_than_itself_is_a_longer_context():
    assert_segments_equal_the_whole(length=2, memory_length=4, starts=[None])


def test_an_empty_memory_fills_up_from_segments_shorter_than_itself():
    cell, x = contractive(), normal(1, BATCH, 1, WIDTH)
    given = TransformerInput(x, cell.empty_memory(BATCH, x.dtype))
    length = cell.memory_length
    once = cell.remember(given, x)
    assert once.valid.tolist() == [[False] * (length - 1) + [True]] * BATCH
    twice = cell.remember(TransformerInput(x, once), x)
    assert twice.valid.tolist() == [[False] * (length - 2) + [True] * 2] * BATCH


def test_memory_matters_and_is_detached():
    deq = DEQ(contractive(), **TIGHT)
    x, memory = normal(1, BATCH, TIME, WIDTH), some_memory(deq.cell, [True, True])
    without = solve(deq, x).z
    assert (jnp.abs(solve(deq, x, memory).z - without).max((1, 2)) > 1e-3).all()

    @nnx.jit
    def gradient(cell, x):
        def loss(x):
            memory = cell.remember(TransformerInput(x), x**2)
            return memory.z.sum() + memory.injection.sum()

        return jax.grad(loss)(x)

    np.testing.assert_array_equal(gradient(deq.cell, x), 0.0)


def test_a_memory_that_is_not_valid_is_no_memory():
    deq = DEQ(contractive(), **TIGHT)
    x = normal(1, BATCH, TIME, WIDTH)
    mixed = solve(deq, x, some_memory(deq.cell, [False, True]))
    without = solve(deq, x)
    both = solve(deq, x, some_memory(deq.cell, [True, True]))
    assert_close(mixed.z[0], without.z[0])
    assert_close(mixed.z[1], both.z[1])
    assert not np.allclose(both.z[0], without.z[0], atol=1e-3)


def test_remember_keeps_the_last_positions():
    cell = contractive()
    x, z = normal(1, BATCH, 5, WIDTH), normal(2, BATCH, 5, WIDTH)
    memory = cell.remember(TransformerInput(x), z)
    np.testing.assert_array_equal(memory.z, z[:, -MEMORY:])
    assert_close(memory.injection, cell.inject_qkv(x)[:, -MEMORY:])
    assert memory.valid.all()
    later = cell.remember(TransformerInput(x[:, :1], memory), z[:, :1])
    np.testing.assert_array_equal(later.z, jnp.concatenate([z[:, -2:], z[:, :1]], 1))
    assert later.z.shape == cell.empty_memory(BATCH).z.shape
    assert later.injection.shape == cell.empty_memory(BATCH).injection.shape
    assert not cell.empty_memory(BATCH).valid.any()


# ---------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("length", [0, 3])
def test_relative_shift_against_a_loop(length):
    time, keys = 4, 4 + length
    scores = np.asarray(normal(6, 2, time, keys))
    shifted = np.asarray(_shift(jnp.asarray(scores)))
    for i in range(time):
        for j in range(length + i + 1):
            distance = length + i - j
            np.testing.assert_array_equal(shifted[:, i, j], scores[:, i, keys - 1 - distance])


def attention(cell, z, context):
    return cell._attention(*cell._rows(z, context))


def parted(y):
    """q, k and v, (..., WIDTH) each, of (..., 3 · WIDTH) in the order of the heads."""
    y = np.asarray(y).reshape(*y.shape[:-1], HEADS, 3, WIDTH // HEADS)
    return (y[..., i, :].reshape(*y.shape[:-3], WIDTH) for i in range(3))


def explicit_attention(cell, z, x, memory):
    """One query, one head, one key at a time, from the definition."""
    w = {name: np.asarray(getattr(cell, name).kernel[...]) for name in ("qkv", "inject_qkv")}
    position, out = np.asarray(cell.position.kernel[...]), np.asarray(cell.out.kernel[...])
    content_bias = np.asarray(cell.content_bias[...])
    position_bias = np.asarray(cell.position_bias[...])
    size = WIDTH // HEADS

    def sinusoid(distance):
        angles = [distance / 10000 ** (2 * i / WIDTH) for i in range(WIDTH // 2)]
        return np.array([*np.sin(angles), *np.cos(angles)]) @ position

    result = np.zeros_like(z)
    for b in range(BATCH):
        both = np.concatenate([memory.z[b], z[b]])
        injection = np.concatenate([memory.injection[b], x[b] @ w["inject_qkv"]])
        q, k, v = parted(both @ w["qkv"] + injection)
        for i in range(TIME):
            me = MEMORY + i
            first = 0 if memory.valid[b].all() else MEMORY
            for h in range(HEADS):
                s = slice(h * size, (h + 1) * size)
                scores = [
                    (q[me, s] + content_bias[s]) @ k[j, s]
                    + (q[me, s] + position_bias[s]) @ sinusoid(me - j)[s]
                    for j in range(first, me + 1)
                ]
                weights = np.exp(np.array(scores) / np.sqrt(size))
                result[b, i, s] = weights / weights.sum() @ v[first : me + 1, s]
    return result @ out


def test_the_cell_against_its_definition():
    cell = contractive()
    cell.content_bias[...] = normal(10, WIDTH)
    cell.position_bias[...] = normal(11, WIDTH)
    cell.up.bias[...], cell.down.bias[...] = normal(12, 6), normal(13, WIDTH)
    z, x = normal(2, BATCH, TIME, WIDTH), normal(1, BATCH, TIME, WIDTH)
    memory = some_memory(cell, [False, True])
    attended = explicit_attention(cell, *(np.asarray(a) for a in (z, x)), memory)

    @nnx.jit
    def run(cell):
        context = cell.inject(TransformerInput(x, memory))
        return attention(cell, z, context), cell(z, context)

    found, out = run(cell)
    assert_close(found, attended)

    def norm(y):
        return (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)

    y = norm(z + attended)
    hidden = np.maximum(y @ cell.up.kernel[...] + cell.up.bias[...], 0)
    assert_close(out, norm(y + hidden @ cell.down.kernel[...] + cell.down.bias[...]))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_input_may_be_added_to_the_state(chunk_size):
    cell, plain = contractive(injection="state"), contractive(injection=None)
    cell.chunk_size = chunk_size
    z, x = normal(2, BATCH, TIME, WIDTH), normal(1, BATCH, TIME, WIDTH)
    memory = cell.empty_memory(BATCH, z.dtype)
    memory = memory._replace(z=normal(8, *memory.z.shape), valid=~memory.valid)
    given = TransformerInput(x, memory)
    # The same weights: f(z) is the explicit layer of z + x.
    assert_close(cell(z, cell.inject(given)), plain(z + x, plain.inject(given)))
    jax.tree.map(assert_close, cell.remember(given, z), plain.remember(given, z + x))


def test_attention_weights_are_what_the_cell_attends_with():
    cell = contractive(memory=0)
    x, z = normal(1, BATCH, TIME, WIDTH), normal(2, BATCH, TIME, WIDTH)
    context = cell.inject(TransformerInput(x))
    weights = cell.attention_weights(z, context)
    assert weights.shape == (BATCH, HEADS, TIME, TIME)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-12)
    assert not np.triu(weights, 1).any()
    _, _, v = parted(cell.qkv(z) + cell.inject_qkv(x))
    v = v.reshape(BATCH, TIME, HEADS, -1)
    attended = jnp.einsum("bhij,bjhd->bihd", weights, v).reshape(z.shape)
    np.testing.assert_allclose(cell.out(attended), attention(cell, z, context), rtol=1e-12)


def test_a_mimetic_start_looks_at_what_is_unlike_and_copies_it():
    cell = TransformerCell(WIDTH, heads=HEADS, d_inner=6, mimetic=True, rngs=nnx.Rngs(0))
    cell.qkv.kernel[...] *= 0.0
    x = normal(1, BATCH, TIME, WIDTH)
    context = cell.inject(TransformerInput(x))
    weights = cell.attention_weights(0 * x, context)
    seen = attention(cell, 0 * x, context)
    # One head's part of the value is moved with that head's weights, and rotated back.
    w_q, w_k, value = parted(cell.inject_qkv.kernel[...])
    parts = (x @ value).reshape(BATCH, TIME, HEADS, -1)
    copied = jnp.einsum("bhij,bjhd->bihd", weights, parts).reshape(x.shape) @ value.T
    np.testing.assert_allclose(seen, copied, atol=1e-6)
    np.testing.assert_allclose(value @ cell.out.kernel[...], np.eye(WIDTH), atol=1e-6)
    np.testing.assert_allclose(w_q @ w_k.T, -0.5 * np.eye(WIDTH), atol=1e-6)


def test_layer_norm():
    y = 3.0 + 5.0 * normal(1, 6, 8)
    out = layer_norm(y)
    assert_close(out.mean(-1), 0.0)
    assert_close(out.var(-1), y.var(-1) / (y.var(-1) + 1e-5))
    np.testing.assert_array_equal(layer_norm(jnp.full((1, 4), 2.0)), 0.0)
    assert jnp.isfinite(jax.grad(lambda y: layer_norm(y)[0, 0])(jnp.full((1, 4), 2.0))).all()
    narrow = layer_norm(y.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    assert_close(narrow.astype(float), out, 2e-2)


# ---------------------------------------------------------------------------------- dropout


def test_dropout_masks_are_variational_and_scaled():
    mask = variational_mask(jax.random.key(0), 0.25, (BATCH, 1, 4000))
    assert set(np.unique(mask)) == {0.0, 1 / 0.75}
    assert abs(mask.mean() - 1) < 0.03
    cell = contractive(dropout=0.5)
    given = TransformerInput(normal(1, BATCH, TIME, WIDTH))
    context = cell.inject(given)
    masks = context.masks
    assert [m.shape for m in masks] == [(BATCH, 1, WIDTH), (BATCH, 1, 6), (BATCH, 1, WIDTH)]
    run = nnx.jit(lambda cell, z, context: cell(z, context))
    z, zero = normal(2, BATCH, TIME, WIDTH), jnp.zeros_like
    y = run(cell, z, context)
    # Each mask reaches its own branch: without attention and feed-forward two norms are left.
    off = context._replace(masks=masks._replace(attention=zero(masks[0]), output=zero(masks[2])))
    assert_close(run(cell, z, off), layer_norm(layer_norm(z)))
    quiet = context._replace(masks=masks._replace(attention=zero(masks[0]), hidden=zero(masks[1])))
    assert_close(run(cell, z, quiet), layer_norm(layer_norm(z)))
    assert not np.allclose(y, run(cell, z, off), atol=1e-3)
    cell.eval()
    assert cell.inject(given).masks == (None, None, None)


def test_dropout_is_drawn_once_per_solve():
    deq, x = DEQ(contractive(dropout=0.4), **TIGHT), normal(1, BATCH, TIME, WIDTH)
    first, second = solve(deq, x), solve(deq, x)
    assert first.stats.converged.all() and second.stats.converged.all()
    assert int(first.stats.steps.min()) > 5
    assert not np.allclose(first.z, second.z, atol=1e-3)
    assert int(deq.cell.rngs.dropout.count[...]) == 6  # three masks a solve
    deq.eval()
    np.testing.assert_array_equal(solve(deq, x).z, solve(deq, x).z)
    assert int(deq.cell.rngs.dropout.count[...]) == 6


# ---------------------------------------------------------------------------------- dtypes, options


@pytest.mark.slow
def test_bfloat16():
    x, wide = normal(1, BATCH, TIME, WIDTH), contractive()
    exact = solve(DEQ(wide, **TIGHT), x).z
    deq = DEQ(cast(contractive(), jnp.bfloat16), solver="picard")
    x = x.astype(jnp.bfloat16)
    memory = deq.cell.empty_memory(BATCH, jnp.bfloat16)

    @nnx.jit
    def run(deq):
        def loss(deq):
            solution = deq(TransformerInput(x, memory))
            return solution.z.astype(float)[..., 0].sum(), solution

        return nnx.grad(loss, has_aux=True)(deq)

    grads, solution = run(deq)
    assert solution.z.dtype == jnp.bfloat16 and solution.stats.converged.all()
    assert jnp.abs(solution.z.astype(float) - exact).max() < 0.1
    for path, g in nnx.to_flat_state(grads):
        assert g.dtype == jnp.bfloat16 and jnp.isfinite(g[...]).all(), path
        assert g[...].any() or "position" in path[1], path


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(heads=3), "d=4 must be a multiple of heads=3"),
        (dict(heads=2, dropout=1.0), r"dropout must be in \[0, 1\)"),
        (dict(heads=2, injection="z"), "must be 'qkv', 'state' or None, got 'z'"),
        (dict(heads=2, injection="state", mimetic=True), "needs injection='qkv'"),
    ],
)
def test_wrong_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        TransformerCell(WIDTH, d_inner=6, rngs=nnx.Rngs(0), **options)
