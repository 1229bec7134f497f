"""The LSTM language model: an LSTM to the last digit, its carried state, and its dropout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqjax.nn import LSTMLanguageModel, forget

from .precision import cast

pytestmark = pytest.mark.usefixtures("double_precision")

VOCABULARY, WIDTH, HIDDEN, BATCH, TIME = 11, 4, 5, 2, 6
RATES = dict(
    dropout_embedding=0.2,
    dropout_input=0.25,
    dropout_hidden=0.3,
    dropout_output=0.35,
    weight_drop=0.4,
)


def lstm(vocabulary=VOCABULARY, **options):
    """Two layers with biases that are not zero, which is where a new model's start."""
    options = dict(width=WIDTH, hidden=HIDDEN, layers=2) | options
    model = LSTMLanguageModel(vocabulary, **options, rngs=nnx.Rngs(0, dropout=1))
    model.bias[...] = normal(1, *model.bias.shape)
    for i, cell in enumerate(model.cells):
        cell.dense_h.bias[...] = normal(2 + i, *cell.dense_h.bias.shape)
    return model


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def some_tokens(seed=0, time=TIME):
    return jnp.asarray(np.random.default_rng(seed).integers(VOCABULARY, size=(BATCH, time)))


def some_memory(model, valid=(True, True)):
    return tuple(
        m._replace(z=normal(i, *m.z.shape), valid=jnp.array(valid)[:, None])
        for i, m in enumerate(model.empty_memory(BATCH))
    )


@nnx.jit
def _read(model, tokens, memory, targets):
    return model(tokens, memory, targets=targets)


def read(model, tokens, memory=None, targets=None):
    """Always with a memory, so that nothing is compiled twice."""
    return _read(model, tokens, memory or model.empty_memory(BATCH), targets)


def assert_close(actual, wanted, tolerance=1e-12):
    np.testing.assert_allclose(actual, wanted, rtol=tolerance, atol=tolerance)


def same(*trees):
    jax.tree.map(np.testing.assert_array_equal, *trees)


# ------------------------------------------------------------------------------- the definition


