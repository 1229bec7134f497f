"""What the certificates need to know of an activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import suggest


@dataclass(frozen=True)
class Activation:
    """A scalar function, applied entry by entry, and bounds of it that hold everywhere.

    Attributes:
        name: what messages call it.
        function: the function itself.
        slopes: (lo, hi) with lo ≤ (σ(s) − σ(t)) / (s − t) ≤ hi for all s ≠ t. Rounded outward.
        homogeneous: σ(c t) = c σ(t) for every c ≥ 0.

    Raises:
        ValueError: slopes that are not finite or not in order.

    Examples:
        >>> from deqjax.theory.wellposed import Activation
        >>> Activation("half", lambda t: t / 2, slopes=(0.5, 0.5), homogeneous=True).lipschitz
        0.5
    """

    name: str
    function: Callable[[Any], Any]
    slopes: tuple[float, float]
    homogeneous: bool = False

    def __post_init__(self):
        lo, hi = self.slopes
        if not (-jnp.inf < lo <= hi < jnp.inf):
            raise ValueError(
                f"slopes must be two finite numbers in order, such as (0.0, 1.0); got {self.slopes}"
            )

    @property
    def lipschitz(self) -> float:
        """The largest |slope|."""
        return max(abs(s) for s in self.slopes)

    @property
    def is_proximal(self) -> bool:
        """Non-decreasing and non-expansive: the proximal operator of a convex function."""
        return self.slopes[0] >= 0 and self.slopes[1] <= 1

    def __call__(self, t: Any) -> Any:
        return self.function(t)


class Refused(ValueError):
    """An activation of which nothing is known that a certificate could rest on."""


def _identity(t):
    return t


def _known() -> list[Activation]:
    nn = jax.nn
    zero_to_one = [
        *("relu6", "hard_tanh", "softplus", "soft_sign", "elu", "celu", "log_sigmoid"),
        "squareplus",
    ]
    return [
        Activation("identity", getattr(nn, "identity", _identity), (1.0, 1.0), True),
        Activation("relu", nn.relu, (0.0, 1.0), True),
        Activation("leaky_relu", nn.leaky_relu, (0.01, 1.0), True),
        Activation("abs", jnp.abs, (-1.0, 1.0), True),
        *(Activation(name, getattr(nn, name), (0.0, 1.0)) for name in zero_to_one),
        *(Activation(name, getattr(jnp, name), (0.0, 1.0)) for name in ("arctan", "arcsinh")),
        Activation("tanh", jnp.tanh, (0.0, 1.0)),
        *(Activation(name, getattr(jnp, name), (-1.0, 1.0)) for name in ("sin", "cos")),
        Activation("sigmoid", nn.sigmoid, (0.0, 0.25)),
        Activation("hard_sigmoid", nn.hard_sigmoid, (0.0, 0.16666666666666669)),
        Activation("selu", nn.selu, (0.0, 1.7581)),
        Activation("gelu", nn.gelu, (-0.13, 1.13)),
        Activation("silu", nn.silu, (-0.1, 1.1)),
        Activation("mish", nn.mish, (-0.12, 1.09)),
        Activation("hard_silu", nn.hard_silu, (-0.5, 1.5)),
    ]


ACTIVATIONS: dict[str, Activation] = {a.name: a for a in _known()}
_ALIASES = {"swish": "silu", "none": "identity", "linear": "identity", "elementwise": "identity"}
# Same functions under other names of JAX's.
_FUNCTIONS = {id(a.function): a for a in ACTIVATIONS.values()} | {
    id(f): ACTIVATIONS[name]
    for f, name in ((jax.nn.tanh, "tanh"), (jax.lax.tanh, "tanh"), (jax.lax.logistic, "sigmoid"))
}

_NORMS = ("layernorm", "rmsnorm", "groupnorm", "instancenorm", "standardize")
_NORMALISED = (
    "a normalisation such as LayerNorm has no global Lipschitz constant worth the name: its slope "
    "where the variance is near zero is 1/sqrt(eps); use deqjax.diagnostics at z* instead, which "
    "is local and proves nothing elsewhere"
)
_COUPLED = (
    "it couples the entries of z, and the certificates are of activations that act on each entry "
    "by itself"
)


def as_activation(given: str | Activation | Callable) -> Activation:
    """The registered activation that a name or a function of JAX stands for.

    Args:
        given: an `Activation`, its name, or the function itself (`jax.nn.relu`, `jnp.tanh`), which
            is recognised by identity: of a lambda or a partial nothing is known.

    Raises:
        Refused: a normalisation, a function that couples entries, or an unknown function.
        ValueError: an unknown name.
        TypeError: anything else.
    """
    if isinstance(given, Activation):
        return given
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    plain = name.lower().replace("_", "")
    if any(norm in plain for norm in _NORMS) or type(given).__name__.lower() in _NORMS:
        raise Refused(f"{name} is refused: {_NORMALISED}")
    if "softmax" in plain or plain in ("glu", "maxout"):
        raise Refused(f"{name} is refused: {_COUPLED}")
    if isinstance(given, str):
        found = ACTIVATIONS.get(_ALIASES.get(given, given))
        if found is None:
            raise ValueError(
                f"activation={given!r} is not a known activation{suggest(given, ACTIVATIONS)}"
            )
        return found
    if not callable(given):
        raise TypeError(
            "activation must be a name such as 'relu', a function of jax.nn, or an Activation, not "
            f"{type(given).__name__}"
        )
    found = _FUNCTIONS.get(id(given))
    if found is None:
        raise Refused(
            f"the activation {name} is refused: nothing is known of its slopes; functions of "
            "jax.nn and jax.numpy are recognised by identity, for your own give "
            "Activation(name, function, slopes=(lo, hi))"
        )
    return found
