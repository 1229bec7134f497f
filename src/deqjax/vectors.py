"""States as vectors, sample by sample: what a solver of one's own computes with.

A state is a pytree whose leaves have the batch on axis 0 (one equation is a batch of one), and a
scalar is an array of shape (batch,). Sums run over all leaves, as if they were one vector, in
float32 at least.
"""

from ._state import History as History
from ._state import dot as dot
from ._state import norm as norm
from ._state import per_sample as per_sample
from ._state import select as select
from ._state import subtract as subtract
from ._state import times as times
