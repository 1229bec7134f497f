"""The one place that knows pytrees and the batch axis.

Inside the library a state is always a pytree whose leaves carry the batch on axis 0 (one equation
is a batch of one). Every function here works *per sample*: a scalar is an array of shape (batch,),
and a small matrix is (batch, m, m). Reductions accumulate in float32 at least, at full precision.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

PyTree = Any

# The longest sum over a history that is written out term by term.
MOST_TERMS = 16


def wide(dtype) -> jnp.dtype:
    """The dtype in which arithmetic on a `dtype` state is done: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def scalar_dtype(z: PyTree) -> jnp.dtype:
    """The real dtype of per-sample scalars for the state z."""
    dtype = jnp.result_type(jnp.float32, *(x.dtype for x in jax.tree.leaves(z)))
    return jnp.finfo(dtype).dtype


def zero_scalars(z: PyTree, *shape: int) -> jax.Array:
    """Zeros (batch, *shape), laid out over devices like the batch axis of z."""
    x = jax.tree.leaves(z)[0]
    zero = jnp.zeros_like(x, dtype=scalar_dtype(z)).sum(axis=tuple(range(1, x.ndim)))
    return jnp.broadcast_to(zero.reshape(x.shape[0], *(1,) * len(shape)), (x.shape[0], *shape))


def per_sample(c: jax.Array, x: jax.Array) -> jax.Array:
    """Reshape c, (batch,), so that it multiplies the leaf x, (batch, ...)."""
    return c.reshape(c.shape + (1,) * (x.ndim - c.ndim))


# ---------------------------------------------------------------------------------- to axis 0


def to_front(z: PyTree, axis: int | None) -> PyTree:
    """User layout to inner layout: the batch axis first, or a new axis of length one."""
    if axis is None:
        return jax.tree.map(lambda x: lax.expand_dims(x, (0,)), z)
    return z if axis == 0 else jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0), z)


def from_front(z: PyTree, axis: int | None) -> PyTree:
    """The inverse of `to_front`."""
    if axis is None:
        return jax.tree.map(lambda x: lax.squeeze(x, (0,)), z)
    return z if axis == 0 else jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), z)


# ---------------------------------------------------------------------------------- vectors


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """a − b, in float32 at least."""
    return jax.tree.map(lambda x, y: x.astype(wide(x.dtype)) - y.astype(wide(y.dtype)), a, b)


def cast_like(a: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x.astype(y.dtype), a, like)


def round_to(dtype, x: jax.Array) -> jax.Array:
    """x rounded to `dtype`, in x's own dtype."""
    if jnp.promote_types(x.dtype, dtype) == dtype:
        return x
    if jnp.iscomplexobj(x):
        return x.astype(dtype).astype(x.dtype)
    # Not a cast there and back, which XLA may drop (`xla_allow_excess_precision`).
    kept = jnp.finfo(dtype)
    return lax.reduce_precision(x, kept.nexp, kept.nmant)


