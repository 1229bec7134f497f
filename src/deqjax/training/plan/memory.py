"""What a compiled train step needs of a chip's memory; and compilations that run out of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ...solvers.base import Point
from ..mesh import without
from .chips import GPU_OPTIONS, GPUS, TPUS, Chip
from .program import Programs

PyTree = Any
# What libtpu says.
_SHORTAGES = (
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
    r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
)
_SIZES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}


@dataclass(frozen=True)
class Memory:
    """Bytes on every chip. The first five follow from shapes, the next four are the compiler's.

    Attributes:
        parameters: as they are stored, in parts where the mesh has an `fsdp` or `tensor` axis.
        optimiser: its moments.
        carry: what a segment hands to the next one, and the batch.
        gradients: of all parameters in use, before they are reduced; a part of `temporary`.
        history: what the solver keeps of its steps; a part of `temporary` (on a TPU some of it may
            be in VMEM instead). The adjoint's comes when the forward one's is gone.
        arguments, results: of the train step. The donated state is in both, once.
        temporary: all that lives between them, where there is most of it.
        code: the program.
        peak: all of these at once. None where the compiler gives up.
        capacity: of the chip.
        needed: what the program would need where it does not fit, if the compiler says so.
    """

    parameters: int
    optimiser: int
    carry: int
    gradients: int
    history: int
    capacity: float
    arguments: int | None = None
    results: int | None = None
    temporary: int | None = None
    code: int | None = None
    peak: int | None = None
    needed: float | None = None

    @property
    def activations(self) -> int | None:
        """The rest of `temporary`: activations, normalised and gathered weights, work space."""
        if self.temporary is None:
            return None
        return max(0, self.temporary - self.gradients - self.history)

    @property
    def fits(self) -> bool:
        return self.peak is not None and self.peak <= self.capacity


def from_shapes(programs: Programs, capacity: float) -> dict[str, Any]:
    """The fields of a `Memory` that need no compiler."""
    state = programs.state
    return dict(
        parameters=_stored(state.params),
        optimiser=_stored(state.opt_state),
        carry=_stored(state.carry) + _stored(programs.batch()),
        gradients=_stored(state.params, gathered=True),
        history=_history(programs),
        capacity=capacity,
    )


def from_compiler(compiled: jax.stages.Compiled, chip: Chip) -> dict[str, Any]:
    """The fields that a compiled train step has.

    For a TPU, what is temporary is the most that is alive at once besides arguments and results
    (`peak_memory_in_bytes`): what libtpu calls temporary is more than it allocates, by a tenth to a
    half (docs/design.md, "Several devices"). Packing takes up to a tenth of it again; whether a
    program fits, the compiler knows, and `compile_for` asks. On others it is the heap of temporary
    buffers, and the live ones are not known.
    """
    found = compiled.memory_analysis()
    if found is None:
        return {}
    arguments, code = found.argument_size_in_bytes, found.generated_code_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    temporary = found.temp_size_in_bytes
    if chip.name in TPUS:
        temporary = found.peak_memory_in_bytes - arguments - results
    peak = arguments + results + temporary + code
    return dict(arguments=arguments, results=results, temporary=temporary, code=code, peak=peak)


def compile_for(
    lowered: jax.stages.Lowered, chip: Chip
) -> tuple[jax.stages.Compiled | None, dict[str, float]]:
    """The program; or None, and what is known of the memory that it would need (`shortage`)."""
    try:
        return lowered.compile(GPU_OPTIONS if chip.name in GPUS else None), {}
    except jax.errors.JaxRuntimeError as wrong:
        missing = shortage(wrong)
        if missing is None:
            raise
        return None, missing


def shortage(wrong: Exception) -> dict[str, float] | None:
    """What a compiler says that runs out of memory: bytes needed and capacity, or {} if it gives no
    figures. None if something else is wrong."""
    text = str(wrong)
    for form in _SHORTAGES:
        if found := re.search(form, text):
            size = lambda number, unit: float(number) * _SIZES[unit]
            return dict(needed=size(*found.group(1, 2)), capacity=size(*found.group(3, 4)))
    return {} if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower() else None


def _stored(tree: PyTree, *, gathered: bool = False) -> int:
    """Bytes of the shards that one chip has; `gathered`, with those of the `fsdp` axis put
    together."""
    total = 0
    for x in jax.tree.leaves(tree):
        sharding, shape = x.sharding, x.shape
        if gathered and isinstance(sharding, jax.sharding.NamedSharding):
            spec = without(sharding.spec, "fsdp")
            sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
        # A random key is of a dtype of its own.
        size = 8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
        total += math.prod(sharding.shard_shape(shape)) * size
    return total


def _history(programs: Programs) -> int:
    """Of the forward solver's state, for the samples that a chip solves for at once."""
    if not programs.subject.known:
        return 0
    model = programs.model_of(programs.state)
    solver = model.deq.solver
    shape = (programs.rows, programs.subject.segment, model.cell.d)

    def init():
        z = jnp.zeros(shape)
        return solver.init(Point.of(z, z), solver.tolerances(z).max_steps)

    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(init)))