def by_loops(model, tokens, memory, masks):
    """`hidden`, `dropped`, logits and the last (h, c) of every layer: one sample, one step in time
    and one layer after the other."""
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    array = lambda x: 1.0 if x is None else np.asarray(x)
    table, bias = array(model.embedding[...]), array(model.bias[...])
    layers = []
    for cell, mask in zip(model.cells, masks.recurrent, strict=True):
        u = array(cell.dense_h.kernel[...]) * array(mask)
        layers.append((array(cell.dense_i.kernel[...]), u, array(cell.dense_h.bias[...])))
    hidden, dropped, states = [], [], []
    for b in range(BATCH):
        row = lambda mask, b=b: 1.0 if mask is None else np.asarray(mask)[b, 0]
        state = [np.split(array(m.z)[b, 0] * bool(m.valid[b, 0]), 2) for m in memory]
        for token in np.asarray(tokens[b]):
            x = table[token] * math.sqrt(WIDTH) * row(masks.input)
            if masks.words is not None:
                x = x * float(masks.words[token, 0])
            for layer, (w, u, v) in enumerate(layers):
                h, c = state[layer]
                i, f, g, o = np.split(x @ w + h @ u + v, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
                state[layer] = h, c
                x = h * row(masks.outputs[layer])
            hidden.append(h)
            dropped.append(x)
        states.append([np.concatenate(s) for s in state])
    hidden, dropped = (np.reshape(a, (BATCH, -1, WIDTH)) for a in (hidden, dropped))
    return hidden, dropped, dropped @ table.T + bias, list(zip(*states, strict=True))


@pytest.mark.parametrize("layers, rates", [(2, {}), (3, RATES)], ids=["plain", "every mask"])
def test_the_model_against_loops(layers, rates):
    model, tokens = lstm(layers=layers, **rates), some_tokens()
    memory = some_memory(model, valid=(True, False))
    masks = nnx.clone(model).masks(BATCH)  # the copy leaves the model's random state alone
    assert len(jax.tree.leaves(masks)) == (2 + 3 + 3 if rates else 0)
    out = read(model, tokens, memory)
    hidden, dropped, logits, states = by_loops(model, tokens, memory, masks)
    assert_close(out.logits, logits)
    for after, wanted in zip(out.memory, states, strict=True):
        assert_close(after.z[:, 0], wanted)
        assert after.injection.shape == (BATCH, 1, 0) and after.valid.tolist() == [[True]] * BATCH
    assert_close(out.hidden, hidden)
    assert_close(out.dropped, dropped)


def test_what_comes_out():
    model, tokens, targets = lstm(), some_tokens(), some_tokens(seed=1)
    out = read(model, tokens)
    assert out.logits.shape == (BATCH, TIME, VOCABULARY) and out.logits.dtype == jnp.float64
    assert out.solution is None and out.nats is None and model.solves is False
    assert out.hidden.shape == (BATCH, TIME, WIDTH)
    same(out.hidden, out.dropped)  # no dropout
    scored = read(model, tokens, targets=targets)
    assert scored.logits is None
    log_p = np.asarray(out.logits - jax.nn.logsumexp(out.logits, axis=-1, keepdims=True))
    wanted = -np.take_along_axis(log_p, np.asarray(targets)[..., None], -1)[..., 0]
    assert_close(scored.nats, wanted)
    same(scored.memory, out.memory)


# ------------------------------------------------------------------------------- memory


def test_two_segments_are_one():
    model, tokens = lstm(), some_tokens()
    whole = read(model, tokens)
    first = read(model, tokens[:, :3])
    second = read(model, tokens[:, 3:], first.memory)
    assert_close(first.logits, whole.logits[:, :3])
    assert_close(second.logits, whole.logits[:, 3:])
    jax.tree.map(assert_close, second.memory, whole.memory)
    alone = read(model, tokens[:, 3:])
    assert (jnp.abs(second.logits - alone.logits).max((1, 2)) > 1e-3).all()


def test_forget_starts_afresh_where_a_new_text_begins():
    model, tokens = lstm(), some_tokens()
    memory = some_memory(model)
    alone, after = read(model, tokens).logits, read(model, tokens, memory).logits
    mixed = read(model, tokens, forget(memory, jnp.array([[True], [False]]))).logits
    same(mixed[0], alone[0])
    same(mixed[1], after[1])
    assert (jnp.abs(after - alone).max((1, 2)) > 1e-3).all()


def test_no_gradient_goes_through_the_memory():
    model, tokens = lstm(), some_tokens()

    @nnx.jit
    @nnx.grad
    def gradient(model):
        memory = model(tokens).memory
        return sum(m.z.sum() for m in memory)

    assert not any(g.any() for g in jax.tree.leaves(gradient(model)))


def test_the_empty_memory():
    model = lstm()
    memory = model.empty_memory(3, jnp.bfloat16)
    assert [m.z.shape for m in memory] == [(3, 1, 2 * n) for n in (HIDDEN, WIDTH)]
    assert all(m.z.dtype == m.injection.dtype == jnp.bfloat16 for m in memory)
    assert not any(m.valid.any() for m in memory)
    none = nnx.jit(lambda model: model(some_tokens()))(model)
    same(none, read(model, some_tokens(), model.empty_memory(BATCH)))
    with pytest.raises(ValueError, match="one part a layer, 2, not 1"):
        model(some_tokens(), memory[:1])


# ------------------------------------------------------------------------------- causality


def test_no_output_depends_on_a_later_token_or_another_text():
    model, tokens = lstm(), some_tokens()
    logits = read(model, tokens).logits
    for t in range(TIME):
        other = tokens.at[0, t].set((tokens[0, t] + 1) % VOCABULARY)
        change = jnp.abs(read(model, other).logits - logits).max(-1)
        assert (change[0, :t] == 0).all() and (change[1] == 0).all()
        assert (change[0, t:] > 1e-6).all()


# ------------------------------------------------------------------------------- dropout


def test_the_shares_and_values_of_the_masks():
    model = lstm(500, width=16, hidden=16, **RATES)
    draw = nnx.jit(lambda model: model.masks(100))
    masks, again = draw(model), draw(model)
    assert masks.words.shape == (500, 1)
    # (batch, 1, n) is broadcast over time; a matrix, over the batch as well.
    assert masks.input.shape == (100, 1, 16)
    assert [m.shape for m in masks.outputs] == [(100, 1, 16)] * 2
    assert [m.shape for m in masks.recurrent] == [(16, 64)] * 2
    rates = [*RATES.values(), RATES["weight_drop"]]  # two layers
    for mask, other, rate in zip(*map(jax.tree.leaves, (masks, again)), rates, strict=True):
        assert_close(np.unique(mask), [0.0, 1 / (1 - rate)])
        deviation = math.sqrt(rate * (1 - rate) / mask.size)
        assert abs((mask == 0).mean() - rate) < 4 * deviation
        assert (mask != other).mean() > 0.1
    for mask in (masks.input, *masks.outputs):
        assert (mask[1:] != mask[:-1]).mean() > 0.1  # every sample has its own


def test_a_dropped_channel_is_silent_at_every_step():
    out = read(lstm(layers=3, **RATES), some_tokens())
    silent = np.asarray(out.dropped) == 0
    same(silent, np.broadcast_to(silent[:, :1], silent.shape))
    assert silent.any() and not silent.all() and (silent[0] != silent[1]).any()
    assert_close(out.dropped, np.where(silent, 0, out.hidden / (1 - RATES["dropout_output"])))


def test_dropped_words_and_weights_get_no_gradient_and_stay():
    model = lstm(dropout_embedding=0.5, weight_drop=0.5)
    tokens = jnp.arange(VOCABULARY - 1).reshape(BATCH, 5)
    masks, before = nnx.clone(model).masks(BATCH), nnx.clone(nnx.state(model, nnx.Param))

    @nnx.jit
    @nnx.grad
    def gradient(model):
        return (model(tokens).hidden ** 2).sum()  # the tied softmax has no part in it

    grads = gradient(model)
    read_words = (masks.words[:, 0] != 0) & jnp.isin(jnp.arange(VOCABULARY), tokens)
    assert 2 <= read_words.sum() <= 8
    assert ((grads["embedding"][...] != 0) == read_words[:, None]).all()
    for i, mask in enumerate(masks.recurrent):
        assert ((grads["cells"][i]["dense_h"]["kernel"][...] != 0) == (mask != 0)).all()
    same(nnx.state(model, nnx.Param), before)


def test_eval_mode_is_the_model_without_dropout():
    model, tokens = lstm(layers=3, **RATES), some_tokens()
    first, second = (read(model, tokens).logits for _ in range(2))
    assert jnp.abs(first - second).max() > 1e-2
    drawn = int(model.rngs.dropout.count[...])
    assert drawn == 2 * 8
    model.eval()
    out, masks = read(model, tokens), model.masks(BATCH)
    assert not jax.tree.leaves(masks) and int(model.rngs.dropout.count[...]) == drawn
    assert_close(out.logits, by_loops(model, tokens, model.empty_memory(BATCH), masks)[2])
    model.train()
    assert jnp.abs(read(model, tokens).logits - out.logits).max() > 1e-2


@pytest.mark.parametrize("name", RATES)
def test_random_state_where_it_is_needed(name):
    plain, dropping = lstm(), lstm(**{name: 0.5})
    assert not jax.tree.leaves(nnx.state(plain, nnx.RngState))
    assert jax.tree.leaves(nnx.state(dropping, nnx.RngState))
    same(nnx.state(plain, nnx.Param), nnx.state(dropping, nnx.Param))


# ------------------------------------------------------------------------------- size, dtype


def count(vocabulary, **options):
    """Parameters of a model, none of which is allocated."""
    model = nnx.eval_shape(lambda: LSTMLanguageModel(vocabulary, **options, rngs=nnx.Rngs(0)))
    return sum(math.prod(w.shape) for w in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_parameter_counts():
    layer = lambda n_in, n: 4 * n * (n_in + n + 1)
    outside = VOCABULARY * (WIDTH + 1)
    sizes = dict(width=WIDTH, hidden=HIDDEN)
    assert count(VOCABULARY, **sizes) == outside + layer(WIDTH, WIDTH)
    three = layer(WIDTH, HIDDEN) + layer(HIDDEN, HIDDEN) + layer(HIDDEN, WIDTH)
    assert count(VOCABULARY, **sizes, layers=3) == outside + three
    # Penn Treebank: the paper says 24M; the released code has a second bias in every gate.
    assert count(10_000, width=400, hidden=1150, layers=3) == 24_221_600 - 4 * (2 * 1150 + 400)


def test_bfloat16():
    exact = read(lstm(layers=3, **RATES), some_tokens())
    out = read(cast(lstm(layers=3, **RATES), jnp.bfloat16), some_tokens())  # the same masks
    assert all(m.z.dtype == out.hidden.dtype == jnp.bfloat16 for m in out.memory)
    assert out.logits.dtype == jnp.float32
    assert 0 < jnp.abs(out.logits - exact.logits).max() < 0.1


# ------------------------------------------------------------------------------- learning


def test_a_hundred_steps_learn_a_sequence_by_heart():
    options = dict.fromkeys(RATES, 0.05) | dict(width=16, layers=1)
    model, tokens = lstm(**options), some_tokens(time=12)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rule = optax.adam(0.03)

    def loss(params, rest):
        model = nnx.merge(graph, params, rest, copy=True)
        nats = model(tokens[:, :-1], targets=tokens[:, 1:]).nats
        return nats.mean(), nnx.state(model, nnx.Not(nnx.Param))

    @jax.jit
    def step(params, rest, state):
        (value, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest)
        updates, state = rule.update(grads, state)
        return optax.apply_updates(params, updates), rest, state, value

    state, losses = rule.init(params), []
    for _ in range(100):
        params, rest, state, value = step(params, rest, state)
        losses.append(float(value))
    assert losses[0] > 2
    model = nnx.merge(graph, params, rest)
    assert int(model.rngs.dropout.count[...]) == 100 * 4  # new masks in every step
    model.eval()
    assert read(model, tokens[:, :-1], targets=tokens[:, 1:]).nats.mean() < 0.1


# ------------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("rate", [1.0, -0.1, math.nan])
def test_wrong_rates(name, rate):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), got {rate}"):
        lstm(**{name: rate})


@pytest.mark.parametrize("name", ["width", "hidden", "layers"])
def test_wrong_sizes(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got 0"):
        lstm(**{name: 0})
    with pytest.raises(TypeError, match=f"{name} must be an integer >= 1, got 2.5"):
        lstm(**{name: 2.5})


def test_a_wrong_vocabulary():
    with pytest.raises(ValueError, match="vocabulary must be an integer >= 1, got -1"):
        LSTMLanguageModel(-1, width=WIDTH, hidden=HIDDEN, rngs=nnx.Rngs(0))
