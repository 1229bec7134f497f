"""The TrellisNet cell: an LSTM's gates on a causal convolution, solved for all steps at once."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import DEQ, TransformerInput
from deqjax.nn.trellis import TrellisCell

from .precision import cast

pytestmark = pytest.mark.usefixtures("double_precision")

BATCH, TIME, N_IN, HIDDEN, N_OUT = 2, 4, 3, 5, 2
TIGHT = dict(solver="picard", rtol=1e-13, max_steps=300)


def trellis(**options):
    options = dict(hidden=HIDDEN, n_out=N_OUT) | options
    cell = cast(TrellisCell(N_IN, rngs=nnx.Rngs(0, dropout=1), **options))
    cell.inject_convolution.bias[...] = normal(3, 4 * cell.hidden)
    return cell


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def some_input(time=TIME, memory=None):
    return TransformerInput(normal(1, BATCH, time, N_IN), memory)


def some_memory(cell, valid=(True, True)):
    z, x = normal(8, BATCH, 1, cell.d), normal(9, BATCH, 1, N_IN)
    return cell.empty_memory(BATCH)._replace(z=z, injection=x, valid=jnp.array(valid)[:, None])


@nnx.jit
def inject(cell, given):
    return cell.inject(given)


@nnx.jit
def apply(cell, z, context):
    return cell(z, context)


@nnx.jit(static_argnames="depth")
def solve(deq, given, depth=None):
    return deq(given, depth=depth)


def assert_close(actual, wanted, rtol=1e-9):
    np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=rtol)


# ------------------------------------------------------------------------------- the definition


def taps(layer, channels):
    """The convolution's two taps, (2, channels, out), and its bias; g v / ‖v‖ where normalised."""
    v = np.asarray(layer.kernel[...])
    if hasattr(layer, "scale"):
        for column, length in enumerate(np.asarray(layer.scale[...])):
            v = v.copy()
            v[:, column] *= length / math.sqrt((v[:, column] ** 2).sum())
    return v.reshape(2, channels, -1), 0 if layer.bias is None else np.asarray(layer.bias[...])


def update_by_loops(cell, z, x, memory, mask):
    """One sample and one step in time after the other."""
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    (w_before, w), _ = taps(cell.convolution, HIDDEN)
    (u_before, u), bias = taps(cell.inject_convolution, N_IN)
    new = np.zeros_like(z)
    for b in range(BATCH):
        h_before, c_before, x_before = np.zeros(HIDDEN), np.zeros(HIDDEN), np.zeros(N_IN)
        if memory.valid[b, 0]:
            h_before, c_before = memory.z[b, 0, :HIDDEN], memory.z[b, 0, HIDDEN:]
            x_before = memory.injection[b, 0]
        for t in range(TIME):
            h, c = z[b, t, :HIDDEN], z[b, t, HIDDEN:]
            out = x_before @ u_before + x[b, t] @ u + bias
            out = out + (mask[b, 0] * h_before) @ w_before + (mask[b, 0] * h) @ w
            i, o, g, f = (out[k * HIDDEN : (k + 1) * HIDDEN] for k in range(4))
            c_new = sigmoid(f) * c_before + sigmoid(i) * np.tanh(g)
            new[b, t] = [*(sigmoid(o) * np.tanh(c_new)), *c_new]
            h_before, c_before, x_before = h, c, x[b, t]
    return new


@pytest.mark.parametrize("weight_norm", [True, False])
def test_one_update_against_loops(weight_norm):
    cell = trellis(memory_length=1, weight_norm=weight_norm, dropout=0.4)
    if weight_norm:
        cell.convolution.scale[...] *= 1.0 + normal(4, 4 * HIDDEN) ** 2
        cell.inject_convolution.scale[...] *= 1.0 + normal(5, 4 * HIDDEN) ** 2
    z, memory = normal(2, BATCH, TIME, cell.d), some_memory(cell, [False, True])
    given = some_input(memory=memory)
    context = inject(cell, given)
    wanted = update_by_loops(cell, *map(np.asarray, (z, given.x)), memory, context.mask)
    assert_close(apply(cell, z, context), wanted)


def test_the_output_is_the_end_of_h():
    cell = trellis()
    z = jnp.arange(float(cell.d)).reshape(1, 1, -1)
    assert cell.output(z).tolist() == [[[3.0, 4.0]]]
    assert cell.d == 2 * HIDDEN and cell.n_out == N_OUT
    assert TrellisCell(N_IN, hidden=HIDDEN, rngs=nnx.Rngs(0)).n_out == N_IN


def test_the_equilibrium_is_an_lstm_in_time():
    deq, given = DEQ(trellis(), **TIGHT), some_input()
    solution = solve(deq, given)
    assert solution.stats.converged.all()
    z = solution.z
    assert_close(apply(deq.cell, z, inject(deq.cell, given)), z)
    c = z[..., HIDDEN:]
    before = jnp.pad(c[:, :-1], [(0, 0), (1, 0), (0, 0)])
    assert (jnp.abs(c) <= jnp.abs(before) + 1).all()
    assert (jnp.abs(z[..., :HIDDEN]) <= jnp.abs(jnp.tanh(c))).all()