def select(mask: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """Per sample: a where mask, (batch,), is true, else b. For any leaves with the batch first."""

    def leaf(x, y):
        return x if isinstance(x, History) else jnp.where(per_sample(mask, x), x, y)

    return jax.tree.map(leaf, a, b, is_leaf=lambda x: isinstance(x, History))


def dot(a: PyTree, b: PyTree) -> jax.Array:
    """⟨a, b⟩ per sample, (batch,): the sum over all leaves, as if they were one vector.

    Complex leaves count as pairs of reals, which keeps every scalar real.
    """
    return _total(jax.tree.map(_leaf_dot, a, b))


def norm(a: PyTree) -> jax.Array:
    """‖a‖₂ per sample, (batch,). It only steers loops: no gradient flows through it."""
    return jnp.sqrt(dot(*(lax.stop_gradient(a),) * 2))


def safe_norm(a: PyTree) -> jax.Array:
    """`norm` of numbers whose squares may vanish or overflow: two passes more, for use outside of
    loops."""
    a = jax.tree.map(lambda x: x.astype(wide(x.dtype)), lax.stop_gradient(a))
    size = largest(a)
    kept = jnp.finfo(size.dtype)
    # No mantissa: nothing is rounded. Its inverse must be finite too.
    unit = lax.reduce_precision(jnp.clip(size, kept.tiny, 0.25 / kept.tiny), kept.nexp, 0)
    return norm(times(a, 1 / unit)) * unit


def times(a: PyTree, c: jax.Array) -> PyTree:
    """a · c per sample, c of shape (batch,), in the dtypes of a."""
    return jax.tree.map(lambda x: (x.astype(wide(x.dtype)) * per_sample(c, x)).astype(x.dtype), a)


def largest(a: PyTree) -> jax.Array:
    """The largest |x| of each sample, (batch,). No gradient flows through it."""

    def leaf(x):
        size = jnp.abs(lax.stop_gradient(x)).astype(wide(jnp.finfo(x.dtype).dtype))
        return jnp.max(size, axis=tuple(range(1, x.ndim)), initial=0)

    return functools.reduce(jnp.maximum, map(leaf, jax.tree.leaves(a)))


def _contract(x, y, contracting, batch: int = 1):
    """Contraction per sample, or per row of it: the first `batch` axes of both are the same."""
    shared = tuple(range(batch))
    # `dot_general` and not multiply-and-sum: XLA's CPU back end runs the latter on one thread.
    dtype = wide(jnp.promote_types(x.dtype, y.dtype))
    return lax.dot_general(
        x.astype(dtype),
        y.astype(dtype),
        (contracting, (shared, shared)),
        precision=lax.Precision.HIGHEST,
        out_sharding=_kept_sharding(x, y, contracting, batch),
    )


def _kept_sharding(x, y, contracting, batch: int) -> PartitionSpec | None:
    """Under an explicit mesh: the axes that a contraction keeps stay where they are, and what it
    sums over devices is the same on all of them."""
    if not (is_sharded(x) or is_sharded(y)):
        return None
    kept = [
        [s for axis, s in enumerate(jax.typeof(a).sharding.spec) if axis not in axes]
        for a, axes in zip((x, y), contracting, strict=True)
    ]
    return PartitionSpec(*kept[0], *kept[1][batch:])


def is_sharded(x: jax.Array) -> bool:
    """Whether the type of x, under an explicit mesh, spreads it over devices."""
    return any(s is not None for s in jax.typeof(x).sharding.spec)


def _total(tree: PyTree) -> jax.Array:
    return functools.reduce(jnp.add, jax.tree.leaves(tree))


def _leaf_dot(x, y):
    y = y.conj() if jnp.iscomplexobj(y) else y
    axes = tuple(range(1, x.ndim))
    return _contract(x, y, (axes, axes)).real


# ---------------------------------------------------------------------------------- history


def finite(active: jax.Array | None, *lengths: jax.Array, after: tuple = ()) -> jax.Array:
    """The active samples all of whose lengths, (batch,), are finite: what is to be pushed.

    lengths: ‖v‖ or ‖v‖² of the vectors that are to be pushed, or of those that they differ by.
    after: their products with a history, (batch, m), which are to be taken before the push. By
    Cauchy and Schwarz they are finite where squared lengths are: one of each is looked at.
    """
    read = [product[:, 0] for product in after]
    good = jnp.isfinite(functools.reduce(jnp.add, [*lengths, *read]))
    return good if active is None else good & active


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class History:
    """The last m vectors, as a ring: every leaf (batch, ...) of a state becomes (batch, m, ...).

    A history freezes itself, one slot at a time, in `push`; `select` passes it through, so that
    freezing a sample never copies its history.

    In a step, read first and push last, and let the push depend on what was read (`finite` is one
    way; a vector may do so by itself, through f): XLA then writes the slot in place. A history that
    is read after a push in the same step, or in an order that is left open, is copied whole (seen
    on the CPU back end, which drops optimisation barriers before it decides). A push should wait
    for nothing else: a CPU writes it on one thread, and does something else on the others.

    Attributes:
        values: the vectors.
        one: one equation. Its leaves (1, n, ...) become (1, n, m, ...), and products with them are
            taken for each of the n rows first: XLA's CPU back end runs a product on several threads
            only where it has a batch to spread over them.
    """

    values: PyTree
    one: bool = field(default=False, metadata={"static": True})

    @classmethod
    def zeros(cls, z: PyTree, memory: int, dtype=None, *, after: PyTree = None) -> History:
        """m zero vectors, laid out (and sharded) like z. after: a pytree like z, before which no
        compiler can make them; None means z."""
        leaves = jax.tree.leaves(z)
        history = cls((), one=leaves[0].shape[0] == 1 and not any(map(is_sharded, leaves)))

        def leaf(x, late):
            if dtype is not None and jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, complex):
                raise ValueError(
                    f"history_dtype={jnp.dtype(dtype)} would drop the imaginary part of a "
                    f"{x.dtype} state: use a complex dtype or None"
                )
            axis = history.axis(x.ndim)
            # No constant zeros: a compiler makes one array of all constants that are alike, and
            # copies for each solve of a program, the adjoint's too, before the first one begins.
            never = jnp.isnan(late) & jnp.isinf(late)
            zero = jnp.expand_dims(never.astype(x.dtype if dtype is None else dtype), axis)
            return jnp.broadcast_to(zero, (*x.shape[:axis], memory, *x.shape[axis:]))

        return replace(history, values=jax.tree.map(leaf, z, z if after is None else after))

    def axis(self, ndim: int) -> int:
        """The axis along which the m vectors of a leaf, (batch, ...) of `ndim` axes, lie."""
        return 2 if self.one and ndim > 2 else 1

    def push(self, v: PyTree, slot: jax.Array, active: jax.Array | None) -> History:
        """Write v into `slot` for the active samples (None: all); the others keep theirs."""

        def leaf(h, x):
            axis = self.axis(x.ndim)
            x = jnp.expand_dims(x.astype(h.dtype), axis)
            if active is not None:
                old = lax.dynamic_slice_in_dim(h, slot, 1, axis)
                x = jnp.where(per_sample(active, x), x, old)
            return lax.dynamic_update_slice_in_dim(h, x, slot, axis)

        return replace(self, values=jax.tree.map(leaf, self.values, v))

    def at(self, slot: jax.Array) -> PyTree:
        """The vector in `slot`."""

        def leaf(h):
            return lax.dynamic_index_in_dim(h, slot, self.axis(h.ndim - 1), keepdims=False)

        return jax.tree.map(leaf, self.values)

    def holds(self, v: PyTree) -> bool:
        """Whether v, in the dtype of arithmetic, is stored without rounding."""
        pairs = zip(jax.tree.leaves(self.values), jax.tree.leaves(v), strict=True)
        return all(h.dtype == x.dtype for h, x in pairs)

    def rounded(self, v: PyTree) -> PyTree:
        """v as it will be stored: what is computed from it then agrees with what is kept."""
        return jax.tree.map(lambda h, x: round_to(h.dtype, x), self.values, v)

    def dots(self, v: PyTree) -> jax.Array:
        """Hᵀv per sample, (batch, m)."""

        def leaf(h, x):
            x = x.conj() if jnp.iscomplexobj(x) else x
            batch = self.axis(x.ndim)
            axes = range(batch, x.ndim)
            # The vector on the left: XLA's CPU back end then passes over h twice as fast.
            rows = _contract(h, x, (tuple(a + 1 for a in axes), tuple(axes)), batch).real
            return rows if batch == 1 else rows.sum(axis=1)

        return _total(jax.tree.map(leaf, self.values, v))

    def combine(self, c: jax.Array) -> PyTree:
        """Hc = Σᵢ cᵢ Hᵢ per sample, for c of shape (batch, m), in float32 at least."""

        def leaf(h):
            axis = self.axis(h.ndim - 1)
            if h.shape[axis] > MOST_TERMS:
                return _contract(c, h, ((1,), (axis,)))
            vectors = (lax.index_in_dim(h, i, axis, keepdims=False) for i in range(h.shape[axis]))
            return sum(
                per_sample(c[:, i], v) * v.astype(wide(v.dtype)) for i, v in enumerate(vectors)
            )

        # A short sum and no product of matrices: it is fused into the step that it is for, which
        # then passes over the history without a result in between. A long one takes too long to
        # compile.
        return jax.tree.map(leaf, self.values)
