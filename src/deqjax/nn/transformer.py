"""The DEQ-Transformer cell: one Transformer-XL block with its input injected into Q, K and V."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .axes import axes
from .dropout import masked, row_masks
from .weight_norm import WeightNormLinear, affine, weight

PyTree = Any


class Memory(NamedTuple):
    """The last `memory_length` positions of the previous segment, detached.

    Attributes:
        z: their equilibrium, (batch, memory, d).
        injection: their injected q, k, v, (batch, memory, 3d), as `TransformerCell` orders them.
        valid: (batch, memory) bool, False where there is nothing yet: the stream has just begun.
    """

    z: jax.Array
    injection: jax.Array
    valid: jax.Array


def forget(memory: PyTree, fresh: jax.Array) -> PyTree:
    """The memory without what stands before a new text: `fresh`, (batch, 1) bool, says where one
    begins. Takes one `Memory` or several, as a `CellStack` has them."""
    return jax.tree.map(
        lambda m: m._replace(valid=m.valid & ~fresh),
        memory,
        is_leaf=lambda m: isinstance(m, Memory),
    )


class TransformerInput(NamedTuple):
    """x: the embedded input, (batch, time, d); memory: a `Memory`, a tuple of them, or None."""

    x: jax.Array
    memory: Any = None


class Weights(NamedTuple):
    """The matrices that z is multiplied by, (n_in, n_out)."""

    qkv: jax.Array
    out: jax.Array
    up: jax.Array
    down: jax.Array


class Masks(NamedTuple):
    """Variational dropout, already scaled: (batch, 1, n) each, or None."""

    attention: jax.Array | None = None
    hidden: jax.Array | None = None
    output: jax.Array | None = None


class TransformerContext(NamedTuple):
    """All that one block needs besides z, computed once per solve."""

    injection: jax.Array | None  # (batch, time, 3d)
    key_value: jax.Array  # (batch, memory, heads, 2, d / heads): keys and values of the memory
    position: jax.Array  # (memory + time, d): keys of the relative positions, furthest first
    allowed: jax.Array  # (batch or 1, 1, time, memory + time) bool
    masks: Masks
    weights: Weights | None  # where they are normalised; None, the parameters themselves


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
        injected: False leaves the injection out: a layer of an explicit network.
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
        injected: bool = True,
        mimetic: bool = False,
        rngs: nnx.Rngs,
    ):
        if d % heads:
            raise ValueError(f"the width d={d} must be a multiple of heads={heads}")
        if norm not in ("post", "pre"):
            raise ValueError(f"norm must be 'post' or 'pre', got {norm!r}")
        if mimetic and (weight_norm or not injected):
            raise ValueError(
                "mimetic=True sets the injection's weights: it needs injected=True and "
                "weight_norm=False"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        self.d, self.heads, self.d_inner = d, heads, d_inner
        self.memory_length, self.dropout = memory_length, dropout
        self.norm, self.weight_norm, self.injected = norm, weight_norm, injected
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

        # What comes from z starts smaller than what comes from x: the trained cell then needs
        # fewer solver steps and learns faster (measured in docs/design.md).
        self.qkv = linear("embed", "qkv", gain=0.25 if injected else 1.0)
        if injected:
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
        batch, time, d = x.shape
        length = 0 if memory is None else memory.z.shape[1]
        injection = self.inject_qkv(x) if self.injected else None
        weights = self._weights()
        key_value = self._of_heads(jnp.zeros((batch, 0, 2 * d), x.dtype), 2)
        allowed = _causal(time, length)
        if memory is not None:
            w = self._of_heads(weights.qkv, 3)[:, :, 1:].reshape(d, 2 * d)
            key_value = self._of_heads(self._before(memory.z) @ w, 2)
            if self.injected:
                key_value += self._of_heads(memory.injection, 3)[:, :, :, 1:]
            seen = jnp.concatenate([memory.valid, jnp.ones((batch, time), bool)], axis=1)
            allowed = allowed & seen[:, None, None, :]
        position = self.position(_sinusoid(length + time, d).astype(x.dtype))
        masks = self.masks(batch) if masks is None else masks
        normalised = weights if self.weight_norm else None
        return TransformerContext(injection, key_value, position, allowed, masks, normalised)

    def __call__(self, z: jax.Array, context: TransformerContext) -> jax.Array:
        """f(z) for z of shape (batch, time, d)."""
        w = context.weights or self._weights()
        y = self._after(z + masked(context.masks.attention, self._attention(z, context)))
        hidden = jax.nn.relu(affine(self.up, w.up, self._before(y)))
        change = affine(self.down, w.down, masked(context.masks.hidden, hidden))
        return self._after(y + masked(context.masks.output, change))

    def remember(
        self, given: TransformerInput, z: jax.Array, context: TransformerContext | None = None
    ) -> Memory:
        """The memory for the next segment: the last `memory_length` positions of [memory; z].

        The context, which a `CellStack` needs, is not needed here.
        """
        # The solve computed it too: XLA merges the two.
        injection = self.inject_qkv(given.x) if self.injected else given.x[..., :0]
        valid = jnp.ones(z.shape[:2], bool)
        before = given.memory
        if before is not None and z.shape[1] < self.memory_length:
            z = jnp.concatenate([before.z, z], axis=1)
            injection = jnp.concatenate([before.injection, injection], axis=1)
            valid = jnp.concatenate([before.valid, valid], axis=1)
        keep = slice(max(0, z.shape[1] - self.memory_length), None)
        return Memory(*jax.lax.stop_gradient((z[:, keep], injection[:, keep], valid[:, keep])))

    def empty_memory(self, batch: int, dtype: Any = jnp.float32) -> Memory:
        """The memory before the first segment."""
        m, d = self.memory_length, self.d
        z, injection = (jnp.zeros((batch, m, n), dtype) for n in (d, 3 * d * self.injected))
        return Memory(z, injection, valid=jnp.zeros((batch, m), bool))

    def attention_weights(self, z: jax.Array, context: TransformerContext) -> jax.Array:
        """Where each position looks: (batch, heads, time, memory + time), rows that sum to one."""
        return self._weights_and_values(z, context)[0]

    def _attention(self, z, context):
        weights, v = self._weights_and_values(z, context)
        out = jnp.einsum("bhij,bjhd->bihd", weights.astype(z.dtype), v)
        return out.reshape(z.shape) @ (context.weights or self._weights()).out

    def _weights_and_values(self, z, context):
        """softmax((q + b_c)ᵀk + (q + b_p)ᵀr), with r the key of the distance; and v."""
        qkv = self._before(z) @ (context.weights or self._weights()).qkv
        if self.injected:
            qkv += context.injection
        qkv = self._of_heads(qkv, 3)
        q, key_value = qkv[:, :, :, 0], qkv[:, :, :, 1:]
        key_value = jnp.concatenate([context.key_value, key_value], axis=1)
        k, v = key_value[:, :, :, 0], key_value[:, :, :, 1]
        content, relative = (
            q + self._of_heads(bias[...], 1)[:, 0]
            for bias in (self.content_bias, self.position_bias)
        )
        r = self._of_heads(context.position, 1)[:, :, 0]
        scores = jnp.einsum("bihd,bjhd->bhij", content, k)
        scores += _shift(jnp.einsum("bihd,jhd->bhij", relative, r))
        scores = scores / math.sqrt(self.d // self.heads)
        scores = jnp.where(context.allowed, scores, jnp.finfo(scores.dtype).min)
        scores = scores.astype(jnp.promote_types(z.dtype, jnp.float32))
        return jax.nn.softmax(scores, axis=-1), v

    def _weights(self) -> Weights:
        return Weights(*map(weight, (self.qkv, self.out, self.up, self.down)))

    def _before(self, z):
        """What a part of the block reads of the residual stream."""
        return layer_norm(z) if self.norm == "pre" else z

    def _after(self, z):
        """What a part of the block leaves of it."""
        return layer_norm(z) if self.norm == "post" else z

    def _of_heads(self, x, parts):
        """(..., parts · d) as (..., heads, parts, d / heads)."""
        return x.reshape(*x.shape[:-1], self.heads, parts, self.d // self.heads)


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


def _causal(time: int, length: int) -> jax.Array:
    """(1, 1, time, length + time): query i sees the memory and keys up to itself."""
    query, key = jnp.arange(time)[:, None], jnp.arange(length + time)[None, :]
    return (key <= query + length)[None, None]


def _shift(scores: jax.Array) -> jax.Array:
    """Row i of (.., time, keys) moves left by time − 1 − i: column j then holds the score of the
    distance from query i to key j (the "relative shift" of Transformer-XL, appendix B). What wraps
    around lies in the future and is masked."""
    *lead, time, keys = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * len(lead) + [(0, 0), (1, 0)])
    return padded.reshape(*lead, keys + 1, time)[..., 1:, :].reshape(scores.shape)


def _sinusoid(length: int, d: int) -> jax.Array:
    """(length, d): sines and cosines of the distances length − 1, ..., 0."""
    distance = jnp.arange(length - 1, -1, -1.0)[:, None]
    rate = 10000 ** (-jnp.arange(0, d, 2.0) / d)
    angle = distance * rate
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[:, :d]
