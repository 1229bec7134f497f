"""The DEQ-TrellisNet cell: an LSTM's gates on a causal convolution with its input injected."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .._errors import check_integer
from .dropout import masked, row_masks, weight_mask
from .memory import Memory
from .transformer import TransformerInput
from .weight_norm import WeightNormLinear, weight


class TrellisContext(NamedTuple):
    """All that the cell needs besides z, computed once per solve."""

    injection: jax.Array  # (batch, time, 4 hidden): what x adds to the gates
    before: jax.Array  # (batch, 1, 2 hidden): z one step before the segment, zeros at a beginning
    mask: jax.Array | None  # (batch, 1, hidden): variational dropout of h, already scaled
    weight: jax.Array | None  # (2 hidden, 4 hidden), as used; None, the parameter itself


class TrellisCell(nnx.Module):
    """One layer of a TrellisNet, whose state z = [h, c] is (batch, time, 2 hidden):

        i, o, g, f = u_t + W [h_{t-1}; h_t],    u_t = U [x_{t-1}; x_t] + b
        c_t ← σ(f) c_{t-1} + σ(i) tanh(g)
        h_t ← σ(o) tanh(c_t)

    The cell of TrellisNet (Bai, Kolter and Koltun 2018, arXiv 1810.06682, the gated one) and of
    DEQ-TrellisNet (Bai et al. 2019, arXiv 1909.01377, section 4 and released code). W and U are
    causal convolutions of kernel size 2, written as matrices on a step and the one before it. All
    of the right-hand side comes from the layer below, c_{t-1} too: for a solver every step in time
    is open at once, and only at the equilibrium is this a recurrence. The injection u and the mask
    of variational dropout on h (Gal and Ghahramani 2016), the same at all steps in time, are
    computed once per solve.

    Causal: output t depends on inputs up to t only. There is always an equilibrium, as |h| < 1 and
    |c_t| ≤ |c_{t-1}| + 1 keep z in a box (Brouwer), but nothing makes it the only one.

    One application carries what was read one step further in time. A cell that forgets fast, as a
    new one does, takes some 20 solver steps to rtol 1e-4; one that remembers (f near 1) about as
    many as there are steps in time, where Anderson and Broyden have no advantage over plain
    iteration.

    Where this differs from the released code: W has no bias, as U's does the same; and the
    injection of a segment's first step sees the last input of the segment before it, not a zero.

    Args:
        n_in: width of the embedded input.
        hidden: width of h and of c. The released code calls it nhid + nout: 1500 + 500 on
            WikiText-103 and 1000 + 400 on Penn Treebank.
        n_out: width of the output, the last channels of h; None means n_in, as a softmax that is
            tied to the embedding needs.
        memory_length: 1 carries the state from segment to segment; 0 starts each from nothing.
        dropout: rate of the variational mask, in [0, 1).
        weight_drop: rate at which entries of W are dropped, one mask a solve (DropConnect, as
            Merity et al. 2018, arXiv 1708.02182, use it on recurrent weights).
        weight_norm: learn length and direction of W and U apart (`WeightNormLinear`; the length is
            that of both taps together). W is normalised once per solve.
        rngs: for the parameters and, as `rngs.dropout`, the mask.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import DEQ, TransformerInput, TrellisCell
        >>> deq = DEQ(TrellisCell(4, hidden=6, rngs=nnx.Rngs(0)))
        >>> sol = deq(TransformerInput(jnp.ones((2, 5, 4))))
        >>> sol.z.shape, deq.cell.output(sol.z).shape
        ((2, 5, 12), (2, 5, 4))
    """

    def __init__(
        self,
        n_in: int,
        *,
        hidden: int,
        n_out: int | None = None,
        memory_length: int = 0,
        dropout: float = 0.0,
        weight_drop: float = 0.0,
        weight_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        n_out = n_in if n_out is None else n_out
        for name, value in (("n_in", n_in), ("hidden", hidden), ("n_out", n_out)):
            check_integer(name, value, least=1)
        if n_out > hidden:
            raise ValueError(f"the output is a part of h: n_out={n_out} exceeds hidden={hidden}")
        if memory_length not in (0, 1):
            raise ValueError(
                "memory_length must be 0 or 1, for the last step's state sums up all before it; "
                f"got {memory_length!r}"
            )
        for name, rate in (("dropout", dropout), ("weight_drop", weight_drop)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be in [0, 1), got {rate!r}")
        self.n_in, self.hidden, self.n_out = n_in, hidden, n_out
        self.memory_length, self.weight_norm = memory_length, weight_norm
        self.dropout, self.weight_drop = dropout, weight_drop
        self.deterministic = False

        def convolution(channels, bias, variance):
            init = nnx.initializers.variance_scaling(variance, "fan_in", "normal")
            kind = WeightNormLinear if weight_norm else nnx.Linear
            return kind(2 * channels, 4 * hidden, use_bias=bias, kernel_init=init, rngs=rngs)

        # 0.4 is the released code's standard deviation, 0.01, at its width of h on WikiText-103.
        self.convolution = convolution(hidden, bias=False, variance=0.4)
        self.inject_convolution = convolution(n_in, bias=True, variance=1.0)
        # Last, so that the same seed gives the same parameters with and without dropout.
        self.rngs = rngs.fork() if dropout or weight_drop else None

    @property
    def d(self) -> int:
        """Width of z, h and c together. The input is `n_in` wide, the output `n_out`."""
        return 2 * self.hidden

    def initial_state(self, given: TransformerInput) -> jax.Array:
        """Zeros, (batch, time, 2 hidden)."""
        return jnp.zeros((*given.x.shape[:2], self.d), given.x.dtype)

    def inject(self, given: TransformerInput) -> TrellisContext:
        """Everything that stays fixed while z is being solved for, from x (batch, time, n_in)."""
        x, memory = given
        batch = x.shape[0]
        if memory is None or memory.z.shape[1] == 0:
            memory = self._empty(batch, 1, x.dtype)
        # Before the beginning there are zeros, so that no memory is one of zeros.
        before, x_before = (
            jnp.where(memory.valid[..., None], y, 0).astype(x.dtype)
            for y in (memory.z, memory.injection)
        )
        injection = self.inject_convolution(_pairs(_delay(x, x_before), x))
        mask, w = None, weight(self.convolution) if self.weight_norm else None
        if self.rngs is not None and not self.deterministic:
            if self.dropout:
                mask = row_masks(self.rngs.dropout(), self.dropout, (batch, 1, self.hidden))
            if self.weight_drop:
                w = weight(self.convolution) if w is None else w
                w = masked(weight_mask(self.rngs.dropout(), self.weight_drop, w.shape), w)
        return TrellisContext(injection, before, mask, w)

    def __call__(self, z: jax.Array, context: TrellisContext) -> jax.Array:
        """f(z) for z of shape (batch, time, 2 hidden)."""
        w = weight(self.convolution) if context.weight is None else context.weight
        h, _ = jnp.split(z, 2, axis=-1)
        h_before, c_before = jnp.split(_delay(z, context.before), 2, axis=-1)
        pairs = _pairs(masked(context.mask, h_before), masked(context.mask, h))
        i, o, g, f = jnp.split(context.injection + pairs @ w, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c_before + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jnp.concatenate([jax.nn.sigmoid(o) * jnp.tanh(c), c], axis=-1)

    def output(self, z: jax.Array) -> jax.Array:
        """What the softmax sees: the last n_out channels of h, (batch, time, n_out)."""
        return z[..., self.hidden - self.n_out : self.hidden]

    def remember(
        self, given: TransformerInput, z: jax.Array, context: TrellisContext | None = None
    ) -> Memory:
        """The memory for the next segment: z and x at the last step of this one, detached.

        Its fields: `z`, (batch, memory, 2 hidden), holds h and c; `injection`, (batch, memory,
        n_in), holds x, which the convolution of the next injection looks back on; `valid`,
        (batch, memory), as for a `TransformerCell`. The context is not needed.
        """
        keep = slice(z.shape[1] - self.memory_length, None)
        valid = jnp.ones((z.shape[0], self.memory_length), bool)
        return Memory(*jax.lax.stop_gradient((z[:, keep], given.x[:, keep], valid)))

    def empty_memory(self, batch: int, dtype: Any = jnp.float32) -> Memory:
        """The memory before the first segment."""
        return self._empty(batch, self.memory_length, dtype)

    def _empty(self, batch: int, length: int, dtype: Any) -> Memory:
        z, x = (jnp.zeros((batch, length, n), dtype) for n in (self.d, self.n_in))
        return Memory(z, x, valid=jnp.zeros((batch, length), bool))


def _delay(y: jax.Array, before: jax.Array) -> jax.Array:
    """y one step later in time: (batch, time, n), starting with `before`, (batch, 1, n)."""
    return jnp.concatenate([before, y[:, :-1]], axis=1)


def _pairs(before: jax.Array, y: jax.Array) -> jax.Array:
    """What a kernel of two taps sees at every step, (batch, time, 2n)."""
    return jnp.concatenate([before, y], axis=-1)
