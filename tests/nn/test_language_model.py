"""The language model: a tied softmax around an equilibrium, and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqjax.nn import (
    TCN,
    AdaptiveEmbedding,
    AdaptiveSoftmax,
    CellStack,
    LanguageModel,
    LSTMLanguageModel,
    Prelude,
    Recurrent,
    TransformerCell,
    TrellisCell,
    forget,
)

VOCABULARY, WIDTH, BATCH, TIME = 11, 8, 2, 6


def language_model(memory=0, dropout=0.0, **options):
    rngs = nnx.Rngs(0, dropout=1)
    cell = TransformerCell(WIDTH, heads=2, d_inner=12, memory_length=memory, rngs=rngs)
    options = dict(solver="picard", rtol=1e-4, max_steps=30) | options
    return LanguageModel(VOCABULARY, cell, dropout=dropout, rngs=rngs, **options)


def some_tokens(high=VOCABULARY):
    return jax.random.randint(jax.random.key(2), (BATCH, TIME), 0, high)


@nnx.jit(static_argnames="depth")
def read(model, tokens, memory=None, depth=None):
    return model(tokens, memory, depth=depth)


def test_shapes_and_the_tied_softmax():
    model = language_model(memory=4)
    out = read(model, some_tokens())
    assert out.logits.shape == (BATCH, TIME, VOCABULARY) and out.logits.dtype == jnp.float32
    assert out.solution.z.shape == (BATCH, TIME, WIDTH)
    assert out.solution.stats.converged.shape == (BATCH,)
    assert out.memory.z.shape == (BATCH, 4, WIDTH)
    np.testing.assert_allclose(jax.nn.softmax(out.logits).sum(-1), 1.0, rtol=1e-6)
    model.bias[...] = jnp.arange(float(VOCABULARY))
    out = read(model, some_tokens())
    tied = out.solution.z @ model.embedding[...].T + model.bias[...]
    np.testing.assert_allclose(out.logits, tied, rtol=1e-4, atol=1e-5)
    assert read(language_model(), some_tokens()).memory is None


@pytest.mark.slow
def test_the_embedding_learns_as_input_and_as_softmax():
    model, tokens = language_model(), some_tokens(high=5)

    @nnx.jit
    def gradients(model):
        def loss(model):
            return model(tokens).logits[..., 10].sum()

        def inputs_only(model):
            return model(tokens).solution.z[..., 0].sum()

        return nnx.grad(loss)(model), nnx.grad(inputs_only)(model)

    both, inputs_only = (g["embedding"][...] for g in gradients(model))
    used = np.isin(np.arange(VOCABULARY), tokens)
    assert (jnp.abs(inputs_only).max(-1) > 0).tolist() == used.tolist()
    used[10] = True  # as a row of the softmax
    assert (jnp.abs(both).max(-1) > 0).tolist() == used.tolist()


def test_depth_is_passed_on():
    model, tokens = language_model(), some_tokens()
    assert read(model, tokens, depth=2).solution.stats.steps.tolist() == [2, 2]


@pytest.mark.slow
def test_dropout_is_the_same_at_every_position_and_off_in_eval_mode():
    model = language_model(dropout=0.5)
    kept = model.drop_out(jnp.ones((BATCH, TIME, 50)))
    np.testing.assert_array_equal(kept, jnp.broadcast_to(kept[:, :1], kept.shape))
    assert set(np.unique(kept)) == {0.0, 2.0}
    train = [read(model, some_tokens()).logits for _ in range(2)]
    assert not np.allclose(*train, atol=1e-3)
    model.eval()
    evaluate = read(model, some_tokens()).logits
    plain = read(language_model(), some_tokens()).logits
    np.testing.assert_allclose(evaluate, plain, rtol=1e-5, atol=1e-5)


def explicit(rngs):
    layer = lambda: TransformerCell(WIDTH, heads=2, d_inner=12, injection=None, rngs=rngs)
    return CellStack([layer(), layer()])


def two_blocks(rngs):
    block = lambda: TransformerCell(
        WIDTH, heads=2, d_inner=12, norm="pre", weight_norm=True, rngs=rngs
    )
    return CellStack([block(), block()])


def after_a_prelude(rngs):
    block = lambda: TransformerCell(
        WIDTH, heads=2, d_inner=12, norm="pre", injection="state", rngs=rngs
    )
    return Prelude(explicit(rngs), CellStack([block()]))


BODIES = {
    "deq-transformer": (lambda rngs: TransformerCell(WIDTH, heads=2, d_inner=12, rngs=rngs), None),
    "deq-transformer, two pre-LN blocks": (two_blocks, None),
    "deq-trellisnet": (lambda rngs: TrellisCell(WIDTH, hidden=12, rngs=rngs), None),
    "universal-transformer": (
        lambda rngs: TransformerCell(WIDTH, heads=2, d_inner=12, rngs=rngs),
        4,
    ),
    "trellisnet": (lambda rngs: TrellisCell(WIDTH, hidden=12, rngs=rngs), 6),
    "transformer-xl": (explicit, 1),
    "deq-transformer after a prelude": (after_a_prelude, None),
}


def losses_by_step(model, tokens, *, steps):
    """Cross-entropy in nats on one batch, after 0, 1, ... steps of Adam on it."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rule = optax.adam(0.02)

    def loss(params):
        out = nnx.merge(graph, params, rest, copy=True)(tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(out.logits, tokens[:, 1:])
        return losses.mean()

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = rule.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = rule.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    return losses


@pytest.mark.parametrize("name", BODIES)
def test_thirty_steps_learn_a_batch_by_heart(name):
    body, depth = BODIES[name]
    rngs = nnx.Rngs(0)
    options = dict(solver="anderson", rtol=1e-4, max_steps=40, depth=depth)
    model = LanguageModel(VOCABULARY, body(rngs), rngs=rngs, **options)
    losses = losses_by_step(model, some_tokens(), steps=30)
    assert losses[0] > 2
    assert losses[-1] < 0.35 * losses[0]


OTHERS = {
    "tcn": lambda rngs: TCN(VOCABULARY, channels=12, levels=2, kernel_size=3, rngs=rngs),
    "lstm": lambda rngs: Recurrent(VOCABULARY, kind="lstm", features=8, hidden=16, rngs=rngs),
    "gru": lambda rngs: Recurrent(VOCABULARY, kind="gru", features=8, hidden=16, rngs=rngs),
    "lstm language model": lambda rngs: LSTMLanguageModel(
        VOCABULARY, width=16, hidden=16, rngs=rngs
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_fifty_steps_teach_the_other_models_a_batch(name):
    losses = losses_by_step(OTHERS[name](nnx.Rngs(0)), some_tokens(), steps=50)
    assert losses[0] > 2
    assert losses[-1] < 0.1 * losses[0]


def test_a_trellisnet_carries_its_state_into_the_next_segment():
    rngs = nnx.Rngs(0)
    cell = TrellisCell(WIDTH, hidden=12, memory_length=1, rngs=rngs)
    model = LanguageModel(VOCABULARY, cell, rtol=1e-6, max_steps=60, rngs=rngs)
    tokens, nothing = some_tokens(), cell.empty_memory(BATCH)
    whole = read(model, tokens, nothing)
    first = read(model, tokens[:, :4], nothing)
    second = read(model, tokens[:, 4:], first.memory)
    np.testing.assert_allclose(second.logits, whole.logits[:, 4:], atol=1e-4)
    forgotten = forget(first.memory, jnp.ones((BATCH, 1), bool))
    alone = read(model, tokens[:, 4:], nothing).logits
    np.testing.assert_allclose(read(model, tokens[:, 4:], forgotten).logits, alone, atol=1e-5)
    assert np.abs(alone - second.logits).max() > 1e-2


@pytest.mark.slow
def test_an_adaptive_softmax_brings_its_embedding():
    rngs = nnx.Rngs(0)
    cell = TransformerCell(WIDTH, heads=2, d_inner=12, rngs=rngs)
    embedding = AdaptiveEmbedding(VOCABULARY, WIDTH, cutoffs=(4, 8), divisor=2, rngs=rngs)
    softmax = AdaptiveSoftmax(embedding, chunk_size=5, rngs=rngs)
    model = LanguageModel(VOCABULARY, cell, softmax=softmax, rngs=rngs, rtol=1e-5, max_steps=60)
    tokens, targets = some_tokens(), some_tokens()[:, ::-1]
    log_p = read(model, tokens).logits
    np.testing.assert_allclose(jnp.exp(log_p).sum(-1), 1.0, rtol=1e-5)
    want = -np.take_along_axis(np.asarray(log_p), np.asarray(targets)[..., None], -1)[..., 0]
    out = nnx.jit(lambda model: model(tokens, targets=targets))(model)
    assert out.logits is None
    np.testing.assert_allclose(out.nats, want, rtol=1e-4)
    plain = language_model()
    nats = nnx.jit(lambda model: model(tokens, targets=targets).nats)(plain)
    log_p = jax.nn.log_softmax(read(plain, tokens).logits)
    want = -np.take_along_axis(np.asarray(log_p), np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats, want, rtol=1e-5)
    with pytest.raises(ValueError, match="of 12 tokens and width 8, not of 11 and 8"):
        LanguageModel(12, cell, softmax=softmax, rngs=rngs)


def test_wrong_options_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\)"):
        language_model(dropout=-0.1)
    with pytest.raises(ValueError, match="did you mean 'picard'"):
        language_model(solver="picrad")
    with pytest.raises(TypeError, match="tolerance"):
        language_model(tolerance=1e-3)


def test_words_are_left_out_as_a_whole():
    model = language_model(dropout_words=0.5)
    tokens = jnp.arange(5)[None].repeat(3, 0)
    x = model.embed(tokens)
    gone = (x == 0).all(-1)
    np.testing.assert_array_equal(gone, gone[:1].repeat(3, 0))  # the same words in every row
    assert ((x == 0).any(-1) == gone).all()
    draws = jnp.stack([(model.embed(tokens) == 0).all(-1)[0] for _ in range(40)])
    assert 0.3 < draws.mean() < 0.7
    model.eval()
    plain = model.embed(tokens)
    kept = ~gone[..., None]
    np.testing.assert_allclose(jnp.where(kept, x, 0), jnp.where(kept, 2 * plain, 0), rtol=1e-6)
    with pytest.raises(ValueError, match="dropout_words must be in"):
        language_model(dropout_words=1.0)


def test_input_and_output_have_their_own_dropout():
    model = language_model(dropout=(0.0, 0.5))
    out = model(some_tokens())
    x = model.embed(some_tokens())
    assert (x != 0).all()
    dropped = out.dropped == 0
    assert (dropped == dropped[:, :1]).all() and 0 < dropped.mean() < 1
    np.testing.assert_allclose(out.dropped, jnp.where(dropped, 0, 2 * out.hidden), rtol=1e-6)


def test_the_cell_at_its_context_is_the_equation_that_was_solved():
    model = language_model(memory=4, dropout=0.3, rtol=1e-6, max_steps=100)
    out = model(some_tokens(), model.empty_memory(BATCH), keep_context=True)
    np.testing.assert_allclose(model.cell(out.solution.z, out.context), out.solution.z, atol=1e-4)


@pytest.mark.slow
def test_a_learned_start_changes_where_a_solve_begins_and_not_where_it_ends():
    model = language_model(learned_start=True, rtol=1e-6, max_steps=100)
    tokens = some_tokens()
    out, zero = model(tokens), model(tokens, z0=jnp.zeros_like(model.embed(tokens)))
    np.testing.assert_allclose(out.solution.z, zero.solution.z, atol=1e-4)
    assert out.start.shape == out.solution.z.shape
    one = model(tokens, depth=1, keep_context=True)
    np.testing.assert_allclose(one.solution.z, model.cell(one.start, one.context), atol=1e-5)

    def loss(model, **options):
        return jnp.sum(model(tokens, **options).logits ** 2)

    stacked, solved = nnx.grad(lambda m: loss(m, depth=2))(model), nnx.grad(loss)(model)
    assert jnp.abs(stacked["start"]["kernel"][...]).max() > 0
    assert jnp.abs(solved["start"]["kernel"][...]).max() == 0


def test_effort_is_chosen_when_a_model_is_used():
    model, tokens = language_model(), some_tokens()
    assert model(tokens, max_steps=2).solution.stats.steps.max() == 2
    assert model(tokens, depth=9).solution.stats.steps.max() == 9
    assert model.solves and not language_model(depth=3).solves
