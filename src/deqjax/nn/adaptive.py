"""Adaptive input embedding and tied adaptive softmax: rare words get less of everything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .._closure import vary_like, vary_with
from .._errors import check_integer
from .log_likelihood import log_softmax, picked


class AdaptiveEmbedding(nnx.Module):
    """x = √d · E_i[token − c_i] P_i, for the cluster i that holds the token.

    Baevski and Auli 2019, arXiv 1809.10853. Tokens are sorted by frequency, the most frequent one
    first; the cut-offs c₁ < ... < c_k divide them into [0, c₁), [c₁, c₂), ..., [c_k, vocabulary).
    Cluster i has a table E_i of rows of d_embed // divisorⁱ numbers and, where that is not d or
    where the divisor is above 1, a linear projection P_i to d. Without cut-offs, divisor and
    d_embed this is one plain table. `AdaptiveSoftmax` puts its softmax on the same weights.

    At the start x has unit variance in every cluster. (Transformer-XL shares a single P among all
    clusters if the divisor is 1; here each has its own.)

    With a vocabulary that is not sorted by frequency, or small next to d, use a plain table.

    Args:
        vocabulary: number of tokens.
        d: width of the output.
        cutoffs: the first token of every cluster but the first, strictly increasing.
        divisor: how many times narrower the rows get from cluster to cluster.
        d_embed: width of the first cluster's rows, at most d; None for d.
        rngs: for the parameters.

    Raises:
        ValueError: cut-offs that do not increase or lie outside [1, vocabulary − 1], a width of 0.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import AdaptiveEmbedding, AdaptiveSoftmax
        >>> embedding = AdaptiveEmbedding(100, 8, cutoffs=(10, 40), divisor=2, rngs=nnx.Rngs(0))
        >>> embedding.widths, embedding(jnp.array([[3, 10, 99]])).shape
        ((8, 4, 2), (1, 3, 8))
        >>> softmax = AdaptiveSoftmax(embedding, rngs=nnx.Rngs(1))
        >>> softmax.loss(jnp.ones((1, 3, 8)), jnp.array([[3, 10, 99]])).shape
        (1, 3)
    """

    def __init__(
        self,
        vocabulary: int,
        d: int,
        *,
        cutoffs: Sequence[int] = (),
        divisor: int = 1,
        d_embed: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.vocabulary, self.d, self.cutoffs = vocabulary, d, tuple(cutoffs)
        self.divisor = divisor
        self.widths = _widths(vocabulary, d, self.cutoffs, divisor, d_embed)
        self.tables = nnx.List(
            _rows(stop - start, width, d, rngs)
            for (start, stop), width in zip(self.ranges, self.widths, strict=True)
        )
        projected = divisor > 1 or self.widths[0] != d
        self.projections = nnx.List(
            _projection(width, d, rngs) for width in (self.widths if projected else ())
        )

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The tokens [start, stop) of every cluster."""
        return tuple(pairwise((0, *self.cutoffs, self.vocabulary)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(..., d) for `tokens`, int (...), in the dtype of the weights.

        A token outside [0, vocabulary) becomes NaN. Every position is looked up in every cluster,
        and selected: that is positions × (sum of the widths) × d multiplications.
        """
        tokens = _integers("tokens", tokens)
        x = jnp.zeros((*tokens.shape, self.d), self.tables[0][...].dtype)
        for i, ((start, stop), table) in enumerate(zip(self.ranges, self.tables, strict=True)):
            inside = _inside(tokens, start, stop)
            rows = table[...][jnp.where(inside, tokens - start, 0)]
            if self.projections:
                rows = rows @ self.projections[i][...]
            x = jnp.where(inside[..., None], rows, x)
        known = _inside(tokens, 0, self.vocabulary)
        return jnp.where(known[..., None], x * math.sqrt(self.d), jnp.nan)


class AdaptiveSoftmax(nnx.Module):
    """log p(word) = log p(entry) for the first cluster's words, and for a word of tail cluster i
    log p(entry of i) + log p(word | i); all tied to an `AdaptiveEmbedding`.

    Grave et al. 2017, arXiv 1609.04309, as Transformer-XL uses it (Dai et al. 2019, arXiv
    1901.02860). The head is one softmax over the words of the first cluster and one entry for each
    tail cluster, a tail is a softmax over the words of its cluster:

        head = softmax([E₀; C] P₀ h + b₀),  tail_i = softmax(E_i P_i h + b_i),

    with the embedding's E_i and P_i; the rows C of the entries and the biases are the softmax's
    own. Without cut-offs it is the ordinary softmax tied to the embedding. With them it is another
    distribution than one softmax over the whole vocabulary, not an approximation of that.

    Computed in float32 at least, even where h or the weights are bfloat16.

    The module holds the embedding: `softmax.embedding(tokens)` is the input of the model.

    Args:
        embedding: whose tables and projections it shares.
        tie_projections: share them too, or have projections of its own; one bool, or one for each
            cluster. (Transformer-XL on WikiText-103 leaves the first untied.)
        chunk_size: `loss` computes this many positions at once, at most. Fewer take less memory;
            each chunk's gradient passes once over all weights.
        rngs: for the parameters.

    Raises:
        ValueError: projections to untie where the embedding has none, or too many or too few
            bools; a chunk_size below 1.
    """

    def __init__(
        self,
        embedding: AdaptiveEmbedding,
        *,
        tie_projections: bool | Sequence[bool] = True,
        chunk_size: int = 512,
        rngs: nnx.Rngs,
    ):
        check_integer("chunk_size", chunk_size, least=1)
        tied = _tied(tie_projections, embedding)
        self.embedding, self.chunk_size = embedding, chunk_size
        d, widths, k = embedding.d, embedding.widths, len(embedding.cutoffs)
        self.projections = nnx.List(
            None if tied else _projection(width, d, rngs)
            for tied, width in zip(tied, widths, strict=True)
        )
        self.entries = _rows(k, widths[0], d, rngs) if k else None
        sizes = [stop - start for start, stop in embedding.ranges]
        sizes[0] += k
        self.biases = nnx.List(nnx.Param(jnp.zeros((n,))) for n in sizes)

    def log_probs(self, h: jax.Array) -> jax.Array:
        """Log-probabilities of all words, (..., vocabulary), for h of shape (..., d).

        For evaluation and sampling: the whole matrix is built. Train with `loss`.
        """
        self._check(h)
        (head, *tails), first = self._clusters(), self.embedding.ranges[0][1]
        h = _wide(h)
        log_p = log_softmax(_logits(_projected(h, head), head))
        parts = [log_p[..., :first]]
        for i, tail in enumerate(tails, start=first):
            parts.append(log_p[..., i : i + 1] + log_softmax(_logits(_projected(h, tail), tail)))
        return jnp.concatenate(parts, axis=-1)

    def loss(self, h: jax.Array, targets: jax.Array, *, forward_mode: bool = False) -> jax.Array:
        """−log p(target) at every position, (...), for h (..., d) and targets int (...).

        Exactly `-log_probs` at the targets, without the matrix. Positions are sorted by target and
        go in chunks: a chunk computes the head, and a tail only if one of its targets is in it. So
        the head is paid at every position, and a tail at those of its words, rounded up to chunks.
        The gradient computes each chunk again, so never more than one is alive, chunk_size ×
        (largest cluster) floats and their like, and adds to the weights' gradient in place.

        As with `fixed_point`, what that gives up is `jvp`: `forward_mode=True` has it, by JAX's own
        rules, and a gradient that takes more memory and time.

        A target outside [0, vocabulary) gets NaN, with a gradient of zero.

        `vmap` computes every tail in every chunk, and one chunk for each mapped sample at once:
        leading axes of h are the better way. With positions spread over devices call it inside
        `shard_map`: under plain `jit` the sort brings all of them to every device, and explicit
        sharding refuses it.

        Raises:
            ValueError: h does not end in d, or its leading axes are not those of `targets`.
            TypeError: targets are not integers.
        """
        self._check(h)
        targets = _integers("targets", targets)
        if targets.shape != h.shape[:-1]:
            raise ValueError(f"targets must have shape {h.shape[:-1]}, as h; got {targets.shape}")
        if not targets.size:
            return jnp.zeros(targets.shape, _wide(h).dtype)
        # Inside shard_map the weights' gradients are then summed over devices once, not per chunk.
        clusters = vary_with(self._clusters(), (h, targets))
        shape = targets.shape
        h, targets = jnp.reshape(h, (-1, h.shape[-1])), targets.reshape(-1)
        h, clusters = _one_dtype((h, clusters))
        order = jnp.argsort(targets)
        chunks = _chunked(order, self.chunk_size)
        compute = _chunk_by_chunk if forward_mode else _losses
        losses = compute(self.embedding.ranges, clusters, h[chunks], targets[chunks])
        losses = losses.reshape(-1)[: len(order)]
        losses = jnp.zeros_like(losses).at[order].set(losses, unique_indices=True)
        known = _inside(targets, 0, self.embedding.vocabulary)
        return jnp.where(known, losses, jnp.nan).reshape(shape)

    def _clusters(self) -> list[_Cluster]:
        """The head, with the entries of the tails as its last rows; then the tails."""
        tables = [_wide(table[...]) for table in self.embedding.tables]
        if self.entries is not None:
            tables[0] = jnp.concatenate([tables[0], _wide(self.entries[...])])
        shared = self.embedding.projections or [None] * len(tables)
        pairs = zip(self.projections, shared, strict=True)
        projections = [tied if own is None else own for own, tied in pairs]
        return [
            _Cluster(table, None if p is None else _wide(p[...]), _wide(bias[...]))
            for table, p, bias in zip(tables, projections, self.biases, strict=True)
        ]

    def _check(self, h):
        if h.shape[-1:] != (self.embedding.d,):
            raise ValueError(f"h must have shape (..., d={self.embedding.d}), got {h.shape}")


class _Cluster(NamedTuple):
    table: jax.Array  # (words, width)
    projection: jax.Array | None  # (width, d)
    bias: jax.Array  # (words,)


def _chunk_by_chunk(ranges, clusters, h, targets):
    """(chunks, chunk) for h (chunks, chunk, d) and targets (chunks, chunk)."""
    return jax.lax.map(lambda chunk: _chunk_loss(ranges, clusters, *chunk), (h, targets))


_losses = jax.custom_vjp(_chunk_by_chunk, nondiff_argnums=(0,))


def _losses_forward(ranges, clusters, h, targets):
    return _chunk_by_chunk(ranges, clusters, h, targets), (clusters, h, targets)


def _losses_backward(ranges, given, cotangents):
    """A chunk's logits again, and their gradient added in place: what JAX would derive adds a
    matrix of zeros for every tail that is not in a chunk."""
    clusters, h, targets = given

    def add(total, chunk):
        return _chunk_gradient(ranges, clusters, total, *chunk)

    zero = vary_like(jax.tree.map(jnp.zeros_like, clusters), clusters)
    total, dh = jax.lax.scan(add, zero, (h, targets, cotangents))
    return total, dh, None


_losses.defvjp(_losses_forward, _losses_backward)


def _chunk_loss(ranges, clusters, h, targets):
    """(chunk,) for h (chunk, d) and targets (chunk,)."""
    entries, tails = _parts(ranges, clusters, targets)
    loss = _cross_entropy(h, entries, clusters[0])
    for tail, words, inside in tails:
        more = lambda loss, h, words, inside, tail: (
            loss + jnp.where(inside, _cross_entropy(h, words, tail), 0)
        )
        operands = loss, h, words, inside, tail
        loss = jax.lax.cond(jnp.any(inside), more, lambda loss, *_: loss, *operands)
    return loss


def _chunk_gradient(ranges, clusters, total, h, targets, cotangent):
    """(total + the gradient of the clusters, that of h)."""
    entries, tails = _parts(ranges, clusters, targets)
    head, dh = _add_gradient(total[0], jnp.zeros_like(h), h, entries, cotangent, clusters[0])
    after = [head]
    for (tail, words, inside), sofar in zip(tails, total[1:], strict=True):
        share = jnp.where(inside, cotangent, 0)
        same = lambda sofar, dh, *_: (sofar, dh)
        operands = sofar, dh, h, words, share, tail
        sofar, dh = jax.lax.cond(jnp.any(inside), _add_gradient, same, *operands)
        after.append(sofar)
    return after, dh


def _parts(ranges, clusters, targets):
    """The targets as rows of the head; and of every tail: it, the targets as its rows, and which
    of them are its own."""
    (_, first), *tails = ranges
    entries, parts = targets, []
    for i, ((start, stop), tail) in enumerate(zip(tails, clusters[1:], strict=True), start=first):
        entries = jnp.where(targets >= start, i, entries)
        parts.append((tail, targets - start, _inside(targets, start, stop)))
    return entries, parts


def _cross_entropy(h, words, cluster):
    """−log softmax(logits)[word]; of a word outside the cluster, any finite number."""
    logits = _logits(_projected(h, cluster), cluster)
    return picked(logits, _is(words, logits))


def _add_gradient(total, dh, h, words, cotangent, cluster):
    """Add the gradient of Σ cotangent · `_cross_entropy`: d/d logits = softmax − (is the word)."""
    x = _projected(h, cluster)
    logits = _logits(x, cluster)
    d = cotangent[:, None] * (jax.nn.softmax(logits) - _is(words, logits))
    dx = d @ cluster.table
    table, bias = total.table + d.T @ x, total.bias + d.sum(0)
    if cluster.projection is None:
        return _Cluster(table, None, bias), dh + dx
    projection = total.projection + dx.T @ h
    return _Cluster(table, projection, bias), dh + dx @ cluster.projection


def _is(words, logits):
    return words[:, None] == jnp.arange(logits.shape[1])


def _projected(h, cluster):
    return h if cluster.projection is None else h @ cluster.projection.T


def _logits(x, cluster):
    return x @ cluster.table.T + cluster.bias


def _chunked(order: jax.Array, size: int) -> jax.Array:
    """(chunks, at most `size`): order, with its last element repeated until it comes out even."""
    n = len(order)
    chunks = -(-n // size)
    size = -(-n // chunks)
    return jnp.pad(order, (0, chunks * size - n), mode="edge").reshape(chunks, size)


def _integers(name: str, x) -> jax.Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {x.dtype}")
    return x.astype(jnp.int32)


def _inside(tokens, start: int, stop: int):
    return (start <= tokens) & (tokens < stop)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _one_dtype(tree):
    dtype = jnp.result_type(*jax.tree.leaves(tree))
    return jax.tree.map(lambda x: x.astype(dtype), tree)


# Rows of variance 1/d and projections of variance 1/width: then √d E P has unit variance in every
# cluster, and so have the logits E P h for an h of unit variance.
def _rows(n: int, width: int, d: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(nnx.initializers.normal(1 / math.sqrt(d))(rngs.params(), (n, width)))


def _projection(width: int, d: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(nnx.initializers.normal(1 / math.sqrt(width))(rngs.params(), (width, d)))


def _widths(vocabulary, d, cutoffs, divisor, d_embed) -> tuple[int, ...]:
    """The width of every cluster's rows; all options are checked here."""
    for name, value in (("vocabulary", vocabulary), ("d", d), ("divisor", divisor)):
        check_integer(name, value, least=1)
    check_integer("d_embed", d_embed, least=1, optional=True)
    d_embed = d if d_embed is None else d_embed
    if d_embed > d:
        raise ValueError(f"d_embed must be at most d={d}, got {d_embed}: wider rows hold no more")
    for cutoff in cutoffs:
        check_integer("a cutoff", cutoff, least=1)
        if cutoff >= vocabulary:
            raise ValueError(
                f"a cutoff must be below vocabulary={vocabulary}, got {cutoff}; the last cluster "
                "ends with the vocabulary by itself"
            )
    if any(a >= b for a, b in pairwise(cutoffs)):
        raise ValueError(f"cutoffs must increase strictly, such as (20000, 40000); got {cutoffs}")
    widths = tuple(d_embed // divisor**i for i in range(len(cutoffs) + 1))
    if not widths[-1]:
        raise ValueError(
            f"divisor={divisor} leaves no width for the last of {len(widths)} clusters: "
            f"{d_embed} // {divisor}**{len(cutoffs)} is 0; take a smaller divisor"
        )
    return widths


def _tied(tie_projections, embedding: AdaptiveEmbedding) -> tuple[bool, ...]:
    """One bool for each cluster."""
    clusters = len(embedding.widths)
    if isinstance(tie_projections, bool):
        tie_projections = (tie_projections,) * clusters
    tied = tuple(tie_projections)
    if len(tied) != clusters:
        raise ValueError(
            f"tie_projections must be a bool or {clusters} of them, one a cluster; got {len(tied)}"
        )
    if not all(tied) and not embedding.projections:
        raise ValueError(
            "tie_projections=False needs an embedding with projections: divisor > 1 or d_embed < d"
        )
    return tied
