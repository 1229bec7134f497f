"""The temporal convolutional network: the strongest explicit baseline on copy memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from .._errors import check_integer
from .dropout import VariationalDropout
from .language_model import LanguageModelOutput


class TCN(nnx.Module):
    """Dilated causal convolutions in residual blocks (Bai, Kolter and Koltun 2018, arXiv
    1803.01271, section 3): token in, logits of the next one out.

    Level i has two convolutions of `kernel_size` taps, 2ⁱ steps apart, each weight-normalised and
    followed by ReLU and dropout, with the identity around the pair. Output t sees the inputs
    t − `reach` + 1 to t, with reach = 1 + 2 (kernel_size − 1) (2^levels − 1).

    Args:
        vocabulary: number of tokens.
        channels: width of every level.
        levels: residual blocks.
        kernel_size: taps of a convolution.
        dropout: rate, in [0, 1).
        rngs: for the parameters and, as `rngs.dropout`, the masks.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import TCN
        >>> tcn = TCN(10, channels=4, levels=3, kernel_size=2, rngs=nnx.Rngs(0))
        >>> tcn.reach, tcn(jnp.zeros((2, 7), int)).logits.shape
        (15, (2, 7, 10))
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        channels: int,
        levels: int,
        kernel_size: int,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        for name, value in (("levels", levels), ("kernel_size", kernel_size)):
            check_integer(name, value, least=1)
        self.reach = 1 + 2 * (kernel_size - 1) * (2**levels - 1)
        self.embed = nnx.Embed(vocabulary, channels, rngs=rngs)
        self.blocks = nnx.List(
            _Block(channels, kernel_size, 2**level, dropout, rngs) for level in range(levels)
        )
        self.decode = nnx.Linear(channels, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> LanguageModelOutput:
        """Logits (batch, time, vocabulary) for tokens, int (batch, time)."""
        y = self.embed(tokens)
        for block in self.blocks:
            y = block(y)
        return LanguageModelOutput(self.decode(y).astype(jnp.float32))


class _Block(nnx.Module):
    """y ↦ relu(y + g(g(y))), g = dropout ∘ relu ∘ causal convolution."""

    def __init__(self, channels: int, taps: int, dilation: int, dropout: float, rngs: nnx.Rngs):
        self.first = _Convolution(channels, taps, dilation, rngs)
        self.second = _Convolution(channels, taps, dilation, rngs)
        self.dropout = VariationalDropout(dropout, rngs=rngs)

    def __call__(self, y: jax.Array) -> jax.Array:
        out = self.dropout(nnx.relu(self.first(y)))
        out = self.dropout(nnx.relu(self.second(out)))
        return nnx.relu(y + out)


class _Convolution(nnx.Module):
    """A causal dilated convolution with weight normalisation: kernel = scale · v/‖v‖, the norm
    over all that leads to one output channel (Salimans and Kingma 2016, arXiv 1602.07868).

    (Flax's `nnx.WeightNorm` writes the normalised kernel back into the parameter that is trained.)
    """

    def __init__(self, channels: int, taps: int, dilation: int, rngs: nnx.Rngs):
        self.taps, self.dilation = taps, dilation
        v = nnx.initializers.he_normal()(rngs.params(), (taps, channels, channels))
        self.v = nnx.Param(v)
        self.scale = nnx.Param(_norm(v))
        self.bias = nnx.Param(jnp.zeros((channels,)))

    def __call__(self, y: jax.Array) -> jax.Array:
        kernel = self.v[...] * (self.scale[...] / _norm(self.v[...]))
        convolved = jax.lax.conv_general_dilated(
            y,
            kernel,
            window_strides=(1,),
            padding=[((self.taps - 1) * self.dilation, 0)],
            rhs_dilation=(self.dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return convolved + self.bias[...]


def _norm(v: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(v**2, axis=(0, 1)))