# ------------------------------------------------------------------------------- causality


def test_no_output_depends_on_a_later_input():
    deq = DEQ(trellis(memory_length=1), **TIGHT)
    memory = some_memory(deq.cell)

    @nnx.jit
    def jacobian(deq, x):
        # One sample's outputs, (time,), with respect to all inputs, (batch, time, n_in).
        return jax.jacrev(lambda x: deq(TransformerInput(x, memory)).z[0].sum(-1))(x)

    size = jnp.abs(jacobian(deq, some_input().x)).max(-1)
    assert (size[:, 1] == 0).all()  # the other sample
    future = np.triu(np.ones((TIME, TIME), bool), k=1)
    assert (np.asarray(size[:, 0])[future] == 0).all()
    assert (np.asarray(size[:, 0])[~future] > 1e-6).all()


# ------------------------------------------------------------------------------- depth, gradients


def test_a_stack_is_repeated_calls():
    deq, given = DEQ(trellis()), some_input()
    context = inject(deq.cell, given)
    z = deq.cell.initial_state(given)
    assert z.shape == (BATCH, TIME, 2 * HIDDEN) and not z.any()
    for _ in range(3):
        z = apply(deq.cell, z, context)
    assert_close(solve(deq, given, depth=3).z, z)


@pytest.mark.slow
def test_the_implicit_gradient_is_that_of_a_deep_stack():
    deq = DEQ(trellis(), adjoint_solver="picard", **TIGHT)

    @nnx.jit(static_argnames="depth")
    def gradient(deq, depth=None):
        loss = lambda deq: (deq.cell.output(deq(some_input(), depth=depth).z) ** 2).sum()
        return nnx.grad(loss)(deq)

    implicit, unrolled = gradient(deq), gradient(deq, depth=20)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), implicit, unrolled)
    assert all(jnp.abs(g).max() > 1e-4 for g in jax.tree.leaves(implicit))


# ------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(("length", "start"), [(3, "empty"), (2, None), (1, None)])
def test_segments_with_memory_are_the_whole(length, start):
    deq = DEQ(trellis(memory_length=1), **TIGHT)
    x = some_input(6).x
    whole = solve(deq, TransformerInput(x)).z
    memory = start and deq.cell.empty_memory(BATCH, x.dtype)
    for first in range(0, 6, length):
        given = TransformerInput(x[:, first : first + length], memory)
        z = solve(deq, given).z
        assert_close(z, whole[:, first : first + length])
        memory = deq.cell.remember(given, z)


def test_a_memory_that_is_not_valid_is_no_memory():
    deq = DEQ(trellis(memory_length=1), **TIGHT)
    mixed, both = (
        solve(deq, some_input(memory=some_memory(deq.cell, valid))).z
        for valid in ([False, True], [True, True])
    )
    without = solve(deq, some_input()).z
    assert_close(mixed[0], without[0])
    assert_close(mixed[1], both[1])
    assert (jnp.abs(both - without).max((1, 2)) > 1e-3).all()


def test_remember_keeps_the_last_step_detached():
    cell, given, z = trellis(memory_length=1), some_input(), normal(2, BATCH, TIME, 2 * HIDDEN)
    memory = cell.remember(given, z)
    np.testing.assert_array_equal(memory.z, z[:, -1:])
    np.testing.assert_array_equal(memory.injection, given.x[:, -1:])
    assert memory.valid.all()
    empty = cell.empty_memory(BATCH)
    assert [a.shape for a in memory] == [a.shape for a in empty]
    assert not empty.valid.any()

    def loss(x):
        memory = cell.remember(TransformerInput(x), x @ jnp.ones((N_IN, cell.d)))
        return memory.z.sum() + memory.injection.sum()

    np.testing.assert_array_equal(jax.grad(loss)(given.x), 0.0)


def test_without_memory_nothing_is_remembered():
    cell, given = trellis(), some_input()
    memory = cell.remember(given, cell.initial_state(given))
    assert memory.z.shape == cell.empty_memory(BATCH).z.shape == (BATCH, 0, cell.d)
    plain = inject(cell, given)
    assert_close(inject(cell, given._replace(memory=memory)).injection, plain.injection)


# ------------------------------------------------------------------------------- weight norm


def test_weight_norm_separates_length_and_direction():
    cell, given, z = trellis(), some_input(), normal(2, BATCH, TIME, 2 * HIDDEN)
    plain = trellis(weight_norm=False)
    # g starts at ‖v‖, computed in float32.
    assert_close(inject(cell, given).weight, plain.convolution.kernel[...], 1e-6)
    lengths = 1.0 + normal(4, 4 * HIDDEN) ** 2
    cell.convolution.scale[...] = lengths
    assert_close(jnp.linalg.norm(inject(cell, given).weight, axis=0), lengths)
    assert plain.inject(given).weight is None

    @nnx.jit
    @nnx.grad
    def gradient(cell):
        return (apply(cell, z, cell.inject(given)) ** 2).sum()

    grads = gradient(cell)
    for name in ("convolution", "inject_convolution"):
        v, g = getattr(cell, name).kernel[...], grads[name]["kernel"][...]
        assert_close((v * g).sum(0), 0.0)
        assert (jnp.abs(g).max(0) > 1e-6).all()
        assert (grads[name]["scale"][...] != 0).all()


