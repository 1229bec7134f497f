"""SATNet: clauses learned from examples, completed by the MAXSAT relaxation."""

from __future__ import annotations

import jax
from flax import nnx

from .._errors import check_integer
from .._failure import checked_policy
from .._solution import Solution, Stats
from ..implicit.maxsat import check_options, maxsat


class SATNet(nnx.Module):
    """z = maxsat(S, z, given) with learned clauses S, drawn from N(0, 2/(n + aux + 1 + m)).

    As in Wang, Donti, Wilder and Kolter 2019 (arXiv 1905.12149), but for the fixed start: the layer
    is a deterministic function of its inputs and of `seed`. Not for inputs whose meaning differs
    from sample to sample; each input is one variable with clauses of its own.

    Args:
        n: number of inputs.
        m: number of clauses, the rank of SSᵀ.
        aux: number of auxiliary variables, which no input and no output has.
        k: as in `deqjax.implicit.maxsat`, and so are the following.
        max_sweeps: as there.
        rtol: as there.
        damping: as there; above 1e-6 the gradient is an approximation, which may train better.
        adjoint_rtol: as there.
        adjoint_max_steps: as there.
        on_failure: as there.
        seed: of the directions that every solve starts from.
        rngs: for S.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import SATNet
        >>> layer = SATNet(3, m=4, aux=2, rngs=nnx.Rngs(0))
        >>> z = jnp.array([[0.0, 1.0, 0.5]])
        >>> sol = layer(z, jnp.array([[True, True, False]]))
        >>> sol.z.shape, sol.z[0, :2].tolist()
        ((1, 3), [0.0, 1.0])
    """

    def __init__(
        self,
        n: int,
        *,
        m: int,
        aux: int = 0,
        k: int = 32,
        max_sweeps: int = 40,
        rtol: float = 1e-4,
        damping: float = 1e-8,
        adjoint_rtol: float | None = None,
        adjoint_max_steps: int = 100,
        on_failure: str | None = None,
        seed: int = 0,
        rngs: nnx.Rngs,
    ):
        for name, value, least in (("n", n, 1), ("m", m, 1), ("aux", aux, 0)):
            check_integer(name, value, least=least)
        self.aux, self.k, self.seed = aux, k, seed
        self.max_sweeps, self.rtol, self.damping = max_sweeps, rtol, damping
        self.adjoint_rtol, self.adjoint_max_steps = adjoint_rtol, adjoint_max_steps
        check_options(k, max_sweeps, rtol, damping, adjoint_rtol, adjoint_max_steps)
        self.on_failure = None if on_failure is None else checked_policy(on_failure)
        rows = n + aux + 1
        size = (2 / (rows + m)) ** 0.5
        self.S = nnx.Param(size * jax.random.normal(rngs.params(), (rows, m)))

    def __call__(
        self,
        z: jax.Array,
        given: jax.Array,
        *,
        key: jax.Array | None = None,
        adjoint_probe: Stats | None = None,
    ) -> Solution:
        """The completed boards.

        Args:
            z: (batch, n) probabilities; what stands where nothing is given is ignored.
            given: bool (batch, n).
            key: other directions than those of `seed` to start from.
            adjoint_probe: as in `deqjax.implicit.maxsat`.
        """
        return maxsat(
            self.S[...],
            z,
            given,
            key=jax.random.key(self.seed) if key is None else key,
            aux=self.aux,
            k=self.k,
            max_sweeps=self.max_sweeps,
            rtol=self.rtol,
            damping=self.damping,
            adjoint_rtol=self.adjoint_rtol,
            adjoint_max_steps=self.adjoint_max_steps,
            on_failure=self.on_failure,
            adjoint_probe=adjoint_probe,
        )
