"""Adaptive embedding and softmax against their formula, written out in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn.adaptive import AdaptiveEmbedding, AdaptiveSoftmax

VOCABULARY, D = 23, 8
SETTINGS = {
    "plain": dict(),
    "narrow": dict(d_embed=5),
    "cut": dict(cutoffs=(4, 9, 17)),
    "divided": dict(cutoffs=(4, 9, 17), divisor=2),
    "untied": dict(cutoffs=(4, 9), divisor=2, d_embed=6, tie_projections=(False, True, True)),
}
LARGE = dict(vocabulary=25_600, d=32, cutoffs=(1280, 5120, 12_800), chunk_size=64)
every_setting = pytest.mark.parametrize("name", SETTINGS)


@functools.cache
def softmax_of(name="divided", chunk_size=7, vocabulary=VOCABULARY, d=D, **options):
    """With random biases: at the start they are zero. Shared between tests: clone to change it."""
    options = SETTINGS[name] | options
    own = {k: options.pop(k) for k in ("tie_projections",) if k in options}
    embedding = AdaptiveEmbedding(vocabulary, d, **options, rngs=nnx.Rngs(0))
    softmax = AdaptiveSoftmax(embedding, chunk_size=chunk_size, **own, rngs=nnx.Rngs(1))
    for i, bias in enumerate(softmax.biases):
        bias[...] = jax.random.normal(jax.random.key(i), bias.shape)
    return softmax


def every_target():
    """h (2, VOCABULARY, D), and each word twice as target: once in order, once out of order."""
    words = jnp.arange(VOCABULARY)
    targets = jnp.stack([words, words * 7 % VOCABULARY])
    return jax.random.normal(jax.random.key(9), (*targets.shape, D)), targets


@jax.jit
def embed(softmax, tokens):
    return softmax.embedding(tokens)


@jax.jit
def log_probs(softmax, h):
    return softmax.log_probs(h)


@jax.jit
def loss(softmax, h, targets):
    return softmax.loss(h, targets)


@jax.jit
def gathered(softmax, h, targets):
    return -jnp.take_along_axis(softmax.log_probs(h), targets[..., None], axis=-1)[..., 0]


@every_setting
def test_probabilities_sum_to_one(name):
    softmax, (h, _) = softmax_of(name), every_target()
    p = np.exp(log_probs(softmax, h))
    assert p.shape == (*h.shape[:-1], VOCABULARY)
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "chunk_size"), [*((name, 7) for name in SETTINGS), ("divided", 1), ("divided", 1000)]
)
def test_the_loss_of_every_word_is_its_log_probability(name, chunk_size):
    softmax, (h, targets) = softmax_of(name, chunk_size), every_target()
    got = loss(softmax, h, targets)
    assert got.shape == targets.shape and got.dtype == jnp.float32
    np.testing.assert_allclose(got, gathered(softmax, h, targets), rtol=1e-5, atol=1e-5)


@every_setting
def test_embedding_and_softmax_against_float64_written_out(name):
    softmax, (h, targets) = softmax_of(name), every_target()
    embedding = softmax.embedding
    cutoffs = SETTINGS[name].get("cutoffs", ())
    starts, k = [0, *cutoffs], len(cutoffs)

    def array(x):
        return np.asarray(x[...], np.float64)

    def log_softmax(a):
        return a - np.log(np.exp(a).sum(-1, keepdims=True))

    tables, biases = [array(t) for t in embedding.tables], [array(b) for b in softmax.biases]
    shared = [array(p) for p in embedding.projections] or [np.eye(D)] * (k + 1)
    used = [s if p is None else array(p) for s, p in zip(shared, softmax.projections, strict=True)]
    want = np.concatenate([t @ p for t, p in zip(tables, shared, strict=True)]) * math.sqrt(D)
    np.testing.assert_allclose(embed(softmax, targets), want[targets], rtol=1e-5, atol=1e-5)

    z = np.asarray(h, np.float64)
    if k:
        tables[0] = np.concatenate([tables[0], array(softmax.entries)])
    logits = [z @ (t @ p).T + b for t, p, b in zip(tables, used, biases, strict=True)]
    head = log_softmax(logits[0])
    want = np.empty((*z.shape[:-1], VOCABULARY))
    for word in range(VOCABULARY):
        cluster = sum(word >= c for c in cutoffs)
        if cluster == 0:
            want[..., word] = head[..., word]
        else:
            entry = head[..., (*cutoffs, VOCABULARY)[0] + cluster - 1]
            inside = log_softmax(logits[cluster])[..., word - starts[cluster]]
            want[..., word] = entry + inside
    np.testing.assert_allclose(log_probs(softmax, h), want, rtol=1e-5, atol=1e-5)


def test_without_cutoffs_it_is_the_tied_softmax():
    softmax, (h, targets) = softmax_of("plain"), every_target()
    (table,), (bias,) = softmax.embedding.tables, softmax.biases
    assert len(jax.tree.leaves(nnx.state(softmax))) == 2
    rows = table[...][targets] * math.sqrt(D)
    np.testing.assert_array_equal(softmax.embedding(targets), rows)
    want = jax.nn.log_softmax(h @ table[...].T + bias[...])
    np.testing.assert_allclose(softmax.log_probs(h), want, rtol=3e-6)


@pytest.mark.parametrize("name", ["plain", "divided", "untied"])
def test_gradients_are_those_of_the_gathered_log_probabilities(name):
    softmax, (h, targets) = softmax_of(name), every_target()
    weights = jax.random.normal(jax.random.key(3), targets.shape)

    def gradient(losses):
        def total(softmax, h):
            return jnp.sum(weights * losses(softmax, h, targets))

        return jax.tree.leaves(jax.jit(jax.grad(total, argnums=(0, 1)))(softmax, h))

    got, want = gradient(loss), gradient(gathered)
    unused = name == "untied"  # the embedding's first projection
    assert sum(np.abs(g).max() < 0.01 for g in want) == unused
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)


def test_tables_learn_as_input_and_as_softmax_and_own_projections_only_as_softmax():
    softmax, (h, targets) = softmax_of("untied"), every_target()
    both = jax.jit(jax.grad(lambda s: loss(s, h, targets).sum()))(softmax)
    inputs = jax.jit(jax.grad(lambda s: embed(s, targets).sum()))(softmax)

    def learns(x):
        return bool(np.abs(x[...]).max() > 0.01)

    assert [learns(t) for t in both.embedding.tables] == [True] * 3
    assert [learns(t) for t in inputs.embedding.tables] == [True] * 3
    assert [learns(p) for p in both.embedding.projections] == [False, True, True]
    assert [learns(p) for p in inputs.embedding.projections] == [True] * 3
    assert learns(both.projections[0]) and not learns(inputs.projections[0])
    assert softmax.projections[1] is None


def test_a_tail_without_a_target_is_not_computed():
    """Its weights are NaN, and so would be every gradient that went through it."""
    softmax, (h, _) = nnx.clone(softmax_of("divided", chunk_size=4)), every_target()
    targets = jnp.array([0, 9, 1, 20, 16, 3] * 2)  # all clusters but the second
    softmax.embedding.tables[1][...] = jnp.full((5, 4), jnp.nan)

    @jax.jit
    def gradients(softmax, h, targets):
        return jax.grad(lambda s, h: s.loss(h, targets).sum(), argnums=(0, 1))(softmax, h)

    h = h[0, : len(targets)]
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients(softmax, h, targets)))
    dh = gradients(softmax, h, targets.at[0].set(4))[1]
    assert np.isnan(dh).any() and np.isfinite(dh).any()


def test_mapped_and_linearised():
    softmax, (h, targets) = softmax_of("divided"), every_target()
    want = loss(softmax, h, targets)
    mapped = jax.jit(jax.vmap(softmax.loss))(h, targets)
    np.testing.assert_allclose(mapped, want, rtol=1e-5, atol=1e-5)
    mapped = jax.jit(jax.vmap(softmax.embedding))(targets)
    np.testing.assert_allclose(mapped, embed(softmax, targets), rtol=1e-6)

    @jax.jit(static_argnums=0)
    def tangent(f, h):
        return jax.jvp(lambda h: f(softmax, h, targets), (h,), (jnp.cos(h),))[1]

    linear = lambda softmax, h, targets: softmax.loss(h, targets, forward_mode=True)
    got, want = tangent(linear, h), tangent(gathered, h)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradients_of_gradients():
    """The gradient is written by hand; that of it is JAX's."""
    softmax, (h, targets) = softmax_of("divided"), every_target()

    @jax.jit(static_argnums=0)
    def hessian_times_cosine(f, h):
        total = lambda h: jnp.sum(f(softmax, h, targets) ** 2)
        return jax.grad(lambda h: jnp.vdot(jax.grad(total)(h), jnp.cos(h)))(h)

    got, want = hessian_times_cosine(loss, h), hessian_times_cosine(gathered, h)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-4)


