"""How the processes of one job agree, without a computation on the devices.

A collective belongs to the main thread: started by a thread beside it, it would meet another
process's training step. So everything here goes through the key-value store that
`jax.distributed` keeps for the job.
"""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Callable
from typing import Any

import jax

from .errors import CheckpointError, reason

# Seconds. A process that died is noticed by JAX, much sooner; this ends what waits for a process
# that lives and went another way.
_PATIENCE = 3600.0
_made: collections.Counter[str] = collections.Counter()


class Processes:
    """All processes of the job, which make these objects, and call them, in the same order.

    Args:
        name: the same on every process.

    Raises:
        CheckpointError: there are several, and `jax.distributed` does not connect them.

    Examples:
        >>> Processes("votes").agree(lambda: 1, sum)  # the number of processes
        1
    """

    def __init__(self, name: str):
        self.index, self.count = jax.process_index(), jax.process_count()
        self._prefix = f"deqjax/{name}/{_made[name]}"
        self._round = 0
        _made[name] += 1
        if self.count > 1:
            from jax._src import distributed  # JAX has no public name for its key-value store

            if (client := distributed.global_state.client) is None:
                raise CheckpointError("several processes need jax.distributed.initialize() first")
            self._client: Any = client

    @property
    def first(self) -> bool:
        """Whether this is process 0, the one that decides."""
        return self.index == 0

    def agree(self, work: Callable[[], Any], decide: Callable[[list[Any]], Any]) -> Any:
        """`decide(what every process's work returned)`, computed by process 0, on all of them.

        Both return what JSON can hold. An exception in either is raised on every process: where it
        happened as it is, elsewhere as a `CheckpointError` that names the process.
        """
        if self.count == 1:
            return decide([work()])
        self._round += 1
        prefix = f"{self._prefix}/{self._round}"
        mine, own = _outcome(work)
        if self.first:
            found = [mine, *(self._get(f"{prefix}/{k}") for k in range(1, self.count))]
            # All are here, so all have read the last round.
            self._client.key_value_delete(f"{self._prefix}/{self._round - 1}/")
            failed = (k for k, outcome in enumerate(found) if "error" in outcome)
            if (k := next(failed, None)) is not None:
                verdict = {"error": f"process {k}: {found[k]['error']}"}
            else:
                verdict, own = _outcome(lambda: decide([outcome["value"] for outcome in found]))
                if own is not None:
                    verdict = {"error": f"process 0: {verdict['error']}"}
            self._client.key_value_set(f"{prefix}/verdict", json.dumps(verdict))
        else:
            self._client.key_value_set(f"{prefix}/{self.index}", json.dumps(mine))
            verdict = self._get(f"{prefix}/verdict")
        if own is not None:
            raise own
        if "error" in verdict:
            raise CheckpointError(verdict["error"])
        return verdict["value"]

    def by_first(self, work: Callable[[], Any]) -> Any:
        """`work()`, done by process 0, on all of them."""
        return self.agree(lambda: work() if self.first else None, lambda found: found[0])

    def _get(self, key: str) -> Any:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:  # a second at a time, so that Ctrl-C gets through
                return json.loads(self._client.blocking_key_value_get(key, 1000))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error) or time.monotonic() > deadline:
                    raise CheckpointError(f"no word from the others: {reason(error)}") from error


def _outcome(work: Callable[[], Any]) -> tuple[dict[str, Any], Exception | None]:
    try:
        return {"value": work()}, None
    except Exception as error:
        return {"error": reason(error)}, error
