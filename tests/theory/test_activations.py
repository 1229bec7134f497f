"""What is registered of an activation is true of it, and nothing is guessed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.theory.wellposed import ACTIVATIONS, Activation, Refused, as_activation, certify


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_hold_everywhere_and_are_reached(name):
    known = ACTIVATIONS[name]
    t = jnp.concatenate([jnp.linspace(-12, 12, 40_001), jnp.geomspace(20, 1e6, 20)])
    t = jnp.concatenate([t, -t[-20:]])
    slope = jax.jvp(known.function, (t,), (jnp.ones_like(t),))[1]
    lo, hi = known.slopes
    assert lo <= slope.min() + 1e-15 and slope.max() <= hi + 1e-15
    assert slope.min() < lo + 0.02 and slope.max() > hi - 0.02
    assert known.lipschitz == max(abs(lo), abs(hi))
    scaled = bool(np.allclose(known(3.0 * t[:-40]), 3.0 * known(t[:-40]), atol=1e-12))
    assert scaled == known.homogeneous


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_found_by_name_and_by_identity(name):
    known = ACTIVATIONS[name]
    assert as_activation(name) is as_activation(known.function) is as_activation(known) is known


def test_functions_of_flax_are_those_of_jax():
    assert as_activation(nnx.relu).name == "relu" and as_activation(nnx.swish).name == "silu"


@pytest.mark.parametrize(
    "given, why",
    [
        ("layer_norm", "1/sqrt"),
        (lambda: nnx.LayerNorm(3, rngs=nnx.Rngs(0)), "1/sqrt"),
        (lambda: nnx.RMSNorm(3, rngs=nnx.Rngs(0)), "1/sqrt"),
        (lambda: jax.nn.standardize, "1/sqrt"),
        (lambda: jax.nn.softmax, "couples"),
        (lambda: lambda t: t, "identity"),
        (lambda: functools.partial(jax.nn.leaky_relu, negative_slope=9.0), "identity"),
    ],
    ids=["name", "LayerNorm", "RMSNorm", "standardize", "softmax", "lambda", "partial"],
)
def test_refused_with_the_reason(given, why):
    given = given if isinstance(given, str) else given()
    with pytest.raises(Refused, match=why):
        as_activation(given)
    found = certify(0.01 * np.eye(2), given)
    assert not found.holds and found.kind == "refused" and why in found.reason


def test_wrong_ones_in_one_sentence():
    with pytest.raises(ValueError, match="did you mean 'relu'"):
        as_activation("rleu")
    with pytest.raises(TypeError, match="not int"):
        as_activation(3)
    with pytest.raises(ValueError, match="in order"):
        Activation("odd", jnp.sin, slopes=(1.0, -1.0))
