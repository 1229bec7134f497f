"""Names for the axes of parameters, by which a mesh decides what to cut.

`embed` is the width of the residual stream, `heads` that of all attention heads together, `inner`
that of a feed-forward, `vocabulary` the tokens. `deqjax.training.mesh.RULES` says which mesh axis
each is cut over.
"""

from __future__ import annotations

from typing import Any


def axes(*names: str | None) -> dict[str, Any]:
    """Metadata of an `nnx.Param` whose axes have those names, None for an axis that stays whole.

    They are Flax's own (`out_sharding`, which `nnx.get_partition_spec` reads), but a parameter is
    not spread as it is made: the training step does that.
    """
    return dict(out_sharding=names, eager_sharding=False)