def test_a_tail_that_is_not_in_a_chunk_adds_nothing_to_its_gradient():
    """Not even a matrix of zeros, as JAX's own rules would."""
    softmax, (h, targets) = softmax_of("divided"), every_target()
    graph, params = nnx.split(softmax)
    tail = max(t[...].shape for t in softmax.embedding.tables[1:])

    def zeros_in_loops(**options):
        total = lambda params: nnx.merge(graph, params).loss(h, targets, **options).sum()
        jaxpr = jax.make_jaxpr(jax.grad(total))(params).jaxpr
        loops = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
        inside = [e for loop in loops for e in equations(loop.params["jaxpr"])]
        zeros = [e for e in inside if e.primitive.name == "broadcast_in_dim"]
        return sum(e.outvars[0].aval.shape == tail for e in zeros)

    assert zeros_in_loops() == 0 and zeros_in_loops(forward_mode=True) > 0


def test_inside_shard_map_the_weights_gradients_are_summed_once():
    softmax, (h, targets) = softmax_of("divided"), every_target()
    graph, params = nnx.split(softmax)
    spec = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def total(params, h, targets):
        return jax.lax.psum(nnx.merge(graph, params).loss(h, targets).sum(), "data")

    whole, rows = spec(), spec("data")
    total = jax.shard_map(total, mesh=mesh, in_specs=(whole, rows, rows), out_specs=whole)
    jaxpr = jax.make_jaxpr(jax.grad(total))(params, h, targets)
    loops = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "scan"]
    inside = {e.primitive.name for loop in loops for e in equations(loop.params["jaxpr"])}
    assert "cond" in inside and not any("psum" in name for name in inside)
    assert any("psum" in e.primitive.name for e in equations(jaxpr.jaxpr))


