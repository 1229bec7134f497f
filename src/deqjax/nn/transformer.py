"""The DEQ-Transformer cell: one Transformer-XL block with its input injected into Q, K and V."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .._errors import check_integer
from .axes import axes
from .chunks import in_chunks
from .dropout import masked, row_masks
from .memory import KeyMemory, Memory
from .weight_norm import Matrix, WeightNormLinear, column_scale, weight


class TransformerInput(NamedTuple):
    """x: the embedded input, (batch, time, d); memory: a `Memory` or `KeyMemory`, a tuple of them,
    or None."""

    x: jax.Array
    memory: Any = None


class Masks(NamedTuple):
    """Variational dropout, already scaled: (batch, 1, n) each, or None."""

    attention: jax.Array | None = None
    hidden: jax.Array | None = None
    output: jax.Array | None = None


class Scales(NamedTuple):
    """g / ‖v‖ of the columns of matrices, (n_out,) each; None where they are not normalised."""

    out: jax.Array | None
    up: jax.Array | None
    down: jax.Array | None


class InjectionInChunks(NamedTuple):
    """What is added to q, k and v where f goes in chunks: x W_q is computed chunk by chunk."""

    x: jax.Array  # (batch, time, d)
    w_q: jax.Array  # (d, d)
    k: jax.Array  # (batch, time, d)
    v: jax.Array  # (batch, time, d)


class TransformerContext(NamedTuple):
    """All that one block needs besides z, computed once per solve."""

    qkv: Any  # where it is normalised, (d, 3d), or in chunks three (d, d); None, the parameter
    injection: jax.Array | InjectionInChunks | None  # (batch, time, 3d): what is added
    memory: Keys | KeyMemory
    position: jax.Array | None  # (memory + time, d): keys of the relative positions, furthest first
    valid: jax.Array  # (batch or 1, memory) bool
    masks: Masks
    scales: Scales
    stream: jax.Array | None = None  # (batch, time, d): x, where it is added to z


class Keys(NamedTuple):
    """Keys and values of some positions, (batch, heads, positions, d / heads) each."""

    k: jax.Array
    v: jax.Array


class Rows(NamedTuple):
    """Positions at which f is computed, all of them or a chunk."""

    z: jax.Array  # (batch, rows, d)
    q: jax.Array | None  # (batch, rows, heads, d / heads); None where chunks compute it
    x: jax.Array | None  # (batch, rows, d), from which they do
    index: jax.Array  # (1, rows) int: which of the segment's positions


class Seen(NamedTuple):
    """What those positions look at."""

    memory: Keys | KeyMemory
    segment: Keys
    valid: jax.Array  # (batch or 1, memory) bool
    r: jax.Array | None  # (memory + time, heads, d / heads): keys of the relative positions, but
    # where a `KeyMemory` has them


class Weights(NamedTuple):
    """The parameters with which they do."""

    q: Any  # (d, d), where chunks compute their queries; else None
    inject_q: Any  # (d, d), the same for x
    content_bias: jax.Array  # (heads, d / heads), as the next
    position_bias: jax.Array
    out: Matrix
    up: Matrix
    down: Matrix


class TransformerCell(nnx.Module):
    """y = LN(z + attention(z)), f(z) = LN(y + feed_forward(y)): post-LN, no affine.

    With norm="pre" it is y = z + attention(LN(z)), f(z) = y + feed_forward(LN(y)): a block for a
    `CellStack`, which normalises what the last block returns. Alone it has no equilibrium to speak
    of: z = f(z) says that the block does nothing.

    The cell of the DEQ paper (Bai et al. 2019, section 4 and released code): Transformer-XL
    attention with relative positions (Dai et al. 2019, arXiv 1901.02860) over [memory; z]; the
    embedded input enters as an injection W x added to q, k and v, computed once per solve; masks of
    variational dropout are drawn once per solve (Gal and Ghahramani 2016). Keys and values of the
    memory and of the positions do not depend on z and are computed once as well.

    Causal: output t depends on inputs up to t only.

    Args:
        d: width of z.
        heads: attention heads, a divisor of d.
        d_inner: width of the ReLU feed-forward.
        memory_length: positions kept from the previous segment; 0 for none.
        dropout: rate of the variational masks, in [0, 1).
        norm: "post" or "pre".
        weight_norm: learn length and direction of all matrices apart (`WeightNormLinear`), as the
            released code does. They are normalised once per solve.
        injection: where x enters. "qkv": as W x, with weights of its own, added to q, k and v.
            "state": x is added to z, as looped transformers do (Yang et al. 2023, arXiv
            2311.12424), and q, k, v see it through the weights of z. None: nowhere, a layer of an
            explicit network.
        chunk_size: compute f for at most so many positions at a time, and each chunk again in the
            gradient; None, all at once. Attention scores and the inside of the feed-forward are
            then alive for one chunk only, which is most of the memory of a wide cell. The values
            are the same to rounding. A step of the adjoint computes one more f, and short chunks
            are slow: measured in docs/training.md. Under plain `jit` over several devices the
            gradients of the weights, and with a tensor axis what its devices add up, are summed
            once for each chunk; under `shard_map` once.
        mimetic: start the injection as trained language models look (Trockman and Kolter 2023,
            arXiv 2305.09828), W_q W_kᵀ = −I/2 and W_v W_out = I with orthogonal factors: a position
            looks at what is unlike itself, and copies it. Where a task is to copy, learning starts
            at once instead of after a long plateau.
        rngs: for the parameters and, as `rngs.dropout`, the masks.
    """

    def __init__(
        self,
        d: int,
        *,
        heads: int,
        d_inner: int,
        memory_length: int = 0,
        dropout: float = 0.0,
        norm: str = "post",
        weight_norm: bool = False,
        injection: Literal["qkv", "state"] | None = "qkv",
        chunk_size: int | None = None,
        mimetic: bool = False,
        rngs: nnx.Rngs,
    ):
        if d % heads:
            raise ValueError(f"the width d={d} must be a multiple of heads={heads}")
        if norm not in ("post", "pre"):
            raise ValueError(f"norm must be 'post' or 'pre', got {norm!r}")
        if injection not in ("qkv", "state", None):
            raise ValueError(f"injection must be 'qkv', 'state' or None, got {injection!r}")
        if mimetic and (weight_norm or injection != "qkv"):
            raise ValueError(
                "mimetic=True sets the injection's weights: it needs injection='qkv' and "
                "weight_norm=False"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        check_integer("chunk_size", chunk_size, least=1, optional=True)
        self.d, self.heads, self.d_inner, self.chunk_size = d, heads, d_inner, chunk_size
        self.memory_length, self.dropout = memory_length, dropout
        self.norm, self.weight_norm, self.injection = norm, weight_norm, injection
        self.deterministic = False
        self.rngs = rngs.fork() if dropout else None

        sizes = dict(embed=d, heads=d, inner=d_inner, qkv=3 * d)

        def linear(n_in, n_out, bias=False, gain=1.0):
            init = nnx.initializers.variance_scaling(gain**2, "fan_in", "normal")
            kind = WeightNormLinear if weight_norm else nnx.Linear
            names = ["heads" if name == "qkv" else name for name in (n_in, n_out)]
            return kind(
                sizes[n_in],
                sizes[n_out],
                use_bias=bias,
                kernel_init=init,
                kernel_metadata=axes(*names),
                bias_metadata=axes(names[1]),
                rngs=rngs,
            )

        # What comes from z starts smaller than what comes from x by another way: the trained cell
        # then needs fewer solver steps and learns faster (measured in docs/design.md).
        self.qkv = linear("embed", "qkv", gain=0.25 if self._projects else 1.0)
        if self._projects:
            self.inject_qkv = linear("embed", "qkv")
        self.position = linear("embed", "heads")
        self.out = linear("heads", "embed")
        self.up = linear("embed", "inner", bias=True)
        self.down = linear("inner", "embed", bias=True, gain=0.5)
        if mimetic:
            kernel = self.inject_qkv.kernel[...]
            look, value = (
                nnx.initializers.orthogonal()(rngs.params(), (d, d), kernel.dtype) for _ in range(2)
            )
            look = look * math.sqrt(0.5)
            self.inject_qkv.kernel[...] = interleaved(look, -look, value, heads=heads)
            self.out.kernel[...] = value.T
        self.content_bias = nnx.Param(jnp.zeros((d,)), **axes("heads"))
        self.position_bias = nnx.Param(jnp.zeros((d,)), **axes("heads"))

    @property
    def _projects(self) -> bool:
        """Whether x enters through weights of its own."""
        return self.injection == "qkv"

    @property
    def n_in(self) -> int:
        """Width of the embedded input: that of z."""
        return self.d

    def output(self, z: jax.Array) -> jax.Array:
        """What the softmax sees: z."""
        return z

    def initial_state(self, given: TransformerInput) -> jax.Array:
        return jnp.zeros_like(given.x)

    def masks(self, batch: int) -> Masks:
        """New masks of variational dropout; none in eval mode."""
        if self.rngs is None or self.deterministic:
            return Masks()
        sizes = (self.d, self.d_inner, self.d)
        shapes = [(batch, 1, n) for n in sizes]
        return Masks(*(row_masks(self.rngs.dropout(), self.dropout, shape) for shape in shapes))

    def inject(self, given: TransformerInput, masks: Masks | None = None) -> TransformerContext:
        """Everything that stays fixed while z is being solved for. masks: None draws them."""
        x, memory = given
        batch, time, _ = x.shape
        injection = None
        if self._projects and self._in_chunks(time):
            q, k, v = self._matrices(weight(self.inject_qkv))
            injection = InjectionInChunks(x, q, x @ k, x @ v)
        elif self._projects:
            injection = self.inject_qkv(x)
        qkv = weight(self.qkv)
        position, valid = None, jnp.ones((1, 0), bool)
        if isinstance(memory, KeyMemory):
            if time != 1:
                raise ValueError(
                    f"a KeyMemory takes one position at a time, not {time}: read the others with "
                    "the memory that it was made of"
                )
            keys, valid = memory, memory.valid
        else:
            k = v = self._of_heads(jnp.zeros((batch, 0, self.d), x.dtype))
            if memory is not None:
                k, v = self._keys_of(memory, qkv)
                valid = memory.valid
            keys, position = _heads_first(k, v), self._position(k.shape[1] + time, x.dtype)
        masks = self.masks(batch) if masks is None else masks
        normalised = None
        if self.weight_norm:
            normalised = self._matrices(qkv) if self._in_chunks(time) else qkv
        return TransformerContext(
            qkv=normalised,
            injection=injection,
            memory=keys,
            position=position,
            valid=valid,
            masks=masks,
            scales=Scales(*map(column_scale, (self.out, self.up, self.down))),
            stream=x if self.injection == "state" else None,
        )

    def __call__(self, z: jax.Array, context: TransformerContext) -> jax.Array:
        """f(z) for z of shape (batch, time, d)."""
        at = lambda rows, shared: self._at(rows, *shared)
        rows, seen, w = self._rows(z, context)
        return in_chunks(at, rows, (seen, w, context.masks), self.chunk_size or z.shape[1])

    def remember(
        self, given: TransformerInput, z: jax.Array, context: TransformerContext | None = None
    ) -> Memory | KeyMemory:
        """The memory for the next segment: the last `memory_length` positions of [memory; z], of
        the kind that was given.

        The context, which a `CellStack` needs, is not needed here.
        """
        if self.injection == "state":
            z = z + given.x
        # The solve computed it too: XLA merges the two.
        injection = self.inject_qkv(given.x) if self._projects else given.x[..., :0]
        valid = jnp.ones(z.shape[:2], bool)
        before = given.memory
        if isinstance(before, KeyMemory):
            qkv = self._before(z) @ weight(self.qkv) + (injection if self._projects else 0)
            return before.after(*jax.lax.stop_gradient(self._parts(qkv)[1:]))
        if before is not None and z.shape[1] < self.memory_length:
            z = jnp.concatenate([before.z, z], axis=1)
            injection = jnp.concatenate([before.injection, injection], axis=1)
            valid = jnp.concatenate([before.valid, valid], axis=1)
        keep = slice(max(0, z.shape[1] - self.memory_length), None)
        return Memory(*jax.lax.stop_gradient((z[:, keep], injection[:, keep], valid[:, keep])))

    def empty_memory(self, batch: int, dtype: Any = jnp.float32) -> Memory:
        """The memory before the first segment."""
        m, d = self.memory_length, self.d
        z, injection = (jnp.zeros((batch, m, n), dtype) for n in (d, 3 * d * self._projects))
        return Memory(z, injection, valid=jnp.zeros((batch, m), bool))

    def cache(self, memory: Memory) -> KeyMemory:
        """The same memory as decoding carries it."""
        missing = self.memory_length - memory.z.shape[1]
        front = lambda x: jnp.pad(x, [(0, 0), (missing, 0), *[(0, 0)] * (x.ndim - 2)])
        memory = Memory(*map(front, memory))
        k, v = self._keys_of(memory, weight(self.qkv))
        r = self._of_heads(self._position(self.memory_length + 1, memory.z.dtype))
        return KeyMemory(
            k=jnp.moveaxis(k, 1, 3),
            v=jnp.swapaxes(v, 1, 2),
            valid=memory.valid,
            oldest=jnp.zeros((), jnp.int32),
            position=jnp.swapaxes(r, 0, 1),
        )

    def attention_weights(self, z: jax.Array, context: TransformerContext) -> jax.Array:
        """Where each position looks: (batch, heads, time, memory + time), rows that sum to one."""
        rows, seen, w = self._rows(z, context)
        return self._look(rows, seen, w)

    def _keys_of(self, memory: Memory, qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Its keys and its values, (batch, memory, heads, d / heads) each."""
        before = self._before(memory.z)
        k, v = (self._of_heads(before @ w) for w in self._matrices(qkv)[1:])
        if self._projects:
            _, added_k, added_v = self._parts(memory.injection)
            k, v = k + added_k, v + added_v
        return k, v

    def _position(self, length: int, dtype: Any) -> jax.Array:
        """Keys of the distances length − 1, ..., 0, (length, d)."""
        return self.position(_sinusoid(length, self.d).astype(dtype))

    def _in_chunks(self, time: int) -> bool:
        return self.chunk_size is not None and self.chunk_size < time

    def _rows(self, z, context: TransformerContext) -> tuple[Rows, Seen, Weights]:
        """All positions, what they look at, and with which parameters."""
        if context.stream is not None:
            z = z + context.stream
        entering, added = self._before(z), context.injection
        of_z = weight(self.qkv) if context.qkv is None else context.qkv
        q = x = of_q = of_x = None
        if self._in_chunks(z.shape[1]):
            # One product each: slices of one would keep all of it.
            of_q, of_k, of_v = of_z if isinstance(of_z, tuple) else self._matrices(of_z)
            k, v = entering @ of_k, entering @ of_v
            if isinstance(added, InjectionInChunks):
                x, of_x, k, v = added.x, added.w_q, k + added.k, v + added.v
            k, v = self._of_heads(k), self._of_heads(v)
        else:
            qkv = entering @ of_z
            if isinstance(added, jax.Array):
                qkv += added
            q, k, v = self._parts(qkv)
        r = None if context.position is None else self._of_heads(context.position)
        seen = Seen(context.memory, _heads_first(k, v), context.valid, r)
        w = Weights(
            q=of_q,
            inject_q=of_x,
            content_bias=self._of_heads(self.content_bias[...]),
            position_bias=self._of_heads(self.position_bias[...]),
            out=Matrix.of(self.out, context.scales.out),
            up=Matrix.of(self.up, context.scales.up),
            down=Matrix.of(self.down, context.scales.down),
        )
        return Rows(z, q, x, jnp.arange(z.shape[1])[None]), seen, w

    def _at(self, rows: Rows, seen: Seen, w: Weights, masks: Masks) -> jax.Array:
        """f at those positions, (batch, rows, d)."""
        y = self._after(rows.z + masked(masks.attention, self._attention(rows, seen, w)))
        hidden = jax.nn.relu(w.up(self._before(y)))
        change = w.down(masked(masks.hidden, hidden))
        return self._after(y + masked(masks.output, change))

    def _attention(self, rows: Rows, seen: Seen, w: Weights) -> jax.Array:
        weights = self._look(rows, seen, w).astype(rows.z.dtype)
        parts = jnp.split(weights, [seen.memory.v.shape[2]], axis=-1)
        memory, segment = (
            jnp.einsum("bhij,bhjd->bihd", part, of.v)
            for part, of in zip(parts, (seen.memory, seen.segment), strict=True)
        )
        return w.out((memory + segment).reshape(rows.z.shape))

    def _look(self, rows: Rows, seen: Seen, w: Weights) -> jax.Array:
        """softmax((q + b_c)ᵀk + (q + b_p)ᵀr), with r the key of the distance."""
        q = rows.q
        if q is None:
            q = self._before(rows.z) @ w.q
            if rows.x is not None:
                q += rows.x @ w.inject_q
            q = self._of_heads(q)
        content, relative = q + w.content_bias, q + w.position_bias
        time = seen.segment.k.shape[2]
        if isinstance(seen.memory, KeyMemory):
            scores = seen.memory.scores(content, relative, jnp.swapaxes(seen.segment.k, 1, 2))
        else:
            # Not of [memory; segment]: the memory's part of a gradient is not needed in a solve.
            both = (seen.memory, seen.segment)
            scores = jnp.concatenate(
                [jnp.einsum("bihd,bhjd->bhij", content, of.k) for of in both], axis=-1
            )
            r = seen.r
            assert r is not None
            if q.shape[1] != time:
                r = _from(r, time - 1 - rows.index[0, -1], time)
            scores += _shift(jnp.einsum("bihd,jhd->bhij", relative, r))
        scores = scores / math.sqrt(self.d // self.heads)
        allowed = _allowed(rows.index, seen.valid, time)
        scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
        scores = scores.astype(jnp.promote_types(rows.z.dtype, jnp.float32))
        return jax.nn.softmax(scores, axis=-1)

    def _before(self, z):
        """What a part of the block reads of the residual stream."""
        return layer_norm(z) if self.norm == "pre" else z

    def _after(self, z):
        """What a part of the block leaves of it."""
        return layer_norm(z) if self.norm == "post" else z

    def _of_heads(self, x):
        """(..., d) as (..., heads, d / heads)."""
        return x.reshape(*x.shape[:-1], self.heads, self.d // self.heads)

    def _parts(self, x):
        """q, k and v, (..., heads, d / heads) each, of (..., 3d)."""
        split = x.reshape(*x.shape[:-1], self.heads, 3, self.d // self.heads)
        return tuple(split[..., i, :] for i in range(3))

    def _matrices(self, w):
        """Those of q, k and v, (d, d) each, of (d, 3d)."""
        return tuple(part.reshape(self.d, self.d) for part in self._parts(w))


def _heads_first(k: jax.Array, v: jax.Array) -> Keys:
    """As products read them: in a loop over chunks they are laid out once."""
    return Keys(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))


def interleaved(*parts: jax.Array, heads: int) -> jax.Array:
    """Matrices (n, d) of q, k and v side by side, (n, 3d), as `TransformerCell` orders them: the q,
    k and v of the first head, then those of the second. A mesh that cuts the heads cuts this."""
    n = parts[0].shape[0]
    return jnp.stack([p.reshape(n, heads, -1) for p in parts], axis=2).reshape(n, -1)


def layer_norm(y: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.mean(centred**2, -1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(y.dtype)


def _allowed(index: jax.Array, valid: jax.Array, time: int) -> jax.Array:
    """(batch or 1, 1, rows, memory + time): a row sees the valid memory and keys up to itself."""
    causal = jnp.arange(time) <= index[..., None]
    memory = jnp.broadcast_to(valid[:, None, :], (len(valid), index.shape[1], valid.shape[1]))
    causal = jnp.broadcast_to(causal, (len(valid), *causal.shape[1:]))
    return jnp.concatenate([memory, causal], axis=-1)[:, None]


def _shift(scores: jax.Array) -> jax.Array:
    """Row i of (.., time, keys) moves left by time − 1 − i: column j then holds the score of the
    distance from query i to key j (the "relative shift" of Transformer-XL, appendix B). What wraps
    around lies in the future and is masked."""
    *lead, time, keys = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * len(lead) + [(0, 0), (1, 0)])
    return padded.reshape(*lead, keys + 1, time)[..., 1:, :].reshape(scores.shape)


def _from(r: jax.Array, later: jax.Array, time: int) -> jax.Array:
    """Keys of the distances from the last of some rows, which `later` of `time` come after."""
    padded = jnp.pad(r, [(0, time), (0, 0), (0, 0)])
    return jax.lax.dynamic_slice_in_dim(padded, later, len(r))


def _sinusoid(length: int, d: int) -> jax.Array:
    """(length, d): sines and cosines of the distances length − 1, ..., 0."""
    distance = jnp.arange(length - 1, -1, -1.0)[:, None]
    rate = 10000 ** (-jnp.arange(0, d, 2.0) / d)
    angle = distance * rate
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[:, :d]