# ------------------------------------------------------------------------------- dropout


@pytest.mark.slow
def test_one_mask_for_all_steps_of_a_solve():
    cell = trellis(hidden=400, dropout=0.25)
    mask = inject(cell, some_input()).mask
    assert mask.shape == (BATCH, 1, 400)  # broadcast over time
    assert set(np.unique(mask)) == {0.0, 1 / 0.75}
    assert abs(mask.mean() - 1) < 0.1
    assert not np.array_equal(mask[0], mask[1])

    deq, given = DEQ(trellis(dropout=0.5), **TIGHT), some_input()
    first, second = solve(deq, given), solve(deq, given)
    assert first.stats.converged.all() and int(first.stats.steps.min()) > 5
    assert not np.allclose(first.z, second.z, atol=1e-3)
    assert int(deq.cell.rngs.dropout.count[...]) == 2  # one mask a solve
    deq.eval()
    context, without = inject(deq.cell, given), inject(trellis(), given)
    assert context.mask is None and int(deq.cell.rngs.dropout.count[...]) == 2
    jax.tree.map(np.testing.assert_array_equal, context, without)


# ------------------------------------------------------------------------------- size, dtype


def count(n_in, hidden, weight_norm=True):
    """Parameters of a cell, none of which is allocated."""
    make = lambda: TrellisCell(n_in, hidden=hidden, weight_norm=weight_norm, rngs=nnx.Rngs(0))
    cell = nnx.eval_shape(make)
    return sum(math.prod(w.shape) for w in jax.tree.leaves(nnx.state(cell, nnx.Param)))


def test_parameter_counts_at_the_published_sizes():
    # Penn Treebank, 10,000 words: the paper says 24M with the tied embedding and its bias.
    ptb = count(400, 1000 + 400) + 10_000 * (400 + 1)
    assert abs(ptb / 24e6 - 1) < 0.02
    # WikiText-103 at the sizes of the released script.
    assert count(500, 1500 + 500) == 8 * 2000 * (2000 + 500) + 4 * 2000 + 2 * 4 * 2000
    assert count(500, 1500 + 500, weight_norm=False) == 8 * 2000 * (2000 + 500) + 4 * 2000


def test_bfloat16():
    exact = solve(DEQ(trellis(), **TIGHT), some_input()).z
    deq = DEQ(cast(trellis(memory_length=1), jnp.bfloat16), solver="picard")
    x = some_input().x.astype(jnp.bfloat16)

    @nnx.jit
    def run(deq):
        def loss(deq):
            given = TransformerInput(x, deq.cell.empty_memory(BATCH, jnp.bfloat16))
            solution = deq(given)
            return deq.cell.output(solution.z).astype(float).sum(), solution

        return nnx.grad(loss, has_aux=True)(deq)

    grads, solution = run(deq)
    assert solution.z.dtype == jnp.bfloat16 and solution.stats.converged.all()
    assert jnp.abs(solution.z.astype(float) - exact).max() < 0.1
    for path, g in nnx.to_flat_state(grads):
        assert g.dtype == jnp.bfloat16 and jnp.isfinite(g[...]).all() and g[...].any(), path


# ------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(n_out=6), "n_out=6 exceeds hidden=5"),
        (dict(hidden=0), "hidden must be an integer >= 1"),
        (dict(memory_length=2), "memory_length must be 0 or 1.*got 2"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\)"),
    ],
)
def test_wrong_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        trellis(**options)


def test_weight_drop_drops_entries_of_w_for_a_whole_solve():
    cell = trellis(weight_drop=0.5)
    contexts = [cell.inject(some_input()) for _ in range(2)]
    w = np.asarray(trellis().inject(some_input()).weight)
    for context in contexts:
        kept = np.asarray(context.weight) != 0
        assert_close(context.weight, np.where(kept, 2 * w, 0))
        assert 0.3 < kept.mean() < 0.7 and context.mask is None
    assert (np.asarray(contexts[0].weight) != np.asarray(contexts[1].weight)).any()
    cell.eval()
    assert_close(cell.inject(some_input()).weight, w)
    plain = trellis(weight_drop=0.5, weight_norm=False)
    dropped = np.asarray(plain.inject(some_input()).weight)
    kernel = np.asarray(plain.convolution.kernel[...])
    assert_close(dropped, np.where(dropped != 0, 2 * kernel, 0))
    with pytest.raises(ValueError, match="weight_drop must be in"):
        trellis(weight_drop=1.0)