def equations(jaxpr):
    """All equations of a jaxpr and of the jaxprs in them."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(value, "eqns"):
                yield from equations(value)


def test_sizes_at_the_wikitext_setting():
    def count(tie_projections=True, **options):
        def build():
            embedding = AdaptiveEmbedding(267_735, 700, rngs=nnx.Rngs(0), **options)
            return AdaptiveSoftmax(embedding, tie_projections=tie_projections, rngs=nnx.Rngs(0))

        softmax = nnx.eval_shape(build)
        return [
            sum(x.size for x in jax.tree.leaves(nnx.state(m))) for m in (softmax.embedding, softmax)
        ]

    cutoffs, own = (20_000, 40_000, 200_000), 3 * 700 + 267_735 + 3
    tables = 20_000 * 700 + 20_000 * 175 + 160_000 * 43 + 67_735 * 10
    projections = (700 + 175 + 43 + 10) * 700
    divided, whole = tables + projections, 267_735 * 700
    assert count(cutoffs=cutoffs, divisor=4) == [divided, divided + own] == [25706950, 25976788]
    assert count(cutoffs=cutoffs) == [whole, whole + own] == [187414500, 187684338]
    untied = count(cutoffs=cutoffs, divisor=4, tie_projections=False)
    assert untied == [divided, divided + own + projections]


@pytest.mark.slow
def test_memory_is_that_of_one_chunk():
    """Positions × vocabulary would be 105 MB; positions × head, 5.2 MB."""
    softmax, positions = softmax_of("divided", **LARGE), 1024
    h, targets = jnp.ones((positions, LARGE["d"])), jnp.arange(positions) * 25
    whole, one = positions * LARGE["vocabulary"] * 4, LARGE["chunk_size"] * 12_800 * 4

    def temporary(f):
        compiled = jax.jit(f).lower(softmax, h).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def total(softmax, h):
        return softmax.loss(h, targets).sum()

    # Logits and their gradient, and the gradient of the weights; without either of the two
    # checkpoints it would be 4.
    assert temporary(jax.value_and_grad(total, argnums=(0, 1))) < 3 * one < 0.1 * whole
    assert temporary(lambda s, h: gathered(s, h, targets).sum()) > whole, "the test can fail"


def test_bfloat16_is_computed_in_float32():
    softmax, (h, targets) = softmax_of("divided"), every_target()
    narrow = h.astype(jnp.bfloat16)
    got = loss(softmax, narrow, targets)
    assert got.dtype == log_probs(softmax, narrow).dtype == jnp.float32
    wide = narrow.astype(jnp.float32)
    np.testing.assert_allclose(got, loss(softmax, wide, targets), rtol=1e-6)
    gradient = jax.eval_shape(jax.grad(lambda h: loss(softmax, h, targets).sum()), narrow)
    assert gradient.dtype == jnp.bfloat16

    @jax.jit(static_argnums=1)
    def cast(softmax, dtype):
        return jax.tree.map(lambda x: x.astype(dtype), softmax)

    half = cast(softmax, jnp.bfloat16)
    back = cast(half, jnp.float32)
    assert embed(half, targets).dtype == jnp.bfloat16
    np.testing.assert_allclose(
        loss(half, narrow, targets), loss(back, wide, targets), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("h_dtype, dtype", [("float64", "float32"), ("bfloat16", "float64")])
def test_dtypes_may_differ(h_dtype, dtype):
    softmax, (h, targets) = softmax_of("divided"), every_target()
    with jax.enable_x64(True):
        h = h.astype(h_dtype)
        softmax = jax.tree.map(lambda x: x.astype(dtype), softmax)
        total = lambda losses: jax.grad(lambda s, h: losses(s, h, targets).sum(), (0, 1))
        got, want = (jax.tree.leaves(total(losses)(softmax, h)) for losses in (loss, gathered))
        for g, w in zip(got, want, strict=True):
            assert g.dtype == w.dtype
            np.testing.assert_allclose(
                g, w, rtol=0.02 if w.dtype == jnp.bfloat16 else 1e-6, atol=1e-6
            )


@pytest.mark.slow
def test_inputs_and_logits_start_with_unit_variance_in_every_cluster():
    softmax, d = softmax_of("divided", **LARGE), LARGE["d"]
    words = np.asarray(embed(softmax, jnp.arange(LARGE["vocabulary"])))
    h = np.random.default_rng(0).normal(size=(200, d))
    for start, stop in softmax.embedding.ranges:
        assert 0.8 < np.std(words[start:stop]) < 1.2
        assert 0.8 < np.std(h @ words[start:stop].T / math.sqrt(d)) < 1.2


def test_no_positions_and_words_outside_the_vocabulary():
    softmax, (h, _) = softmax_of("divided"), every_target()
    assert loss(softmax, h[:, :0], jnp.zeros((2, 0), int)).shape == (2, 0)
    h, targets = h[0, :4], jnp.array([-1, 3, VOCABULARY - 1, VOCABULARY])
    outside = [True, False, False, True]
    assert np.isnan(loss(softmax, h, targets)).tolist() == outside
    assert np.isnan(embed(softmax, targets)).all(-1).tolist() == outside
    dh = jax.jit(jax.grad(lambda h: jnp.nansum(loss(softmax, h, targets))))(h)
    assert (np.abs(dh).max(-1) == 0).tolist() == outside
    small = np.array([0, 5, 22, 9], np.uint8)
    np.testing.assert_array_equal(loss(softmax, h, small), loss(softmax, h, jnp.int32(small)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(cutoffs=(9, 4)), r"cutoffs must increase strictly, .*; got \(9, 4\)"),
        (dict(cutoffs=(4, 4)), "cutoffs must increase strictly"),
        (dict(cutoffs=(0, 4)), "a cutoff must be an integer >= 1, got 0"),
        (dict(cutoffs=(4, VOCABULARY)), "a cutoff must be below vocabulary=23, got 23"),
        (dict(divisor=0), "divisor must be an integer >= 1, got 0"),
        (dict(cutoffs=(4, 9), divisor=3), r"no width for the last of 3 clusters: 8 // 3\*\*2 is 0"),
        (dict(d_embed=0), "d_embed must be an integer >= 1, got 0"),
        (dict(d_embed=9), "d_embed must be at most d=8, got 9"),
        (dict(cutoffs=(4,), tie_projections=False), "needs an embedding with projections"),
        (dict(d_embed=5, tie_projections=(True, True)), "a bool or 1 of them, .*; got 2"),
        (dict(chunk_size=0), "chunk_size must be an integer >= 1, got 0"),
    ],
)
def test_wrong_options_get_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        softmax_of("plain", **options)


def test_wrong_inputs_get_a_sentence():
    softmax, (h, targets) = softmax_of(), every_target()
    with pytest.raises(ValueError, match=r"h must have shape \(..., d=8\), got \(2, 23, 5\)"):
        softmax.log_probs(h[..., :5])
    with pytest.raises(ValueError, match=r"targets must have shape \(2, 23\), as h; got \(23,\)"):
        softmax.loss(h, targets[0])
    with pytest.raises(TypeError, match="tokens must be integers, got float32"):
        softmax.embedding(h)
